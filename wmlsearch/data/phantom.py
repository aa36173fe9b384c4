"""A synthetic cohort: FLAIR heads with known lesions and with look-alikes that are none, written as raw BIDS.

The anatomy is `head.py`'s. Here are the lesions and what becomes of them between time points, the grid (a voxel is the
mean of points about 2 mm apart, so thick slices blur as a scanner's do), the scanner, and the files.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from wmlsearch.config import InputError
from wmlsearch.data.phantom_anatomy import BRAIN_MM, VENTRICLE, Floats, Head, Waves, ramp

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

FIELD_OF_VIEW_MM = (192.0, 192.0, 144.0)  # right, anterior, superior; voxel size = field of view / shape
SMALLEST, LARGEST = ((32, 32, 8), (512, 512, 512))  # voxels; below, lesions vanish in a voxel, above, memory does
LOAD_ML = (
    14.0,
    1.1,
    0.4,
    46.0,
)  # lesions of a patient: median, log-sigma, limits (Lesjak 2017: median 13.9, 0.3 to 52.2)
POINTS_AT_ONCE = 400_000  # bounds the memory of a large grid


@dataclass(frozen=True)
class _Lesion:
    centre: Floats  # (3,), mm, in the patient's own coordinates
    axes: Floats  # (3, 3), mm: rows are the half-axes
    contrast: float  # brightness above what it lies in
    outline: Waves
    softness_mm: float

    def fraction(self, p: Floats) -> Floats:
        """(3, M) mm -> (M,): how much of each point is lesion, 0 to 1."""
        half = np.linalg.norm(self.axes, axis=1)
        q = np.linalg.norm((self.axes / half[:, None] ** 2) @ (p - self.centre[:, None]), axis=0)
        return ramp((1 - q + 0.16 * self.outline(p)) * half.min(), self.softness_mm)


def _draw_lesion(rng: np.random.Generator, head: Head, larger: float) -> _Lesion:
    """One lesion where lesions are: beside a ventricle, below the cortex, deep between, seldom in the hindbrain."""
    while True:
        kind = rng.choice(4, p=(0.5, 0.22, 0.25, 0.03))
        side = rng.choice((-1.0, 1.0))
        radius = float(np.clip(np.exp(rng.normal(np.log(3.8), 0.4)) * larger, 2.5, 12.0))
        away = rng.normal(size=3)
        stretch = rng.uniform(1.0, 1.5)
        if kind == 0:
            part = int(rng.integers(len(VENTRICLE) - 1))
            knot = np.array(VENTRICLE[part]) + rng.uniform() * (np.array(VENTRICLE[part + 1]) - VENTRICLE[part])
            along = np.array(VENTRICLE[part + 1][:3], float) - VENTRICLE[part][:3]
            away += (1.6, 0, 0.8)
            away -= along * (away @ along) / (along @ along)  # Dawson's fingers stand upright on the ventricle
            away /= np.linalg.norm(away)
            stretch = rng.uniform(1.3, 2.2)
            centre = knot[:3] + away * (knot[3] * head.ventricles + stretch * radius * rng.uniform(0.5, 0.95))
        elif kind == 3:
            centre = rng.normal((12, -38, -38), (10, 10, 8))
        else:
            ray = away / np.linalg.norm(away)
            centre = np.abs(ray) * (1, 0, 1) * BRAIN_MM * rng.uniform(0.3, 0.95) + (0, ray[1] * BRAIN_MM[1] * 0.9, 4)
        away[0] *= side
        centre = (centre * (side, 1, 1)).astype(np.float32)
        _, brain, depth, gap = (float(v[0]) for v in head.tissue(centre[:, None], 1.0))
        room = {0: 0 < gap < 9 + radius, 1: 2.5 < depth < 8 and gap > 6, 2: depth > 9 and gap > 5, 3: depth > 4}
        if room[int(kind)] and brain > 0.7 and (kind == 3 or centre[2] > -10) and (kind == 0 or abs(centre[0]) > 9):
            break
    frame, _ = np.linalg.qr(np.column_stack([away, rng.normal(size=(3, 2))]))
    half = radius * np.array([stretch, rng.uniform(0.8, 1.1), rng.uniform(0.8, 1.1)])
    return _Lesion(
        centre=centre,
        axes=(frame.T * half[:, None]).astype(np.float32),
        contrast=float(np.clip(rng.lognormal(np.log(0.36), 0.38), 0.16, 0.8)),
        outline=Waves.draw(rng, 1.3 * radius + 2, 4 * radius + 3, 9),
        softness_mm=float(rng.uniform(0.8, 2.2)),
    )


def _first_lesions(rng: np.random.Generator, head: Head) -> list[_Lesion]:
    """Lesions up to a load (ml) drawn from a log-normal distribution: most patients have little, a few very much."""
    median, sigma, least, most = LOAD_ML
    load_ml = float(np.clip(rng.lognormal(np.log(median), sigma), least, most))
    larger, lesions, volume_ml = (load_ml / median) ** 0.2, [], 0.0
    while volume_ml < load_ml:
        lesion = _draw_lesion(rng, head, larger)
        volume_ml += 0.72 * 4.19e-3 * float(np.prod(np.linalg.norm(lesion.axes, axis=1)))
        lesions.append(lesion)
    return lesions


def _next_lesions(rng: np.random.Generator, head: Head, lesions: list[_Lesion]) -> list[_Lesion]:
    """The lesions some months later: most a bit larger, about one in eight smaller, some new."""
    n = len(lesions)
    factors = np.where(rng.random(n) < 0.12, rng.uniform(0.82, 0.95, n), rng.uniform(1.0, 1.1, n))
    new = [_draw_lesion(rng, head, 0.95) for _ in range(1 + int(rng.poisson(1 + 0.04 * len(lesions))))]
    pairs = zip(lesions, factors, strict=True)
    return [replace(lesion, axes=(lesion.axes * factor).astype(np.float32)) for lesion, factor in pairs] + new


class _Grid:
    """Voxels of a field of view, and the points of which each is the mean."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.voxel_mm = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW_MM, shape, strict=True))
        self.fine = tuple(max(1, round(mm / 2)) for mm in self.voxel_mm)
        self.soft_mm = max(1.2, 1.1 * min(mm / n for mm, n in zip(self.voxel_mm, self.fine, strict=True)))
        self.affine = np.diag([*self.voxel_mm, 1.0])
        self.affine[:3, 3] = [(mm - fov) / 2 for mm, fov in zip(self.voxel_mm, FIELD_OF_VIEW_MM, strict=True)]

    def points(self, box: Box, fine: Shape | None = None) -> Floats:
        """(3, M) scanner mm of the fine points of a box of voxels."""
        axes = []
        for part, fov, mm, n in zip(box, FIELD_OF_VIEW_MM, self.voxel_mm, fine or self.fine, strict=True):
            axes.append(((np.arange(part.start * n, part.stop * n) + 0.5) * (mm / n) - fov / 2).astype(np.float32))
        return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])

    def voxels(self, values: Floats, box: Box) -> Floats:
        """(M,) at the fine points of a box -> their mean in each voxel."""
        parts = [(part.stop - part.start, n) for part, n in zip(box, self.fine, strict=True)]
        return values.reshape([n for pair in parts for n in pair]).mean((1, 3, 5), dtype=np.float32)

    def slabs(self) -> Iterator[Box]:
        x, y, z = self.shape
        step = max(1, POINTS_AT_ONCE // (x * y * int(np.prod(self.fine))))
        for start in range(0, z, step):
            yield slice(0, x), slice(0, y), slice(start, min(start + step, z))

    def around(self, centre: Floats, reach_mm: float) -> Box:
        middle, reach = (centre - self.affine[:3, 3]) / self.voxel_mm, reach_mm / np.array(self.voxel_mm)
        first = np.clip(np.floor(middle - reach), 0, np.array(self.shape) - 1).astype(int)
        last = np.clip(np.ceil(middle + reach), 0, np.array(self.shape) - 1).astype(int)
        x, y, z = (slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        return x, y, z


def _anatomy(head: Head, grid: _Grid) -> tuple[Floats, Floats]:
    image, brain = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.float32)
    for box in grid.slabs():
        value, tissue, _, _ = head.tissue(head.place(grid.points(box)), grid.soft_mm)
        image[box], brain[box] = grid.voxels(value, box), grid.voxels(tissue, box)
    return image, brain


def _with_lesions(
    head: Head, grid: _Grid, image: Floats, brain: Floats, lesions: list[_Lesion]
) -> tuple[Floats, NDArray[np.uint8]]:
    """Brightness with the lesions in it, and the mask of voxels of which at least half is lesion."""
    share, bright = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    for lesion in lesions:
        middle = head.to_scanner @ (lesion.centre + head.shift[:, 0])
        reach_mm = 1.7 * float(np.linalg.norm(lesion.axes, axis=1).max()) + 8  # outline and warp carry it that far
        box = grid.around(middle, reach_mm)
        part = grid.voxels(lesion.fraction(head.place(grid.points(box))), box) * brain[box]
        share[box] = np.maximum(share[box], part)
        bright[box] = np.maximum(bright[box], part * lesion.contrast)
    return image + bright, (share >= 0.5).astype(np.uint8)


def _scan(rng: np.random.Generator, grid: _Grid, image: Floats) -> NDArray[np.int16]:
    """A scanner's picture of it: coil bias (at most +-15 %), noise of a magnitude image, arbitrary units."""
    bias, strength = Waves.draw(rng, 200, 420, 5), rng.uniform(0.04, 0.09)
    unit, noise = rng.uniform(180, 480), rng.uniform(0.03, 0.055)
    signal = np.empty(grid.shape, np.int16)
    tone = rng.uniform(0.92, 1.08)  # contrast differs a little between scans
    for box in grid.slabs():
        field = np.clip(1 + strength * bias(grid.points(box, (1, 1, 1))), 0.85, 1.15).reshape(image[box].shape)
        real = np.maximum(image[box], 0) ** np.float32(tone) * field
        real += noise * rng.standard_normal(real.shape, np.float32)
        real = np.hypot(real, noise * rng.standard_normal(real.shape, np.float32))
        signal[box] = np.rint(real * unit)
    return signal


def _write_volume(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 4, mtime=0))  # no time, no name: equal voxels are equal bytes


