"""What the files of a run folder must hold, checked once, where a run is named on the command line.

Within a command the folder is trusted: it is our own, and that of a search with 500 trials is read again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wmlsearch.config import InputError, RunSettings, TrialConfig, faults_of
from wmlsearch.runs.folders import ENDED, RESTORE, RUNNING, RunDir, SearchDir, find, find_search
from wmlsearch.runs.names import ROLES
from wmlsearch.space import SearchSpace

_Amount = Annotated[float, Field(ge=0, le=1e18)]  # bytes, seconds, hours: what can be


class _Form(BaseModel):
    """What is read of a file, strictly; what else stands there is left alone."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Data(_Form):
    name: str
    fingerprint: str
    optimistic: bool


class _Settings(_Form):
    objective: str
    epochs: int
    seed: int
    trials: int
    precision: str


class _Certificate(_Form):
    note: str | None = None
    compared: int
    duplicates: dict[Annotated[str, Field(pattern="^[a-z]+/[a-z]+$")], dict[str, int]]


class _About(_Form):
    key: str
    created: float
    name: str
    kind: str
    data: _Data
    settings: _Settings
    versions: dict[str, Any] = Field(default_factory=dict)
    certificate: _Certificate | None = None
    data_path: str = ""


class _AboutRun(_About):
    config: dict[str, Any]
    parent: Annotated[int, Field(ge=0)] = 0
    parent_epoch: Annotated[int, Field(ge=0)] = 0
    rate_factors: dict[Annotated[str, Field(pattern="^[0-9]{1,6}$")], float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_child_knows_where_it_began(self) -> _AboutRun:
        if "parent" in self.model_fields_set and "parent_epoch" not in self.model_fields_set:
            raise ValueError("parent_epoch is missing, though parent is there")
        return self


class _AboutModel(_AboutRun):
    model: str
    members: list[str]


class _Space(_Form):
    source: str
    values: dict[str, Any]


class _Shape(_Form):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    workers_per_trial: Annotated[int, Field(ge=1)]
    gpus_per_worker: _Amount | None
    trials_per_gpu: Annotated[int, Field(ge=1)] = 1  # of before they could share one


class _AboutSearch(_About):
    space: _Space
    shape: _Shape | None = None
    storage: str | None = None


class _Status(_Form):
    state: Annotated[str, Field(pattern=f"^({'|'.join((RUNNING, *ENDED))})$")]
    reason: str = ""
    traceback: str = ""
    started: float = 0
    ended: float = 0
    predicted_memory_mb: _Amount = 0
    front: list[str] = Field(default_factory=list)


class _Row(_Form):
    epoch: Annotated[int, Field(ge=0, le=100_000)]
    time: float
    ended: str | None
    __pydantic_extra__: dict[str, float | None]


class _Ledger(_Form):
    uri: str | None = None
    run_id: str | None = None
    rows: Annotated[int, Field(ge=0)] = 0
    files: list[str] = Field(default_factory=list)


class _Used(_Form):
    __pydantic_extra__: dict[str, _Amount]


class _Rung(_Form):
    epoch: int
    trials: float


class _Forecast(_Form):
    rungs: list[_Rung]
    epochs: _Amount
    start_s: _Amount
    search_s: _Amount
    total_s: _Amount
    final_s: _Amount
    final_runs: _Amount
    final_epochs: _Amount
    gpu_hours: _Amount
    disk_bytes: _Amount
    peak_memory_mb: _Amount
    ends_by: str


class _Earlier(_Form):
    config: dict[str, Any]
    state: str
    values: dict[Annotated[str, Field(pattern="^[0-9]{1,6}$")], Any]


def open_run(name: str | None, out: Path) -> RunDir:
    """A search or run as `runs.find` finds it, with its files checked. Raises InputError."""
    run = find(name, out)
    check(run)
    return run


def open_search(name: str | None, out: Path) -> SearchDir:
    """As `open_run`, but a search. Raises InputError."""
    search = find_search(name, out)
    check(search)
    return search


def check(run: RunDir) -> None:
    """Look through a run folder, a search's with all that is below it. Raises InputError that names the file."""
    about, where = run.about(), str(run.file("about"))
    _check(_AboutSearch if isinstance(run, SearchDir) else _AboutRun, about, run.file("about"))
    try:
        RunSettings.of(about["settings"])
    except InputError as error:
        raise InputError(f"{where}: its settings can't be used", error.faults) from None
    if status := run.status():
        _check(_Status, status, run.file("status"))
    if about["kind"] in ROLES:  # models of a search, whose whole evaluation is the search's
        run.evaluation_metrics()
    else:
        run.evaluation()
    if ledger := run.ledger():
        _check(_Ledger, ledger, run.file("ledger"), "delete it, and `wmlsearch sync` makes it anew")
    if not isinstance(run, SearchDir):
        TrialConfig.of(about["config"], f"{where}: config")
        _check_lines(_Row, run.rows(), run.file("metrics"))
        return
    SearchSpace.of(about["space"]["values"], f"{where}: space")
    _check(_Used, run.used(), run.file("used"))
    if forecast := run.forecast():
        _check(_Forecast, forecast, run.file("forecast"), "delete it, it is for looking at only")
    _check_lines(_Earlier, run.earlier(), run.file("earlier"))
    for trial in run.trials():
        if not trial.name.isdecimal() or run.trial(int(trial.name)) != trial:
            raise InputError(f"{trial.path}: a trial's folder is named by its number (0000, 0001, ...); move it away")
    for model in run.models():
        _check(_AboutModel, model.about(), model.file("about"))
    for part in run.all_runs():
        check(part)


def _check(form: type[_Form], value: Mapping[str, Any], path: Path, remedy: str = RESTORE) -> None:
    try:
        form.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: is damaged; {remedy}", faults_of(error, form)) from None


def _check_lines(form: type[_Form], lines: list[dict[str, Any]], path: Path) -> None:
    for number, line in enumerate(lines, 1):
        try:
            form.model_validate(line)
        except ValidationError as error:
            raise InputError(f"{path}: line {number} is damaged; {RESTORE}", faults_of(error, form)) from None
