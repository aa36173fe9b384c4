"""`tune --continue`: the same command begins a search, and goes on with it when it is run again.

Batch systems run a job's command again after a time limit, a preemption or a broken machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wmlsearch.cli import options
from wmlsearch.errors import InputError

if TYPE_CHECKING:
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.schema import SearchRecord
    from wmlsearch.space import SearchSpace

_SHAPE = ("workers_per_trial", "gpus_per_worker", "trials_per_gpu")
_NEGATIVE = {
    "no_baseline": "baseline",
    "no_experience": "experience",
}  # options that stand for the opposite of a setting


def check_same_search(search: SearchDir, changeable: tuple[str, ...]) -> None:
    """Refuse to go on with a search that began with other settings than those given. Raises InputError.

    What was not given on the command line may differ: a default that depends on the data, or on the version.

    Args:
        search: The search.
        changeable: Names of the settings that may change when a search is resumed.
    """
    values, record = click.get_current_context().params, search.record()
    given = {name: values[name] for name in options.given()}
    faults = [
        f"{_option(name)} was {kept!r} when it began, but is {value!r} now"
        for name, (kept, value) in _kept_and_given(record, given, changeable).items()
        if kept != value
    ]
    if "space" in given and not _began_with(record, given["space"], values["data"]):
        faults.append(f"{given['space']} has other ranges than the search space that it began with")
    if faults:
        raise InputError(
            f"{search.path}: cannot be continued with other settings (give another --name for a new search)", faults
        )


def _began_with(record: SearchRecord, space: str, data: Path | None) -> bool:
    """Return whether a search began with a space, or with what the data left of it, however its file is named.

    A name that the space leaves out had the default of then, which a newer version may have changed. A newer version
    may also refuse a space for a new search.
    """
    from wmlsearch.space import SearchSpace, space_file
    from wmlsearch.space.yaml_files import read_yaml
    from wmlsearch.workflows.fitted_space import space_for_data

    given, kept = SearchSpace.from_record(read_yaml(space_file(space)), space), record.space.space()
    workers = record.shape.workers_per_trial if record.shape else 1

    def meant_the_same(one: SearchSpace) -> bool:
        of_then = record.space.model_copy(update={"values": one.to_mapping()}).space()
        return (of_then.defaults, of_then.dimensions) == (kept.defaults, kept.dimensions)

    return meant_the_same(given) or meant_the_same(
        space_for_data(given, data or Path(record.data_path), workers, lambda _: None)
    )


def _kept_and_given(
    record: SearchRecord, given: Mapping[str, Any], changeable: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Return the recorded and the given value of each given option that a search keeps."""
    settings = record.settings.model_dump()
    shape = record.shape.model_dump() if record.shape else {}
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, value in given.items():
        if name in _NEGATIVE:
            pairs[name] = (not settings[_NEGATIVE[name]], value)
        elif name == "objectives":
            pairs[name] = (settings[name], [part.strip() for part in value.split(",")])
        elif name in _SHAPE:
            if value != "auto" and name in shape:  # auto was measured when the search began
                pairs[name] = (shape[name], value)
        elif name in settings and name not in changeable:
            pairs[name] = (settings[name], value)
    return pairs


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
