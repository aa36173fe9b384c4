"""Turn what a user chose for a new search into a validated request, and refuse what cannot run before data are made.

Used by `tune`, `plan` and the Python API. `tune` checks before that the name is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.runs.objectives import objective_warnings
from wmlsearch.runs.wording import command
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.epochs import Validate, default_epochs, settings_before_data
from wmlsearch.workflows.fitted_space import space_for_data
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.preflight import check_before_data
from wmlsearch.workflows.search_plan import SearchRequest


@dataclass(frozen=True, kw_only=True)
class SearchChoices:
    """What a user chose for a new search."""

    space: SearchSpace
    settings: Mapping[str, Any]  # without `epochs`, or with None, the data decide about them
    data: Path | None  # folder of the prepared data set; None: the built-in phantom
    placement: Placement
    warm_start: Sequence[SearchDir]
    experiment: str = EXPERIMENT  # of MLflow
    on_end: str | None = None


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


def request_search(
    choices: SearchChoices,
    make_phantom: Callable[[], Path],
    say: Callable[[str], None],
    validate: Validate = RunSettings.for_new_run,
) -> SearchRequest:
    """Return the request for a new search, or for the forecast of one. Raises InputError for what cannot run.

    Args:
        choices: The user's choices.
        make_phantom: Makes the built-in phantom and returns the folder of the prepared data set.
        say: Shows the user the number of epochs, if the data decided it, and notes about the settings.
        validate: Makes the settings.
    """
    settings = settings_before_data(choices.settings, validate)
    epochs, data = choices.settings.get("epochs"), choices.data
    if data is None:
        check_before_data(choices.space, settings, choices.placement, epochs_given=epochs is not None)
        data = make_phantom()
    if epochs is None:
        settings = validate({**choices.settings, "epochs": default_epochs(data, say)})
    for note in _notes(settings, bool(choices.warm_start)):
        say(note)
    space = space_for_data(choices.space, data, choices.placement.workers_per_trial, say)
    return SearchRequest(
        space, settings, data, choices.placement, choices.warm_start, choices.experiment, choices.on_end
    )


def _notes(settings: RunSettings, warm_start: bool) -> list[str]:
    """Return notes about settings that are allowed but of little use together."""
    texts = objective_warnings(settings, warm_start)
    if settings.sampler in ("gp", "cmaes") and settings.scheduler != "none":
        texts.insert(
            0,
            f"{settings.sampler} learns from completed trials only, and the scheduler stops most trials early; "
            "consider --scheduler none",
        )
    return [f"note: {text}" for text in texts]
