"""Augmentation of slices: random parameters are drawn first, then applied deterministically to images and masks.

All parameters of an epoch are drawn on the CPU, from one generator. They are applied on the device that trains. So what
a slice looks like follows from the seed and the epoch, on any device and with any number of workers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["flip", "affine", "light", "medium", "strong"]
BLUR_RADIUS = 4  # pixels, of the kernel: 2.7 standard deviations of the widest
BIAS_DEGREE = 3  # of the polynomial whose exponential is a bias field, as in Van Leemput et al., IEEE TMI 1999
_BIAS_POWERS = tuple((i, j) for i in range(BIAS_DEGREE + 1) for j in range(BIAS_DEGREE + 1 - i) if i + j)


@dataclass(frozen=True)
class Bounds:
    """How far an augmentation goes. All amounts are drawn uniformly up to these bounds, gamma on a log scale."""

    angle_deg: float = 0.0  # either way
    scaling: float = 0.0  # of the size, up or down
    shift: float = 0.0  # of half the image, in each direction
    probability: float = 0.0  # with which a slice gets each of the following
    gamma: float = 1.0  # exponent, at most this and at least 1 over it
    contrast: float = 0.0  # of the distance from the mean, more or less
    bias: float = 0.0  # logarithm, either way from the middle
    blur: float = 0.0  # standard deviation in pixels
    noise: float = 0.0  # standard deviation as a share of the slice's range of grey values


BOUNDS: dict[Kind, Bounds] = {
    "flip": Bounds(),
    "affine": Bounds(angle_deg=15, scaling=0.1, shift=0.1),
    "light": Bounds(10, 0.1, 0.1, probability=0.2, gamma=1.2, contrast=0.1, bias=0.1, blur=0.5, noise=0.02),
    "medium": Bounds(15, 0.15, 0.1, probability=0.3, gamma=1.5, contrast=0.25, bias=0.2, blur=1.0, noise=0.05),
    "strong": Bounds(30, 0.25, 0.2, probability=0.5, gamma=2.0, contrast=0.5, bias=0.4, blur=1.5, noise=0.1),
}


@dataclass(frozen=True)
class Intensities:
    """Changes of grey values drawn for n slices. They act in the order in which they are listed.

    They see a slice's grey values from 0 to 1, its own darkest and brightest, and leave them in this range: so the
    result is what prediction may see too, whatever the scale of the grey values is.
    """

    gamma: Tensor  # (n,) exponent
    contrast: Tensor  # (n,) factor on the distance from the slice's mean
    bias: Tensor  # (n,) logarithm of the field: how far it goes either way from its middle
    bias_shape: Tensor  # (n, 9) coefficients of its polynomial from -1 to 1
    blur: Tensor  # (n,) standard deviation in pixels, 0 for none
    noise: Tensor  # (n,) standard deviation
    noise_seed: Tensor  # (n,) int64, from which the noise of each pixel follows

    @classmethod
    def draw(cls, bounds: Bounds, slices: int, generator: torch.Generator) -> Intensities:
        """Draw the parameters of `slices` slices."""
        applied = torch.rand(slices, 5, generator=generator) < bounds.probability
        gamma, contrast, bias, blur, noise = torch.rand(slices, 5, generator=generator).where(applied, 0.0).T
        # 0 stands for what changes nothing: amounts from -1 to 1 are drawn as a size, and a sign.
        signs = torch.where(torch.rand(slices, 2, generator=generator) < 0.5, -1.0, 1.0)
        return cls(
            torch.exp(signs[:, 0] * gamma * math.log(bounds.gamma)),
            1 + signs[:, 1] * contrast * bounds.contrast,
            bias * bounds.bias,
            torch.rand(slices, len(_BIAS_POWERS), generator=generator) * 2 - 1,
            blur * bounds.blur,
            noise * bounds.noise,
            torch.randint(2**32, (slices,), generator=generator),
        )

    def apply(self, images: Tensor) -> Tensor:
        """Return images with other grey values, (n, C, S, S) float32. The C channels of a slice change alike."""
        low = images.amin((1, 2, 3), keepdim=True)
        spread = images.amax((1, 2, 3), keepdim=True) - low
        grey = (images - low) / spread.clamp(min=1e-6)
        grey = grey ** _of_slice(self.gamma)
        mean = grey.mean((1, 2, 3), keepdim=True)
        grey = ((grey - mean) * _of_slice(self.contrast) + mean).clamp(0, 1)
        grey = grey * bias_fields(self.bias, self.bias_shape, images.shape[-1])
        grey = gaussian_blur(grey, self.blur)
        noise = gaussian_noise(self.noise_seed, math.prod(images.shape[1:])).view(images.shape)
        grey = (grey + _of_slice(self.noise) * noise).clamp(0, 1)
        return low + spread * grey


@dataclass(frozen=True)
class Augmentation:
    """The parameters drawn for n slices."""

    mirror: Tensor  # (n,) -1 or 1
    angle: Tensor  # (n,) radians
    scale: Tensor  # (n,)
    shift: Tensor  # (n, 2), as a share of half the image
    intensities: Intensities | None = None
    mirrors_columns: bool = True  # or else the order of the channels: see `draw`

    def tensors(self) -> list[Tensor]:
        intensities = [] if self.intensities is None else _tensors(self.intensities)
        return [self.mirror, self.angle, self.scale, self.shift, *intensities]

    def to(self, device: torch.device) -> Augmentation:
        return self._of(*(tensor.to(device) for tensor in self.tensors()))

    def __getitem__(self, positions: Tensor) -> Augmentation:
        return self._of(*(tensor[positions] for tensor in self.tensors()))

    def _of(self, *tensors: Tensor) -> Augmentation:
        """Return the same kind of augmentation with other parameters, in the order of `tensors`."""
        mirror, angle, scale, shift, *others = tensors
        intensities = None if self.intensities is None else Intensities(*others)
        return Augmentation(mirror, angle, scale, shift, intensities, self.mirrors_columns)

    @classmethod
    def draw(cls, kind: Kind, slices: int, generator: torch.Generator, mirrors_columns: bool = True) -> Augmentation:
        """Draw the parameters of `slices` slices: those of `BOUNDS`, and mirrored with probability 1/2.

        Args:
            kind: "flip" mirrors only, "affine" also turns, scales and shifts, the others also change grey values.
            slices: Number of slices.
            generator: Draws them.
            mirrors_columns: Whether left and right are columns of the slices. In sagittal slices they are not: there
                mirroring reverses the order of neighbouring slices, which are the channels of an image.
        """
        bounds = BOUNDS[kind]
        uniform = torch.rand(slices, 5, generator=generator) * 2 - 1
        mirror = torch.where(uniform[:, 0] < 0, -1.0, 1.0)
        angle = uniform[:, 1] * math.radians(bounds.angle_deg)
        scale, shift = 1 + bounds.scaling * uniform[:, 2], bounds.shift * uniform[:, 3:]
        intensities = Intensities.draw(bounds, slices, generator) if bounds.probability else None
        return cls(mirror, angle, scale, shift, intensities, mirrors_columns)

    def apply(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the augmented images (n, C, S, S) and masks (n, 1, S, S), float32.

        Images are interpolated linearly, masks take the nearest pixel, so that their labels stay what they are: ignored
        regions move with the image. All runs on the device that holds the tensors, without synchronization.
        """
        mirror = self.mirror
        if not self.mirrors_columns:
            images = torch.where(_of_slice(mirror) < 0, images.flip(1), images)
            mirror = torch.ones_like(mirror)
        cos, sin = (self.angle.cos() / self.scale, self.angle.sin() / self.scale)
        rows = (
            torch.stack([cos * mirror, -sin, self.shift[:, 0]], dim=1),
            torch.stack([sin * mirror, cos, self.shift[:, 1]], dim=1),
        )
        grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return (images if self.intensities is None else self.intensities.apply(images)), masks


