"""A synthetic cohort, written as raw BIDS: FLAIR heads with known lesions and with bright structures that are none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from wmlsearch.data.phantom_anatomy import Head
from wmlsearch.data.phantom_lesions import EASY_LESIONS, HARD_LESIONS, draw_lesions, follow_up
from wmlsearch.data.phantom_scanner import EASY_SCANNER, HARD_SCANNERS, Grid, Shape, add_lesions, render_head, scan
from wmlsearch.errors import InputError
from wmlsearch.runs.files import atomic_folder, check_output_folder
from wmlsearch.runs.wording import plural

# Voxels. Lesions vanish in larger voxels; a larger grid does not fit in memory.
MIN_SHAPE, MAX_SHAPE = ((32, 32, 8), (512, 512, 512))
PARTICIPANT_COLUMNS = {
    "sessions": {"Description": "Number of scans of the patient"},
    "lesion_ml_first": {"Description": "Volume of all lesions in the first scan", "Units": "mL"},
    "lesion_ml_last": {"Description": "Volume of all lesions in the last scan", "Units": "mL"},
}  # BIDS's data dictionary of participants.tsv
SCANNER_COLUMN = {"scanner": {"Description": "Scanner of all scans of the patient"}}
# easy: one scanner, lesions that stand out. hard: three scanners, small lesions, and more that looks like one.
COHORTS = ("easy", "hard")
LESION_SIZES = (0.5, 3.0)  # smaller lesions vanish; larger ones do not fit in the white matter


def write_phantom(
    out: Path,
    *,
    patients: int = 20,
    timepoints: int = 2,
    shape: Shape = (128, 128, 24),
    lesion_size: float = 1.0,
    seed: int = 0,
    cohort: str = "easy",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort as raw BIDS: FLAIR int16, masks uint8 {0, 1}, both in RAS orientation.

    The same seed gives the same bytes, and a patient does not depend on the number of patients.

    Args:
        out: Folder to write; must not exist, or be empty, and be no link.
        patients: Number of patients.
        timepoints: Scans of each patient.
        shape: Voxels along right, anterior, superior; the field of view is always 192 x 192 x 144 mm.
        lesion_size: Factor on the diameters of the lesions. Larger ones are fewer (the load is the same), and easier to
            find.
        seed: Seed of all random numbers.
        cohort: One of `COHORTS`. In `hard`, scanners differ in intensity, bias field, noise and ghosts (the column
            `scanner` of participants.tsv), lesions are as small as 3 mm, and grey matter, vessels and rims of fluid
            look like lesions.
        progress: Called as `progress(done, total)` after each volume.

    Returns:
        `out`.

    Raises:
        InputError: With all arguments that are not possible.
    """
    out = Path(out)
    _check(out, patients, timepoints, shape, lesion_size, seed, cohort)
    grid, done, hard = Grid(shape), 0, cohort == "hard"
    rows = ["participant_id\tsessions\tlesion_ml_first\tlesion_ml_last" + ("\tscanner" if hard else "")]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as root:
        _describe(root, "wmlsearch phantom", "raw", seed)
        _describe(root / "derivatives" / "lesions", "wmlsearch phantom: lesion masks", "derivative", seed)
        for number in range(1, patients + 1):
            patient, loads = f"sub-{number:02d}", []
            for session, (image, mask) in enumerate(_scans(seed, number, timepoints, grid, lesion_size, hard), 1):
                folder, stem = (Path(patient, f"ses-{session}", "anat"), f"{patient}_ses-{session}")
                _write_volume(root / folder / f"{stem}_FLAIR.nii.gz", image, grid.affine)
                masks = root / "derivatives" / "lesions" / folder
                _write_volume(masks / f"{stem}_label-lesion_mask.nii.gz", mask, grid.affine)
                loads.append(float(mask.sum()) * float(np.prod(grid.voxel_mm)) / 1000)
                done += 1
                if progress:
                    progress(done, patients * timepoints)
            scanner = f"\t{'ABC'[_scanner_of(seed, number)]}" if hard else ""
            rows.append(f"{patient}\t{timepoints}\t{loads[0]:.2f}\t{loads[-1]:.2f}{scanner}")
        (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        _write_json(root / "participants.json", PARTICIPANT_COLUMNS | (SCANNER_COLUMN if hard else {}))
        (root / "README").write_text(_readme(patients, timepoints, shape, lesion_size, seed, cohort), encoding="utf-8")
    return out


def _check(out: Path, patients: int, timepoints: int, shape: Shape, lesion_size: float, seed: int, cohort: str) -> None:
    faults = []
    if cohort not in COHORTS:
        faults.append(f"cohort: must be {' or '.join(COHORTS)}, but got {cohort!r}")
    for name, value, low, high in (
        ("patients", patients, 1, 9999),
        ("timepoints", timepoints, 1, 99),
        ("seed", seed, 0, 2**63),
    ):
        if type(value) is not int or not low <= value <= high:
            faults.append(f"{name}: must be a whole number from {low} to {high}, but got {value!r}")
    smallest, largest = LESION_SIZES
    if not smallest <= lesion_size <= largest:
        faults.append(f"lesion_size: must be a number from {smallest:g} to {largest:g}, but got {lesion_size!r}")
    if len(shape) != 3 or not all(
        type(n) is int and low <= n <= high for n, low, high in zip(shape, MIN_SHAPE, MAX_SHAPE, strict=True)
    ):
        got, low_shape, high_shape = ("x".join(map(str, numbers)) for numbers in (shape, MIN_SHAPE, MAX_SHAPE))
        faults.append(f"shape: must be from {low_shape} to {high_shape} voxels, but got {got}")
    try:
        check_output_folder(out)
    except InputError as error:
        faults.append(str(error))
    if faults:
        raise InputError("phantom: nothing was written", faults)


def _scanner_of(seed: int, number: int) -> int:
    """Return the index of a patient's scanner in the hard cohort."""
    return int(np.random.default_rng([seed, number, 4]).integers(len(HARD_SCANNERS)))


def _scans(
    seed: int, number: int, timepoints: int, grid: Grid, lesion_size: float, hard: bool
) -> Iterator[tuple[NDArray[np.int16], NDArray[np.uint8]]]:
    """Yield the scans of one patient with their masks. Randomness depends on the seed, patient and stage only."""
    head = Head(np.random.default_rng([seed, number, 0]))
    laws, scanner = EASY_LESIONS, EASY_SCANNER
    if hard:
        head.add_look_alikes(np.random.default_rng([seed, number, 5]))
        laws, scanner = HARD_LESIONS, HARD_SCANNERS[_scanner_of(seed, number)]
    image, brain = render_head(head, grid)
    lesions = draw_lesions(np.random.default_rng([seed, number, 1]), head, lesion_size, laws)
    for session in range(timepoints):
        if session:
            lesions = follow_up(np.random.default_rng([seed, number, 2, session]), head, lesions, lesion_size, laws)
        with_lesions, mask = add_lesions(head, grid, image, brain, lesions)
        yield scan(np.random.default_rng([seed, number, 3, session]), grid, with_lesions, scanner), mask


def _write_volume(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 4, mtime=0))  # no time, no name: equal voxels are equal bytes


