"""Do the lesions of the phantom's hard cohort have the loads, counts and sizes of real ones?

    python -m benchmarks.phantom_statistics [--patients 20] [--masks FOLDER]

A lesion is a connected component (26 neighbours) of the mask. `REAL` has the statistics of the three patients of
ms-flair (Lesjak et al., Neuroinformatics 2017: 1 mm voxels, in MNI space) as numbers. `--masks FOLDER` computes those
of all `*_mask.nii.gz` in a folder, which is how `REAL` was made. The diameter is that of a ball of the same volume.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.verdict.rows import markdown
from wmlsearch.data.phantom import write_phantom

SHAPE = (96, 96, 72)  # 2 mm voxels


@dataclass(frozen=True)
class Lesions:
    """The lesions of one scan."""

    load_ml: float
    count: int
    diameter_10: float  # quantiles of the diameters, mm
    diameter_50: float
    diameter_90: float
    largest_share: float  # of the load, in the largest lesion


REAL = {
    "sub-07": Lesions(1.300, 37, 1.563, 3.190, 5.380, 0.162),
    "sub-19": Lesions(49.769, 98, 1.563, 2.840, 4.908, 0.942),
    "sub-26": Lesions(8.227, 19, 1.933, 6.085, 13.188, 0.331),
}


def statistics(mask: np.ndarray, voxel_mm3: float) -> Lesions:
    """Return the statistics of a mask (X, Y, Z), 1 is lesion, with at least one lesion."""
    labels, count = ndimage.label(mask == 1, np.ones((3, 3, 3)))
    volumes = np.bincount(labels.ravel())[1:] * voxel_mm3
    small, middle, large = np.quantile((6 * volumes / np.pi) ** (1 / 3), (0.1, 0.5, 0.9))
    share = volumes.max() / volumes.sum()
    return Lesions(float(volumes.sum() / 1000), count, float(small), float(middle), float(large), float(share))


def of_folder(folder: Path) -> dict[str, Lesions]:
    """Return the statistics of all masks below a folder by their names."""
    scans = {}
    for path in sorted(folder.rglob("*_mask.nii.gz")):
        image: nib.Nifti1Image = nib.load(path)  # type: ignore[assignment]  # nibabel declares the base class of images
        volume = float(np.abs(np.linalg.det(image.affine[:3, :3])))
        scans[path.name.split("_")[0]] = statistics(np.asarray(image.dataobj), volume)
    return scans


def rows(scans: dict[str, Lesions]) -> list[Sequence[str]]:
    """Return a line of the table for each scan, and their medians."""
    table = [(name, *_cells(astuple(lesions))) for name, lesions in scans.items()]
    medians = np.median([astuple(lesions) for lesions in scans.values()], axis=0)
    return [*table, ("median", *_cells(medians))]


def _cells(values: Sequence[float]) -> list[str]:
    return [f"{value:.{digits}f}" for value, digits in zip(values, (2, 0, 1, 1, 1, 2), strict=True)]


def main() -> None:
    """Print the statistics of the real masks and of both cohorts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--masks", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.masks:
        print("\n".join(f"{name}: {lesions}" for name, lesions in of_folder(given.masks).items()))
        return
    table = [(f"ms-flair {line[0]}", *line[1:]) for line in rows(REAL)]
    for cohort in ("hard", "easy"):
        with tempfile.TemporaryDirectory() as folder:
            write_phantom(Path(folder) / "raw", patients=given.patients, timepoints=1, shape=SHAPE, cohort=cohort)
            scans = of_folder(Path(folder))
        values = np.array([astuple(lesions) for lesions in scans.values()])
        for name, quantile in (("10 %", 0.1), ("median", 0.5), ("90 %", 0.9)):
            table.append(
                (f"{cohort}, {given.patients} patients: {name}", *_cells(np.quantile(values, quantile, axis=0)))
            )
    print(markdown(("scans", *(field.name for field in fields(Lesions))), table))


if __name__ == "__main__":
    main()
