"""Networks that predict on a GPU by CUDA graphs, which all networks of this process share memory for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import VALIDATION_BATCH


class GraphedNetworks:
    """Calls networks on one device, full batches (`VALIDATION_BATCH`) by CUDA graphs.

    The first full batch of a network runs as usual, the second one is captured, and from then on the graph is replayed:
    it launches the same kernels on the same memory. Other batches, which a volume has one of, and other shapes run as
    usual, and so does everything where there are no graphs (see `StepGraphs`). Call it without gradients, from any
    thread: one at a time uses the graphs' memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.graphs = StepGraphs(device)
        self.networks: list[_Network] = []  # that may have graphs
        self.lock = threading.Lock()

    def __call__(self, unet: UNet, images: Tensor) -> Tensor:
        """Images (N, input_slices, H, W) -> logits (N, 1, H, W), float32, which the caller may keep."""
        if not self.graphs.allows("prediction") or len(images) != VALIDATION_BATCH:
            return _logits(unet, images)
        with self.lock:
            network = self._network(unet, images)
            if network.images.shape == images.shape:
                with self.graphs.on_stream():
                    network.images.copy_(images)
                    self.graphs.run("prediction", network, network.step_of(unet), network.is_warm)
                    network.is_warm = True
                    return network.logits.clone()
        return _logits(unet, images)

    def _network(self, unet: UNet, images: Tensor) -> _Network:
        """Return what is kept of a network. Graphs of networks that are gone, or have moved in memory, are dropped."""
        places = _places(unet)
        for network in list(self.networks):
            captured = network.unet()
            if captured is None or (captured is unet and network.places != places):
                self.graphs.forget("prediction", network)
                self.networks.remove(network)
            elif captured is unet:
                return network
        self.networks.append(_Network(unet, places, images))
        return self.networks[-1]


class _Network:
    """A network, and the memory from which its graph reads and to which it writes."""

    def __init__(self, unet: UNet, places: tuple[int, ...], images: Tensor) -> None:
        self.unet = weakref.ref(unet)
        self.places = places  # of its weights in memory
        self.images = torch.empty_like(images)
        self.logits = images.new_empty(len(images), 1, *images.shape[-2:])
        self.is_warm = False

    def step_of(self, unet: UNet) -> Callable[[], None]:
        def step() -> None:
            self.logits.copy_(_logits(unet, self.images))

        return step


@cache
def networks_on(device: torch.device) -> GraphedNetworks:
    """Return the networks of this process that predict on a device."""
    return GraphedNetworks(device)


def _logits(unet: UNet, images: Tensor) -> Tensor:
    logits: Tensor = unet(images.contiguous(memory_format=torch.channels_last))
    return logits


def _places(unet: UNet) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in unet.state_dict().values())
