"""The model of a run whose weights are in the run folder, or still in the storage of its search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.errors import InputError
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir, parent_search
from wmlsearch.runs.redaction import without_password
from wmlsearch.workflows.placement import Placement

if TYPE_CHECKING:
    from wmlsearch.cluster.storage import Storage


def load_run_model(run: RunDir) -> TrainedModel:
    """Load the model of a run folder, for raw images.

    With `--storage`, the weights of most trials are there alone, and those of a running trial change. They are read
    from the storage, and not copied into the run folder. A `best.pt` in the run folder is used if it is of the best
    epoch: of a trial that was resumed it may be older.

    Raises InputError if the run has no weights, or the storage with them cannot be read.
    """
    local = TrainedModel.from_run(run) if run.best.is_file() else None
    if local is not None and local.has_latest_weights(run):
        return local
    search = parent_search(run)
    storage = search.record().storage if isinstance(search, SearchDir) else None
    if storage is None:
        return local or TrainedModel.from_run(run)
    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        weights = Path(folder) / run.best.name
        stored = _download(run, storage, weights)
        return TrainedModel.from_run(run, weights, str(stored.below(run.best.name)))


def _download(run: RunDir, recorded: str, weights: Path) -> Storage:
    """Copy the best weights of a run from the storage that its search has recorded; return the folder in the storage.

    Raises InputError.
    """
    from wmlsearch.cluster.storage import Storage, reason

    placement = Placement(storage=_with_password(run, recorded))
    location = placement.checkpoint_location(_as_created(run))
    stored = Storage(location)
    try:
        stored.download(run.best.name, weights)
        return stored
    except FileNotFoundError:
        if stored.folder is not None and not Path(placement.storage or "").is_dir():
            raise InputError(
                f"{run.path}: its weights are in {stored}, which this machine does not have; run the command on a "
                "machine that has it"
            ) from None
        if run.best.is_file():
            raise InputError(
                f"{run.path}: its best.pt is older than its best epoch, and there are no weights in {stored}; only a "
                "search's best trials and its judgement runs keep theirs, choose one of them"
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


def _as_created(run: RunDir) -> RunDir:
    """Return the folder of a search's run with the names that it has in the storage.

    The search, or the run, may be named by a link; a search may also have been created through one.
    """
    in_full = run.path.resolve()
    searches = [SearchDir(Path(os.path.normpath(run.path.absolute())).parent.parent), SearchDir(in_full.parent.parent)]
    searches = [search for search in searches if search.exists()]
    search = next((search for search in searches if search.name == search.record().name), searches[0])
    return RunDir(search.path / in_full.parent.name / in_full.name)


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
