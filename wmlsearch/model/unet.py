"""The U-Net of the paper, with configurable depth, width, dropout and normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmlsearch.config import TrialConfig


class UNet(nn.Module):
    """A 2-D U-Net that returns one logit per pixel.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with the changes
    of the paper (II.B, Fig. 3): "same" convolutions, batch normalisation, dropout, He initialisation. `UNet()` is the
    paper's network with 1,943,761 parameters, of which 1,472 are biases that stay zero (see `ConvBeforeNorm`).

    Args:
        depth: Number of levels down; each halves the image and doubles the channels.
        base_channels: Channels of the first level.
        dropout: Fraction of elements set to zero in each block.
        norm: "batch", or "instance" (with learned scale and shift).
        dropout_place: After the "first" convolution of a block, the "last", or "both".
        norm_momentum: Momentum of batch normalisation: fraction of the running statistics that each step replaces.
        norm_epsilon: Number added to the variance.
        up_kernel: Edge of the transposed convolutions' kernels, 2 or 3.
        head_init: Initial weights of the last convolution, "he" or "glorot".
        network: "paper", or "residual", whose blocks are `ResidualBlock`s.
        input_slices: Number of input channels: neighbouring slices of a scan.
    """

    def __init__(
        self,
        depth: int = 4,
        base_channels: int = 16,
        dropout: float = 0.1,
        norm: Literal["batch", "instance"] = "batch",
        *,
        dropout_place: Literal["first", "last", "both"] = "first",
        norm_momentum: float = 0.1,
        norm_epsilon: float = 1e-5,
        up_kernel: Literal[2, 3] = 2,
        head_init: Literal["he", "glorot"] = "he",
        network: Literal["paper", "residual"] = "paper",
        input_slices: int = 1,
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.depth = depth

        def normalisation(channels: int) -> nn.Module:
            if norm == "batch":
                return nn.BatchNorm2d(channels, eps=norm_epsilon, momentum=norm_momentum)
            return nn.InstanceNorm2d(channels, eps=norm_epsilon, affine=True)

        def block(channels_in: int, channels_out: int) -> nn.Module:
            build = ResidualBlock if network == "residual" else _block
            return build(channels_in, channels_out, dropout, dropout_place, normalisation)

        self.down = nn.ModuleList(
            block(before, after) for before, after in zip([input_slices, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = block(widths[-2], widths[-1])
        # Both kernels double the size: (2, 0, 0), or (3, 1, 1) as Keras's "same", mirrored.
        padding = up_kernel - 2
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width, width // 2, up_kernel, stride=2, padding=padding, output_padding=padding)
            for width in widths[:0:-1]
        )
        self.merge = nn.ModuleList(block(width, width // 2) for width in widths[:0:-1])
        self.head = nn.Conv2d(base_channels, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # our convolutions have a bias
        if head_init == "glorot":
            nn.init.xavier_uniform_(self.head.weight)

    @classmethod
    def of(cls, config: TrialConfig) -> UNet:
        """Return the network of a configuration, with initial weights."""
        return cls(
            config.depth,
            config.base_channels,
            config.dropout,
            config.norm,
            dropout_place=config.dropout_place,
            norm_momentum=config.norm_momentum,
            norm_epsilon=config.norm_epsilon,
            up_kernel=config.up_kernel,
            head_init=config.head_init,
            network=config.network,
            input_slices=config.input_slices,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, input_slices, H, W), any H and W -> logits (N, 1, H, W), float32."""
        height, width = images.shape[-2:]
        x = self.features(images)
        with torch.autocast(x.device.type, enabled=False):  # full precision: probabilities need finer steps than 2**-8
            logits: Tensor = self.head(x.float())
        return logits[..., :height, :width]

    def features(self, images: Tensor) -> Tensor:
        """Images (N, input_slices, H, W) -> what the head reads: (N, base_channels, h, w), with the padding.

        The way down halves `depth` times, so H and W are padded to multiples of 2**depth.
        """
        height, width = images.shape[-2:]
        step = 2**self.depth
        x = F.pad(images, (0, -width % step, 0, -height % step))
        skips = []
        for block in self.down:  # (N, C, h, w) -> (N, 2C, h/2, w/2)
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):  # (N, 2C, h, w) -> (N, C, 2h, 2w)
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return x


