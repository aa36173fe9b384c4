"""The data set that a search uses when the user names none: the built-in phantom."""

from __future__ import annotations

from pathlib import Path

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.progress import Progress

IMAGE_SIZE = 64  # pixels: the whole head at half the resolution, so that a search takes an hour on a laptop


def ensure_builtin_phantom(out: Path, progress: Progress) -> Path:
    """Return the folder of the prepared phantom below `out`; the first call makes it."""
    prepared = out / "phantom" / "prepared"
    if not (prepared / "manifest.json").is_file():
        raw = out / "phantom" / "raw"
        if not (raw / "dataset_description.json").is_file():
            write_phantom(raw, progress=lambda done, total: progress("making the phantom", done, total))
        prepare(raw, prepared, PrepareOptions(size=IMAGE_SIZE, fit="resize"), progress)
    return prepared
