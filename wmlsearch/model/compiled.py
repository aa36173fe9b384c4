"""The network of a training through `torch.compile`: experimental, off by default (WMLSEARCH_KERNELS=compile).

Only the network is compiled, forward and backward, and only in training. The loss, augmentation, the sum of gradients
over ranks and the optimiser run as usual around it. A CUDA graph of a step holds compiled code as all else that a step
launches. Validation and prediction run PyTorch's layers.

Code is of use to many configurations: it serves any number of images that PyTorch allows, from two on, and reads the
probability of dropout from memory. So dropout draws other masks than PyTorch's layers do. `compile_cache.py` keeps the
code for later trainings.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wmlsearch.model.compile_cache import CompileCache, short_reason, warn_once
from wmlsearch.model.torch_patches import count_compilations, forget_cache_artifacts, let_size_vary
from wmlsearch.model.unet import Dropout, UNet
from wmlsearch.runs.environment import set_variables

COMPILING_PROCESSES = "TORCHINDUCTOR_COMPILE_THREADS"  # PyTorch reads it when it first compiles
_failed: set[str] = set()  # types of devices for which compiling has failed in this process


class CompiledNetwork:
    """Calls a network in training, by compiled code where that is possible, else by PyTorch's layers.

    The first batch of each size is run once in advance, which compiles and changes nothing: neither weights, statistics
    and gradients nor the random numbers of the training. If that fails, this process trains with PyTorch's layers from
    there on, with a warning. A batch of one image runs them too, since it would need code of its own.
    """

    def __init__(
        self,
        unet: UNet,
        layers: Callable[[Tensor], Tensor],
        cache: CompileCache | None = None,
        is_writer: bool = True,
    ) -> None:
        """Compile nothing yet.

        Args:
            unet: The network. Its dropout reads its probability from memory from here on.
            layers: Runs the network with PyTorch's layers.
            cache: Where compiled code is looked up and stored.
            is_writer: Whether this rank writes to the cache.
        """
        self.unet, self.layers, self.cache, self.is_writer = unet, layers, cache, is_writer
        self.device = unet.head.weight.device
        self.prepared: set[int] = set()  # numbers of images for which there is code
        self.code: Callable[[Tensor], Tensor] | None = None
        if any(isinstance(module, nn.SyncBatchNorm) for module in unet.modules()):
            warn_once("batch normalisation over several GPUs cannot be compiled: training runs PyTorch's layers")
        elif self.device.type not in _failed:
            self._set_dropout_rates(True)
            self.code = _code_of(unet)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, input_slices, H, W) -> logits (N, 1, H, W), float32."""
        if self.code is not None and len(images) > 1 and len(images) not in self.prepared:
            self._prepare(images)
        if self.code is None or len(images) == 1:
            return self.layers(images)
        return self.code(images)

    def _prepare(self, images: Tensor) -> None:
        """Compile for batches of this size, or load what was compiled before."""
        try:
            if self.cache is not None:
                forget_cache_artifacts()
                if not self.prepared:
                    self.cache.load()
            before = count_compilations()
            self._run_in_advance(images)
            self.prepared.add(len(images))
            if self.cache is not None and self.is_writer:
                self.cache.save(len(images), compiled_anew=count_compilations() > before)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: no compiler, an old GPU, what the compiler does not know
            self.code = None
            self._set_dropout_rates(False)
            _failed.add(self.device.type)
            warn_once(f"training runs PyTorch's layers, since torch.compile failed: {short_reason(error)}")

    def _run_in_advance(self, images: Tensor) -> None:
        """Run the code forward and backward, and undo what it has changed."""
        if self.code is None:
            raise RuntimeError("there is no code to run")
        let_size_vary(images, 0)
        buffers = list(self.unet.buffers())
        before = [buffer.clone() for buffer in buffers]
        weights = [weight for weight in self.unet.parameters() if weight.requires_grad]
        try:
            with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]):
                torch.autograd.grad(self.code(images).sum(), weights)
        finally:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def _set_dropout_rates(self, in_memory: bool) -> None:
        for module in self.unet.modules():
            if isinstance(module, Dropout) and module.p > 0:
                module.rate = torch.tensor(module.p, device=self.device) if in_memory else None


def _code_of(unet: UNet) -> Callable[[Tensor], Tensor]:
    """Return a function that computes what `unet` does, and is compiled when it is called."""

    def logits(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = unet.features(images).float()
        # The head as a sum over channels: compiled code adds it to what it does before. Autocast leaves it in float32;
        # a context that switches autocast off would keep PyTorch's cache from holding the code.
        weighted = x * unet.head.weight.view(1, -1, 1, 1)
        of_pixels = weighted.sum(1, keepdim=True) + unet.head.bias  # type: ignore[operator]  # the head has a bias
        return of_pixels[..., :height, :width]

    if COMPILING_PROCESSES not in os.environ:  # torch would start one for each core, in each worker of a machine
        set_variables({COMPILING_PROCESSES: str(torch.get_num_threads())})
    torch.compiler.reset()  # of earlier trainings in this process: torch keeps code for a few networks only
    compiled: Callable[[Tensor], Tensor] = torch.compile(logits, fullgraph=True)
    return compiled
