"""NIfTI files that tests read and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def voxels(path: Path) -> np.ndarray:
    """Return the voxels as stored."""
    image: Any = nib.load(path)
    return np.array(image.dataobj[...])


def cohort(root: Path, lesion_voxels: dict[str, int], columns: str = "", cells: dict[str, str] | None = None) -> Path:
    """Write a table of patients with so many lesion voxels, of 0.012 ml each, in slice 3 of 6. Return its path.

    The heads are noise, so that no two are alike; slice 0 shows none.

    Args:
        root: Folder to make.
        lesion_voxels: Lesion voxels by patient, at most 64.
        columns: More columns of the table: ",site".
        cells: Their cells by patient: ",hospital A".
    """
    rows = [f"patient,image,mask{columns}"]
    root.mkdir()
    for number, (name, count) in enumerate(lesion_voxels.items()):
        image = np.zeros((24, 24, 6), np.float32)
        image[3:-3, 3:-3, 1:] = np.random.default_rng(number).normal(100, 20, (18, 18, 5))
        mask = np.zeros(image.shape, np.uint8)
        mask[8:16, 8:16, 3] = (np.arange(64) < count).reshape(8, 8)
        for kind, array in (("image", image), ("mask", mask)):
            nib.Nifti1Image(array, np.diag([2, 2, 3, 1])).to_filename(root / f"{name}_{kind}.nii.gz")
        rows.append(f"{name},{name}_image.nii.gz,{name}_mask.nii.gz{(cells or {}).get(name, '')}")
    (root / "cohort.csv").write_text("\n".join(rows) + "\n")
    return root / "cohort.csv"
