"""Find the FLAIR images and lesion masks of a raw data set; each module here reads one layout.

To add a layout, write a module with a `Layout` (see `layout.py`): `matches` tells whether a path has the layout, and
`find` returns its sources. Then name it in `LAYOUTS`, and give it a test in `tests/data/test_sources.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.data.sources import bids, pairs, table
from wmlsearch.data.sources.layout import Layout, RawData
from wmlsearch.data.sources.source import Source, natural_key
from wmlsearch.runs.wording import plural

__all__ = ["LAYOUTS", "Source", "discover"]

LAYOUTS = (table.LAYOUT, pairs.LAYOUT, bids.LAYOUT)  # the first that matches a path reads it


def discover(raw: Path, patient_pattern: str | None = None) -> list[Source]:
    """Return the volumes of a raw data set in natural order of patient, time point and file name.

    Raises:
        InputError: With all images and masks that are missing, ambiguous or outside the data set, or where the path
            has none of the known layouts.
    """
    faults: list[str] = []
    try:
        layout = _layout(raw)
        sources = layout.find(RawData(raw, patient_pattern), faults)
    except OSError as error:
        raise InputError(
            f"{raw}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if patient_pattern is not None and not layout.takes_patient_pattern:
        faults.append("--patient-pattern is for a folder with images/ and masks/ only; leave it out")
    faults += _path_faults(sources)
    if len({source.is_nifti for source in sources}) > 1:
        faults.append("NIfTI volumes and 2-D pictures must not be mixed, but both were found; prepare them apart")
    if faults:
        raise InputError(f"{raw}: {plural(len(faults), 'fault')}, nothing was written", faults)
    if not sources:
        raise InputError(
            f"{raw}: no FLAIR image found; expected sub-*/[ses-*/]anat/*_FLAIR.nii.gz or rows in the table"
        )
    return sorted(sources, key=_order)


def _order(source: Source) -> tuple[object, object, object]:
    name = source.name(source.image[0])
    return natural_key(source.patient), natural_key(source.timepoint), natural_key(name)


def _layout(raw: Path) -> Layout:
    for layout in LAYOUTS:
        if layout.matches(raw):
            return layout
    *others, last = (layout.description for layout in LAYOUTS)
    rule = f"RAW must be {', '.join(others)} or {last}"
    raise InputError(f"{raw}: {rule if raw.exists() else f'no such file or folder; {rule}'}")


def _path_faults(sources: Sequence[Source]) -> list[str]:
    """Return a line for each file that does not exist or lies outside the data set."""
    faults = []
    for source in sources:
        for path in (*source.image, *source.mask):
            name = source.name(path)
            if not _is_file(path):
                faults.append(f"{name}: no such file; correct the path or the link")
            elif name.startswith("../") or not _is_inside(source.root, path):
                faults.append(f"{name}: must lie inside the data folder, but a link or '..' leads out; copy it in")
    return faults


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for a file
        return False


def _is_inside(root: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False
