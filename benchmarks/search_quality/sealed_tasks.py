"""The tasks whose recordings have the Dice of sealed patients: two phantoms, and three real patients.

Of a phantom's patients some train, some validate, and the others are sealed. Of three real patients each is sealed
once: of the other two one trains and one validates.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError

SEED = 0  # of the phantoms


@dataclass(frozen=True)
class Division:
    """Which patients of a task train, validate and are sealed."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    sealed: tuple[str, ...]


@dataclass(frozen=True)
class DividedData:
    """The prepared data of a division."""

    data: PreparedData
    sealed: PreparedData  # the same training patients; those for validation are the sealed ones

    @classmethod
    def open(cls, folder: Path, device: str) -> DividedData:
        return cls(*(PreparedData.open(folder / name, device) for name in ("prepared", "sealed")))


@dataclass(frozen=True)
class SealedTask:
    """What each configuration is trained on, and on whom it is scored."""

    divisions: tuple[Division, ...]
    size: int  # pixels, edge of a slice
    epochs: int
    cohort: str = ""  # of the phantom; "" for real patients
    shape: tuple[int, int, int] = (96, 96, 18)  # voxels of a phantom's scan
    lesion_size: float = 1.0  # factor on the diameters of a phantom's lesions
    slice_step: int = 1  # of real patients, each so many axial slices one is kept

    def prepare(self, folder: Path, raw: Path | None = None, seed: int = SEED) -> list[Path]:
        """Make the data in `folder`, and return a folder for `DividedData.open` of each division.

        `seed` is that of a phantom. Raises InputError where real patients are needed, and `raw` is not their folder.
        """
        if self.cohort:
            patients = max(int(name) for division in self.divisions for name in division.sealed)
            raw = write_phantom(
                folder / "raw", patients=patients, timepoints=1, shape=self.shape, lesion_size=self.lesion_size,
                seed=seed, cohort=self.cohort,
            )  # fmt: skip
        elif raw is None:
            raise InputError("--ms-flair FOLDER is needed: this task has real patients")
        else:
            raw = thin_out(raw, folder / "raw", self.slice_step)
        return [self._prepare(division, raw, folder / f"{n}") for n, division in enumerate(self.divisions)]

    def _prepare(self, division: Division, raw: Path, folder: Path) -> Path:
        fit = "crop" if self.cohort else "resize"
        for name, val, test in (
            ("prepared", division.val, division.sealed),
            ("sealed", division.sealed, division.val),
        ):
            options = PrepareOptions(
                plane="axial", size=self.size, fit=fit, train_patients=division.train, val_patients=val,
                test_patients=test, jobs=1,
            )  # fmt: skip
            prepare(raw, folder / name, options)
        return folder


def thin_out(raw: Path, out: Path, step: int) -> Path:
    """Copy a BIDS data set with one of each `step` axial slices of every volume, and return `out`."""
    shutil.copytree(raw, out, ignore=shutil.ignore_patterns("unlabelled"))
    for path in sorted(out.rglob("*.nii.gz")):
        volume: nib.Nifti1Image = nib.load(path)  # type: ignore[assignment]  # nibabel declares the base class of images
        voxels = np.asanyarray(volume.dataobj)[:, :, ::step]
        nib.save(nib.Nifti1Image(voxels, volume.affine @ np.diag([1, 1, step, 1])), path)
    return out


def _names(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{number:02d}" for number in range(first, last + 1))


PHANTOM_DIVISION = Division(train=_names(1, 8), val=_names(9, 12), sealed=_names(13, 20))
SEALED_TASKS = {
    "hard-phantom": SealedTask((PHANTOM_DIVISION,), size=48, epochs=12, cohort="hard"),
    "easy-phantom": SealedTask((PHANTOM_DIVISION,), size=48, epochs=12, cohort="easy"),
    "ms-flair": SealedTask(
        tuple(
            Division((train,), (val,), (sealed,))
            for train, val, sealed in (("19", "26", "07"), ("26", "07", "19"), ("07", "19", "26"))
        ),
        size=48, epochs=12, slice_step=3,
    ),
}  # fmt: skip