class Layers(nn.Sequential):
    """Layers one after another: convolutions, each with what follows it.

    Attributes:
        runner: Used in training: computes the same in fewer operations (see `kernels.py`). None: run layer by layer.
    """

    runner: Callable[[Layers, Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        if self.runner is not None and self.training:
            return self.runner(self, x)
        result: Tensor = super().forward(x)
        return result


class ConvBeforeNorm(nn.Conv2d):
    """A "same" convolution (3x3 or 1x1) before a normalisation, which would remove any bias: it is unused and stays 0.

    The bias remains a parameter, so that size and state of the network equal those of one that adds it.
    """

    bias: nn.Parameter

    def __init__(self, channels_in: int, channels_out: int, kernel: Literal[1, 3] = 3) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        weight = self.weight
        if self.in_channels == 1 and x.is_cuda and torch.is_autocast_enabled("cuda"):
            x, weight = pad_to_eight_channels(x.to(torch.get_autocast_dtype("cuda")), weight)
        return F.conv2d(x, weight, padding=self.padding)


def pad_to_eight_channels(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a convolution's images (N, 1, H, W) and weight (out, 1, h, w) with eight channels, seven of weight 0.

    The result is the same, but tensor cores need eight channels: for a single one cuDNN takes a slow kernel.
    """
    wide = images.expand(-1, 8, -1, -1).contiguous(memory_format=torch.channels_last)
    return wide, F.pad(weight, (0, 0, 0, 0, 0, 7))


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each element on CPUs, so its probability is a multiple of 2**-16 there.

    torch draws a float64 for each element in sequence, which takes the largest part of a step after the convolutions.

    Attributes:
        rate: Used in training: a tensor () with the probability. Compiled code reads it; a number would be a constant
            of that code.
    """

    rate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if self.rate is not None and self.training:
            drawn = torch.rand_like(x, dtype=torch.float32)
            return x * ((drawn >= self.rate) / (1 - self.rate)).to(x.dtype)
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        order = torch.empty_like(x, device="meta").stride()  # the memory format of `x`, channels last or not
        drawn = words.view(torch.int16)[: x.numel()].as_strided(x.shape, order)
        kept = drawn >= min(round(self.p * 2**16), 2**16 - 1) - 2**15
        return x * (kept.to(x.dtype) / (1 - self.p))


def _block(
    channels_in: int,
    channels_out: int,
    dropout: float,
    dropout_place: str,
    normalisation: Callable[[int], nn.Module],
) -> Layers:
    """Return two 3x3 convolutions with normalisation, ReLU and dropout. (N, in, h, w) -> (N, out, h, w)."""
    block = Layers(
        ConvBeforeNorm(channels_in, channels_out),
        normalisation(channels_out),
        nn.ReLU(inplace=True),
        Dropout(0.0 if dropout_place == "last" else dropout),  # the names of the weights count it
        ConvBeforeNorm(channels_out, channels_out),
        normalisation(channels_out),
        nn.ReLU(inplace=True),
        *([] if dropout_place == "first" else [Dropout(dropout)]),
    )
    block.register_load_state_dict_pre_hook(_fold_biases)
    return block


class ResidualBlock(nn.Module):
    """The block of `_block` with its input added before the last ReLU (He et al., "Deep Residual Learning", CVPR 2016).

    All blocks of the U-Net change the number of channels, so the input passes a 1x1 convolution and a normalisation.
    (N, in, h, w) -> (N, out, h, w).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        dropout: float,
        dropout_place: str,
        normalisation: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        layers = list(_block(channels_in, channels_out, dropout, dropout_place, normalisation))
        self.convolutions = Layers(*layers[:6])
        self.shortcut = Layers(ConvBeforeNorm(channels_in, channels_out, 1), normalisation(channels_out))
        self.end = nn.Sequential(*layers[6:])  # ReLU, and dropout if it stands there

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        result: Tensor = self.end(self.convolutions(x) + self.shortcut(x))
        return result


def _fold_biases(_block: nn.Module, state: dict[str, Any], prefix: str, *_others: object) -> None:
    """Convert a state whose convolutions added biases: subtract each bias from the running mean that includes it."""
    for convolution, norm in ((0, 1), (4, 5)):
        bias, mean = f"{prefix}{convolution}.bias", f"{prefix}{norm}.running_mean"
        if bias in state and mean in state:
            state[mean] = state[mean] - state[bias]
        if bias in state:
            state[bias] = torch.zeros_like(state[bias])