def _describe(folder: Path, name: str, kind: str, seed: int) -> None:
    made_by = {"Name": "wmlsearch phantom", "Description": f"synthetic, no person's data; seed {seed}"}
    facts = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": kind, "License": "CC0", "GeneratedBy": [made_by]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _patient(
    seed: int, number: int, timepoints: int, grid: _Grid
) -> Iterator[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """The scans of one patient with their masks. Chance depends on (seed, patient, stage) and on nothing else."""
    head = Head(np.random.default_rng([seed, number, 0]))
    image, brain = _anatomy(head, grid)
    lesions = _first_lesions(np.random.default_rng([seed, number, 1]), head)
    for session in range(timepoints):
        if session:
            lesions = _next_lesions(np.random.default_rng([seed, number, 2, session]), head, lesions)
        scan, mask = _with_lesions(head, grid, image, brain, lesions)
        yield _scan(np.random.default_rng([seed, number, 3, session]), grid, scan), mask


def _check(out: Path, patients: int, timepoints: int, shape: Shape, seed: int) -> None:
    faults = []
    for name, value, least, most in (
        ("patients", patients, 1, 9999),
        ("timepoints", timepoints, 1, 99),
        ("seed", seed, 0, 2**63),
    ):
        if type(value) is not int or value < least:
            faults.append(f"{name}: a whole number of at least {least} is needed, but got {value!r}")
        elif value > most:
            faults.append(f"{name}: at most {most} are possible, but got {value}")
    fits = len(shape) == 3 and all(
        type(n) is int and low <= n <= high for n, low, high in zip(shape, SMALLEST, LARGEST, strict=True)
    )
    if not fits:
        given, low, high = ("x".join(map(str, numbers)) for numbers in (shape, SMALLEST, LARGEST))
        faults.append(f"shape: {low} to {high} voxels are possible, but got {given}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        faults.append(f"{out}: exists and is not an empty folder; name another one, or remove it")
    if faults:
        raise InputError("phantom: nothing was written", faults)


def write_phantom(
    out: Path,
    *,
    patients: int = 20,
    timepoints: int = 2,
    shape: Shape = (128, 128, 24),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort as raw BIDS to `out` (new or empty) and return `out`: FLAIR int16, masks uint8 {0, 1}, both RAS.

    The field of view is 192 x 192 x 144 mm whatever the shape (voxels). `progress(done, total)` is called after each
    volume. The same seed gives the same bytes, and a patient's do not depend on how many there are. Raises InputError.
    """
    out = Path(out)
    _check(out, patients, timepoints, shape, seed)
    grid, done = _Grid(shape), 0
    rows = ["participant_id\tsessions\tlesion_ml_first\tlesion_ml_last"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        root = Path(scratch) / "bids"  # a folder within, because the temporary one is closed to other users
        _describe(root, "wmlsearch phantom", "raw", seed)
        _describe(root / "derivatives" / "lesions", "wmlsearch phantom: lesion masks", "derivative", seed)
        for number in range(1, patients + 1):
            name, loads = f"sub-{number:02d}", []
            for session, (scan, mask) in enumerate(_patient(seed, number, timepoints, grid), 1):
                place, stem = (Path(name, f"ses-{session}", "anat"), f"{name}_ses-{session}")
                _write_volume(root / place / f"{stem}_FLAIR.nii.gz", scan, grid.affine)
                masks = root / "derivatives" / "lesions" / place
                _write_volume(masks / f"{stem}_label-lesion_mask.nii.gz", mask, grid.affine)
                loads.append(float(mask.sum()) * float(np.prod(grid.voxel_mm)) / 1000)
                done += 1
                if progress:
                    progress(done, patients * timepoints)
            rows.append(f"{name}\t{timepoints}\t{loads[0]:.2f}\t{loads[-1]:.2f}")
        (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.replace(root, out)
    return out