def bias_fields(strength: Tensor, shape: Tensor, size: int) -> Tensor:
    """Return smooth fields of brightness, (n, 1, size, size), from exp(-2 strength) to 1.

    Args:
        strength: (n,) 0 for a field that is 1 everywhere.
        shape: (n, 9) coefficients of a polynomial of degree `BIAS_DEGREE`, without the constant.
        size: Pixels of each side.
    """
    line = torch.linspace(-1, 1, size, device=shape.device)
    powers = [torch.ones_like(line), line, line**2, line**3]
    log_field = torch.zeros(len(shape), size, size, device=shape.device)
    for number, (i, j) in enumerate(_BIAS_POWERS):
        log_field = log_field + shape[:, number, None, None] * (powers[i][:, None] * powers[j][None, :])
    largest = log_field.abs().amax((1, 2), keepdim=True).clamp(min=1e-6)
    return torch.exp(strength[:, None, None] * (log_field / largest - 1))[:, None]


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Return images (n, C, H, W) blurred by a Gaussian of `sigma` (n,) pixels, cut off at `BLUR_RADIUS`; 0 for none."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (n, taps)
    weights = weights / weights.sum(1, keepdim=True)
    for dim, pad in ((-1, (BLUR_RADIUS, BLUR_RADIUS, 0, 0)), (-2, (0, 0, BLUR_RADIUS, BLUR_RADIUS))):
        padded = F.pad(images, pad, mode="replicate")
        shifted = [padded.narrow(dim, start, images.shape[dim]) for start in range(2 * BLUR_RADIUS + 1)]
        images = sum((_of_slice(weights[:, k]) * one for k, one in enumerate(shifted)), torch.zeros_like(images))
    return images


def gaussian_noise(seeds: Tensor, pixels: int) -> Tensor:
    """Return noise of mean 0 and standard deviation 1, (n, pixels) float32, that follows from the seeds (n,) int64.

    A hash of seed and pixel gives 23 random bits, and the inverse of the normal distribution a number. Drawn from a
    generator of the device, it would depend on the device and on the number of workers.
    """
    places = torch.arange(pixels, device=seeds.device)
    bits = _hash(_hash(places) ^ seeds[:, None]) >> 9
    return torch.erfinv((bits.float() + 0.5) * 2**-22 - 1) * math.sqrt(2)


def _hash(numbers: Tensor) -> Tensor:
    """Return 32 well mixed bits for int64 numbers below 2**32: "lowbias32" of C. Wellons' hash-prospector."""
    mask = 2**32 - 1
    numbers = (numbers ^ (numbers >> 16)) * 0x7FEB352D & mask
    numbers = (numbers ^ (numbers >> 15)) * 0x846CA68B & mask
    return numbers ^ (numbers >> 16)


def _of_slice(values: Tensor) -> Tensor:
    """Return a value of each slice (n,) as (n, 1, 1, 1)."""
    return values[:, None, None, None]


def _tensors(parameters: Intensities) -> list[Tensor]:
    return [getattr(parameters, field.name) for field in dataclasses.fields(parameters)]
