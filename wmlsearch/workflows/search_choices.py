"""The choices that a user leaves open in a search or training, and notes about those that suit each other badly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wmlsearch.config import (
    MAX_DEFAULT_EPOCHS,
    PAPER_BATCH,
    PAPER_EPOCHS,
    PAPER_STEPS,
    RunSettings,
    epochs_for_slices,
)
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.objectives import objective_warnings
from wmlsearch.runs.wording import command, plural
from wmlsearch.space import SearchSpace

Validate = Callable[[Mapping[str, Any]], RunSettings]  # raises InputError, in the words of the command line or Python


def space_to_search(space: str | Path | Mapping[str, Any]) -> SearchSpace:
    """Return a search space that has something to search: a shipped one, a file's, or that of a mapping. InputError."""
    source = "space" if isinstance(space, Mapping) else str(space)
    ranges = SearchSpace.from_mapping(space, source) if isinstance(space, Mapping) else SearchSpace.read(space)
    if ranges.is_single_configuration:
        why = "has a single configuration" if ranges.dimensions else "has only values and no ranges"
        raise InputError(
            f"{source}: {why}, so there is nothing to search; train it with `{command('train', Path(source))}`"
        )
    return ranges


def settings_before_data(values: Mapping[str, Any], validate: Validate) -> RunSettings:
    """Validate settings before the data are known, which decide the epochs where none are given. Raises InputError."""
    epochs = values.get("epochs")
    return validate({**values, "epochs": MAX_DEFAULT_EPOCHS if epochs is None else epochs})


def default_epochs(data: Path, say: Callable[[str], None]) -> int:
    """Return the maximum number of epochs for a prepared data set, and say why. Raises InputError."""
    slices = len(Manifest.read(data).indices("train", kept_only=True))
    epochs, steps = epochs_for_slices(slices), -(-slices // PAPER_BATCH)
    limit = {PAPER_EPOCHS: ", as in the paper", MAX_DEFAULT_EPOCHS: ", the most by default"}.get(epochs, "")
    say(
        f"epochs: at most {epochs}{limit}, since the paper trained {PAPER_STEPS:,} steps and an epoch of "
        f"{plural(slices, 'slice')} has {steps} (--epochs changes it)"
    )
    return epochs


def notes(settings: RunSettings, warm_start: bool) -> list[str]:
    """Return notes about settings that are allowed but of little use together."""
    texts = objective_warnings(settings, warm_start)
    if settings.sampler in ("gp", "cmaes") and settings.scheduler != "none":
        texts.insert(
            0,
            f"{settings.sampler} learns from completed trials only, and the scheduler stops most trials early; "
            "consider --scheduler none",
        )
    return [f"note: {text}" for text in texts]


def store_uri(out: Path, given: str | None) -> str:
    """Return the URI of the MLflow store: the given one, or that beside the runs. Raises InputError."""
    from wmlsearch.tracking.uri import check_uri, default_uri, usual_form

    uri = given or default_uri(out)
    if given or out.is_dir():
        check_uri(uri)
    return usual_form(uri)


def check_store_of_resumed(search: SearchDir, given: str | None) -> None:
    """Refuse to resume a search without its MLflow store, if that has a password. Raises InputError.

    The run folder does not hold the password, and the rest of the runs would be copied to another store.
    """
    before = search.ledger().uri or ""
    if not given and "***" in before:
        raise InputError(
            f"{search.name}: its MLflow store is {before}, and the password is not stored; give --mlflow-uri (or "
            "MLFLOW_TRACKING_URI) with the password"
        )
