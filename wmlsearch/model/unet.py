"""The U-Net of the paper, with configurable depth, width, dropout and normalisation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """A 2-D U-Net that returns one logit per pixel.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, with the changes
    of the paper (II.B, Fig. 3): "same" convolutions, batch normalisation, dropout, He initialisation. `UNet()` is the
    paper's network with 1,943,761 parameters, of which 1,472 are biases that stay zero (see `ConvBeforeNorm`).

    Args:
        depth: number of levels down; each halves the image and doubles the channels.
        base_channels: channels of the first level.
        dropout: fraction of elements set to zero after the first convolution of each block.
        norm: "batch", or "instance" (with learned scale and shift).
    """

    def __init__(
        self,
        depth: int = 4,
        base_channels: int = 16,
        dropout: float = 0.1,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.down = nn.ModuleList(
            _block(before, after, dropout, norm) for before, after in zip([1, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = _block(widths[-2], widths[-1], dropout, norm)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width // 2, 2, stride=2) for width in widths[:0:-1])
        self.merge = nn.ModuleList(_block(width, width // 2, dropout, norm) for width in widths[:0:-1])
        self.head = nn.Conv2d(base_channels, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # our convolutions have a bias

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [0, 1], any H and W -> logits (N, 1, H, W), float32."""
        height, width = images.shape[-2:]
        # The way down halves `depth` times: pad the size to a multiple of 2**depth, and crop at the end.
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
        with torch.autocast(x.device.type, enabled=False):  # full precision: probabilities need finer steps than 2**-8
            logits: Tensor = self.head(x.float())
        return logits[..., :height, :width]


class ConvBeforeNorm(nn.Conv2d):
    """A 3x3 "same" convolution before a normalisation, which would remove any bias: the bias is unused and stays zero.

    The bias remains a parameter, so that size and state of the network equal those of one that adds it.
    """

    bias: nn.Parameter

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        weight = self.weight
        if self.in_channels == 1 and x.is_cuda and torch.is_autocast_enabled("cuda"):
            x, weight = pad_to_eight_channels(x.to(torch.get_autocast_dtype("cuda")), weight)
        return F.conv2d(x, weight, padding=1)


def pad_to_eight_channels(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a convolution's images (N, 1, H, W) and weight (out, 1, h, w) with eight channels, seven of weight 0.

    The result is the same, but tensor cores need eight channels: for a single one cuDNN takes a slow kernel.
    """
    wide = images.expand(-1, 8, -1, -1).contiguous(memory_format=torch.channels_last)
    return wide, F.pad(weight, (0, 0, 0, 0, 0, 7))


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each element on CPUs, so its probability is a multiple of 2**-16 there.

    torch draws a float64 for each element in sequence, which takes the largest part of a step after the convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        order = torch.empty_like(x, device="meta").stride()  # the memory format of `x`, channels last or not
        drawn = words.view(torch.int16)[: x.numel()].as_strided(x.shape, order)
        kept = drawn >= min(round(self.p * 2**16), 2**16 - 1) - 2**15
        return x * (kept.to(x.dtype) / (1 - self.p))


def _block(channels_in: int, channels_out: int, dropout: float, norm: str) -> nn.Sequential:
    """Return two 3x3 convolutions with normalisation, ReLU and dropout. (N, in, h, w) -> (N, out, h, w)."""

    def normalisation() -> nn.Module:
        return nn.BatchNorm2d(channels_out) if norm == "batch" else nn.InstanceNorm2d(channels_out, affine=True)

    block = nn.Sequential(
        ConvBeforeNorm(channels_in, channels_out),
        normalisation(),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        ConvBeforeNorm(channels_out, channels_out),
        normalisation(),
        nn.ReLU(inplace=True),
    )
    block.register_load_state_dict_pre_hook(_fold_biases)
    return block


def _fold_biases(_block: nn.Module, state: dict[str, Any], prefix: str, *_others: object) -> None:
    """Convert a state whose convolutions added biases: subtract each bias from the running mean that includes it."""
    for convolution, norm in ((0, 1), (4, 5)):
        bias, mean = f"{prefix}{convolution}.bias", f"{prefix}{norm}.running_mean"
        if bias in state and mean in state:
            state[mean] = state[mean] - state[bias]
        if bias in state:
            state[bias] = torch.zeros_like(state[bias])
