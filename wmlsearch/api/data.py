"""Prepare raw images and masks from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

from wmlsearch.api.keywords import AnyPath, PrepareKeywords, Say, check_keywords
from wmlsearch.api.wording import raises_in_python, says_in_python
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions
from wmlsearch.runs.progress import Progress
from wmlsearch.workflows.prepare import prepare as _prepare

phantom = raises_in_python()(write_phantom)  # as its command is called
# Options of `prepare` that take one or several values.
_SEVERAL = {
    "train_patients", "val_patients", "test_patients", "lesion_labels", "ignore_labels", "select", "mask_select",
}  # fmt: skip


@raises_in_python()
def prepare(
    raw: AnyPath,
    out: AnyPath,
    *,
    say: Say = print,
    progress: Progress | None = None,
    **options: Unpack[PrepareKeywords],
) -> Manifest:
    """Turn raw FLAIR images and masks into a prepared data set, as `wmlsearch prepare` does.

    In a script, call it below `if __name__ == "__main__":`, because large volumes are read by several processes.

    Args:
        raw: A BIDS folder, a table, or another layout that `wmlsearch prepare` reads.
        out: Folder to write. It must not exist, or be empty.
        say: Called with each line that `wmlsearch prepare` prints: notes on how the files of `raw` were read, splits,
            duplicates, and warnings, which begin with `warning:`.
        progress: Called as `progress(stage, done, total)` after each volume.
        options: Fields of `PrepareOptions`, such as `plane="axial"` or `test_patients=["07", "19"]`.

    Returns:
        The manifest of the prepared data set, with `counts` of each split, `folds`, `volumes`, `slices`, `warnings` and
            `notes`.

    Raises:
        InputError: The data have faults (the message lists all of them), or the options do not fit. Nothing was
        written.
    """
    none_given = {name for name in _SEVERAL if options.get(name) is None}
    values: dict[str, Any] = {name: value for name, value in options.items() if name not in none_given}
    for name in _SEVERAL & values.keys():
        one = isinstance(values[name], str | int | float)
        values[name] = (values[name],) if one else tuple(values[name])
    if values.get("pseudonyms") is not None:
        values["pseudonyms"] = Path(values["pseudonyms"])
    check_keywords(prepare, values, PrepareKeywords)
    next_step = f"wmlsearch.tune(data={os.fspath(out)!r})"
    return _prepare(Path(raw), Path(out), PrepareOptions(**values), says_in_python(say), next_step, progress)
