"""The data set that a search uses when the user names none: the built-in phantom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.workflows.placement import Progress

if TYPE_CHECKING:
    pass


def ensure_builtin_phantom(out: Path, progress: Progress) -> Path:
    """The built-in phantom below `out`, made and prepared at the first call."""
    prepared = out / "phantom" / "prepared"
    if not (prepared / "manifest.json").is_file():
        raw = out / "phantom" / "raw"
        if not (raw / "dataset_description.json").is_file():
            write_phantom(raw, progress=lambda done, total: progress("making the phantom", done, total))
        prepare(raw, prepared, PrepareOptions(size=128), progress)
    return prepared
