"""The phantom's scanner: heads and lesions on a grid of voxels, with partial volume, coil bias and noise.

A voxel is the mean of points about 2 mm apart, so thick slices blur as a scanner's do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wmlsearch.data.phantom_anatomy import Floats, Head, Waves
from wmlsearch.data.phantom_lesions import Lesion

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

Span = tuple[float, float]


@dataclass(frozen=True)
class Scanner:
    """The ranges from which each scan of a scanner is drawn."""

    bias: Span  # strength of the coil's bias field
    bias_limit: float  # the field is within 1 +- this
    unit: Span  # of the intensities: the value of white matter
    noise: Span  # of the real and the imaginary part, relative to white matter
    gamma: Span  # of the contrast
    ghost: Span | None = None  # strength of a ghost: the head once more, shifted front to back


EASY_SCANNER = Scanner((0.04, 0.09), 0.15, (180, 480), (0.03, 0.055), (0.92, 1.08))
# Three scanners: one as in the easy cohort but with other contrast, a noisy one, and one with a strong bias field.
HARD_SCANNERS = (
    Scanner((0.05, 0.10), 0.25, (180, 320), (0.03, 0.05), (0.8, 0.92), (0.0, 0.02)),
    Scanner((0.08, 0.15), 0.35, (600, 1400), (0.06, 0.09), (1.05, 1.2), (0.02, 0.05)),
    Scanner((0.15, 0.25), 0.45, (60, 120), (0.04, 0.07), (0.95, 1.1), (0.01, 0.04)),
)

FIELD_OF_VIEW_MM = (192.0, 192.0, 144.0)  # right, anterior, superior; voxel size = field of view / shape
MAX_POINTS = 400_000  # computed at once, to bound the memory of a large grid


class Grid:
    """The voxels of the field of view, and the finer points of which each voxel is the mean."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape  # voxels along right, anterior, superior
        self.voxel_mm = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW_MM, shape, strict=True))
        self.fine = tuple(max(1, round(mm / 2)) for mm in self.voxel_mm)  # points per voxel along each axis
        # Width (mm) over which edges are soft.
        self.soft_mm = max(1.2, 1.1 * min(mm / n for mm, n in zip(self.voxel_mm, self.fine, strict=True)))
        self.affine = np.diag([*self.voxel_mm, 1.0])
        self.affine[:3, 3] = [(mm - fov) / 2 for mm, fov in zip(self.voxel_mm, FIELD_OF_VIEW_MM, strict=True)]

    def points(self, box: Box, fine: Shape | None = None) -> Floats:
        """Return the points of a box of voxels in scanner coordinates: (3, M) mm."""
        axes = []
        for part, fov, mm, n in zip(box, FIELD_OF_VIEW_MM, self.voxel_mm, fine or self.fine, strict=True):
            axes.append(((np.arange(part.start * n, part.stop * n) + 0.5) * (mm / n) - fov / 2).astype(np.float32))
        return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])

    def voxels(self, values: Floats, box: Box) -> Floats:
        """Return the mean in each voxel of values (M,) at the points of a box."""
        parts = [(part.stop - part.start, n) for part, n in zip(box, self.fine, strict=True)]
        return values.reshape([n for pair in parts for n in pair]).mean((1, 3, 5), dtype=np.float32)

    def slabs(self) -> Iterator[Box]:
        """Yield boxes of at most about `MAX_POINTS` points that cover the grid."""
        x, y, z = self.shape
        step = max(1, MAX_POINTS // (x * y * int(np.prod(self.fine))))
        for start in range(0, z, step):
            yield slice(0, x), slice(0, y), slice(start, min(start + step, z))

    def around(self, centre: Floats, reach_mm: float) -> Box:
        """Return the box of voxels within a distance of a point in scanner coordinates (3,) mm."""
        middle, reach = (centre - self.affine[:3, 3]) / self.voxel_mm, reach_mm / np.array(self.voxel_mm)
        first = np.clip(np.floor(middle - reach), 0, np.array(self.shape) - 1).astype(int)
        last = np.clip(np.ceil(middle + reach), 0, np.array(self.shape) - 1).astype(int)
        x, y, z = (slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        return x, y, z


def render_head(head: Head, grid: Grid) -> tuple[Floats, Floats]:
    """Return the brightness of each voxel without lesions, and the share of it that is brain tissue."""
    image, brain = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.float32)
    for box in grid.slabs():
        tissue = head.tissue(head.place(grid.points(box)), grid.soft_mm)
        image[box], brain[box] = grid.voxels(tissue.brightness, box), grid.voxels(tissue.brain, box)
    return image, brain


def add_lesions(
    head: Head, grid: Grid, image: Floats, brain: Floats, lesions: list[Lesion]
) -> tuple[Floats, NDArray[np.uint8]]:
    """Return the brightness with lesions, and the mask (0/1) of voxels that are at least half lesion."""
    share, bright = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    for lesion in lesions:
        middle = head.to_scanner @ (lesion.centre + head.shift[:, 0])
        reach_mm = 1.7 * float(np.linalg.norm(lesion.axes, axis=1).max()) + 8  # with the outline and the warp
        box = grid.around(middle, reach_mm)
        part = grid.voxels(lesion.fraction(head.place(grid.points(box))), box) * brain[box]
        share[box] = np.maximum(share[box], part)
        bright[box] = np.maximum(bright[box], part * lesion.contrast)
    return image + bright, (share >= 0.5).astype(np.uint8)


def scan(rng: np.random.Generator, grid: Grid, image: Floats, scanner: Scanner = EASY_SCANNER) -> NDArray[np.int16]:
    """Return a scan of a brightness image: ghost, coil bias, Rician noise, arbitrary units."""
    bias, strength = Waves.draw(rng, 200, 420, 5), rng.uniform(*scanner.bias)
    unit, noise = rng.uniform(*scanner.unit), rng.uniform(*scanner.noise)
    signal = np.empty(grid.shape, np.int16)
    gamma = rng.uniform(*scanner.gamma)  # contrast differs a little between scans
    if scanner.ghost is not None:
        shift = round(grid.shape[1] * rng.uniform(0.2, 0.5))
        image = image + np.float32(rng.uniform(*scanner.ghost)) * np.roll(image, shift, axis=1)
    low, high = 1 - scanner.bias_limit, 1 + scanner.bias_limit
    for box in grid.slabs():
        field = np.clip(1 + strength * bias(grid.points(box, (1, 1, 1))), low, high).reshape(image[box].shape)
        real = np.maximum(image[box], 0) ** np.float32(gamma) * field
        real += noise * rng.standard_normal(real.shape, np.float32)
        real = np.hypot(real, noise * rng.standard_normal(real.shape, np.float32))
        signal[box] = np.rint(real * unit)
    return signal
