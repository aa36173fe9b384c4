"""Turn what a user chose for a new search into a validated request, and refuse what cannot run before data are made.

Used by `tune`, `plan` and the Python API. `tune` checks before that the name is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.fitted_space import space_for_data
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.preflight import check_before_data
from wmlsearch.workflows.search_choices import Validate, default_epochs, notes, settings_before_data
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


def request_search(
    choices: SearchChoices,
    make_phantom: Callable[[], Path],
    say: Callable[[str], None],
    validate: Validate = RunSettings.from_mapping,
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
    for note in notes(settings, bool(choices.warm_start)):
        say(note)
    space = space_for_data(choices.space, data, choices.placement.workers_per_trial, say)
    return SearchRequest(
        space, settings, data, choices.placement, choices.warm_start, choices.experiment, choices.on_end
    )