def _describe(folder: Path, name: str, kind: str, seed: int) -> None:
    """Write BIDS's `dataset_description.json`."""
    generated_by = {"Name": "wmlsearch phantom", "Description": f"synthetic, no person's data; seed {seed}"}
    fields = {
        "Name": name,
        "BIDSVersion": "1.9.0",
        "DatasetType": kind,
        "License": "CC0",
        "Authors": ["The wmlsearch developers", "wmlsearch phantom"],  # one alone is a warning of the BIDS validator
        "GeneratedBy": [generated_by],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "dataset_description.json", fields)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _readme(patients: int, timepoints: int, shape: Shape, lesion_size: float, seed: int, cohort: str) -> str:
    """Return the text of BIDS's README: what the data are, and the command that writes them again."""
    x, y, z = shape
    hard = " --cohort hard" if cohort == "hard" else ""
    return f"""\
A synthetic cohort of FLAIR heads with white matter lesions. It holds no person's data.

{plural(patients, "patient")} with {plural(timepoints, "scan")} each. The masks of the lesions are in
derivatives/lesions (1 is lesion). The same command writes the same files:

    wmlsearch phantom OUT --patients {patients} --timepoints {timepoints} --shape {x}x{y}x{z} \\
      --lesion-size {lesion_size:g} --seed {seed}{hard}
"""
