"""The model of a run whose weights are in the run folder, or still in the storage of its search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir, parent_search
from wmlsearch.runs.redaction import without_password
from wmlsearch.workflows.placement import Placement


def load_run_model(run: RunDir) -> TrainedModel:
    """Load the model of a run folder, for raw images.

    With `--storage`, the weights of most trials are there alone, and those of a running trial change. They are read
    from the storage, and not copied into the run folder.

    Raises InputError if the run has no weights, or the storage with them cannot be read.
    """
    search = parent_search(run)
    storage = search.record().storage if isinstance(search, SearchDir) else None
    if storage is None or run.best.is_file():
        return TrainedModel.from_run(run)
    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        weights = Path(folder) / run.best.name
        _download(run, storage, weights)
        return TrainedModel.from_run(run, weights)


def _download(run: RunDir, recorded: str, weights: Path) -> None:
    """Copy the best weights of a run from the storage that its search has recorded. Raises InputError."""
    from wmlsearch.cluster.storage import Storage, reason

    named_in_full = RunDir(Path(os.path.normpath(run.path.absolute())))
    placement = Placement(storage=_with_password(run, recorded))
    location = placement.checkpoint_location(named_in_full)
    stored = Storage(location)
    try:
        stored.download(run.best.name, weights)
    except FileNotFoundError:
        if stored.folder is not None and not Path(placement.storage or "").is_dir():
            raise InputError(
                f"{run.path}: its weights are in {stored}, which this machine does not have; run the command on a "
                "machine that has it"
            ) from None
        raise InputError(
            f"{run.path}: has no weights (best.pt), nor are there any in {stored}; only a search's best trials and its "
            "judgement runs keep theirs, choose one of them"
        ) from None
    except OSError as error:
        raise InputError(
            f"{run.path}: its weights are in {stored}, which cannot be read ({reason(error, location)}); run the "
            "command again when it can be reached"
        ) from None


def _with_password(run: RunDir, recorded: str) -> str:
    """Return a recorded storage, with the password from WMLSEARCH_STORAGE if it needs one. Raises InputError."""
    if "***" not in recorded:
        return recorded
    given = os.environ.get("WMLSEARCH_STORAGE", "")
    if without_password(given) != recorded:
        raise InputError(
            f"{run.path}: its weights are in {recorded}, and the password is not stored; set WMLSEARCH_STORAGE to this "
            "storage with the password"
        )
    return given
