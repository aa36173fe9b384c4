"""Typed models of the files in a run folder. `runs.folders` reads and writes them.

Each model validates strictly, and keeps fields that it does not know, as those of a file written by another version.
They survive where a record is changed and written again (`search.json` of a resumed search). A status or an MLflow
ledger is written anew from the fields known here. A field that an old file lacks has the default that it meant then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from wmlsearch.config import VALUES_BEFORE, RunSettings, TrialConfig, validation_faults
from wmlsearch.errors import InputError
from wmlsearch.runs.files import read_json
from wmlsearch.runs.names import trial_name
from wmlsearch.space import SearchSpace

# The states of a run. The scheduler ends a trial as "stopped", its own patience as "early_stopped". "lost": its process
# or machine died repeatedly. "failed": an error in the program.
RUNNING = "running"
GOOD = ("completed", "early_stopped", "stopped")
BAD = ("diverged", "out_of_memory", "lost", "failed")
ENDED = (*GOOD, *BAD, "interrupted")
UNFINISHED = (RUNNING, "interrupted")  # a resumed search continues these
EXPERIENCE = "experience"  # the origin of a trial whose configuration is one of a search's portfolio

RESTORE = "restore it from a copy, or move the run away"
REMAKE_LEDGER = "delete it; `wmlsearch sync` writes it again"
SELECT_AGAIN = "delete it; `wmlsearch tune --resume` writes it again"
DELETE_FORECAST = "delete it, it is for looking at only"

Amount = Annotated[float, Field(ge=0, le=1e18)]  # bytes, seconds, hours, MiB
Count = Annotated[int, Field(ge=0, le=10**18)]
R = TypeVar("R", bound="Record")


def _whole(model: BaseModel) -> dict[str, Any]:
    """Serialize all fields, also those with their default: a later version can have another default."""
    return model.model_dump()


def _with_values_before(config: Any) -> Any:
    """Add to a configuration the hyperparameters that files of older versions lack."""
    return {**VALUES_BEFORE, **config} if isinstance(config, Mapping) else config


def _with_settings_before(settings: Any) -> Any:
    """Add to settings what files of older versions lack, as it was then."""
    before = {"postprocessing": "none", "grace_epochs": 2, "portfolio": 0}
    return {**before, **settings} if isinstance(settings, Mapping) else settings


def _epochs_as_numbers(value: Any) -> Any:
    """Turn the keys of a JSON object that are digits into epoch numbers."""
    if not isinstance(value, Mapping):
        return value
    return {int(key) if re.fullmatch("[0-9]{1,6}", str(key)) else key: entry for key, entry in value.items()}


StoredConfig = Annotated[TrialConfig, BeforeValidator(_with_values_before), PlainSerializer(_whole)]
StoredSettings = Annotated[RunSettings, BeforeValidator(_with_settings_before), PlainSerializer(_whole)]
ByEpoch = BeforeValidator(_epochs_as_numbers)


class Record(BaseModel):
    """The content of a JSON file, or a part of it."""

    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )
    FAULT: ClassVar[str] = "is damaged"  # what is said of a file that does not validate

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the fields that were set, and the unknown ones that were read."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class DataRecord(Record):
    """The prepared data set of a run. Plane, axis, size, fit and spacing say how a model slices other volumes."""

    name: str  # of its folder
    fingerprint: str  # SHA-256 of its content
    optimistic: bool  # slices of one patient, or copies of a slice, are in several splits
    size: int | None = None  # pixels per side of a slice
    plane: str | None = None  # axial, coronal, sagittal, native or image
    axis: int | None = None  # of the volume's array, along which it is sliced
    fit: str | None = None  # crop or resize: how a slice gets `size`
    spacing_mm: float | None = None  # mm per pixel of a slice; None: as in the volume
    split: str | None = None  # what the split keeps together: patient or image
    # Of 2-D pictures: volume, if those of a volume have one window and one grey range; picture, if each has its own.
    # None for volumes, and in folders of older versions.
    scaled_by: str | None = None
    padding_background: bool = False  # padding was looked for and is background; False in folders of older versions


class SplitCertificate(Record):
    """Evidence of how a data set was split: the fields of `data.certificate.Certificate`, and checksums of images."""

    level: str = ""
    optimistic: bool = False
    note: str | None = None
    seed: int = 0
    patients: dict[str, list[str]] = Field(default_factory=dict)  # by split
    units: dict[str, int] = Field(default_factory=dict)  # patients or images in each split
    left_out: list[str] = Field(default_factory=list)  # patients in no split
    assignment_sha256: str = ""
    compared: int = 0  # slices
    folds: list[list[str]] = Field(default_factory=list)  # patients of each fold; empty with one validation set
    # By pair of splits and kind of duplicate: the number of slices.
    duplicates: dict[Annotated[str, Field(pattern="^[a-z]+/[a-z]+$")], dict[str, int]] = Field(default_factory=dict)
    # Of the images of train and val, to tell later whether a model has seen a test patient's image.
    voxels_sha256: list[str] = Field(default_factory=list)


class FolderRecord(Record):
    """The part that `config.json` and `search.json` share. Only a resumed search changes it."""

    key: str = ""  # identifies the run in MLflow; set when its folder is created
    created: float = 0.0  # Unix seconds; set when its folder is created
    name: str
    kind: str  # see runs/names.py: search, trial, "selection run", "judgement run", baseline, champion, train
    settings: StoredSettings
    data: DataRecord
    data_path: str = ""  # absolute path of the prepared data set
    certificate: SplitCertificate | None = None
    # The MLflow experiment. "": `wmlsearch`, as in older folders; for a run of a search, the experiment of the search.
    experiment: str = ""
    versions: dict[str, str] = Field(default_factory=dict)  # by package; also python and commit

    def missing_in_file(self) -> list[str]:
        """Return the names that a file must hold but this one does not."""
        names = [name for name in ("key", "created") if name not in self.model_fields_set]
        required = ("objective", "epochs", "seed", "trials", "precision")
        return names + [f"settings.{name}" for name in required if name not in self.settings.model_fields_set]


class RunRecord(FolderRecord):
    """`config.json`: one training (a trial, a final run, a run of `wmlsearch train`)."""

    config: StoredConfig
    model: str | None = None  # of a final run: the trial whose configuration it repeats, or "paper"
    # Of a final run: it chooses the champion or is judged on the sealed test. "": an older final run, or no final run.
    purpose: Literal["", "selection", "judgement"] = ""
    fold: Annotated[int, Field(ge=0)] = 0  # of the development patients: it is validated, the others are trained
    parent: Annotated[int, Field(ge=0)] | None = None  # the trial whose first epochs it took over (--scheduler pbt)
    parent_epoch: Annotated[int, Field(ge=0)] = 0  # the last epoch that it took over
    replaces: int | None = None  # the trial that was stopped for it
    origin: Literal["", "experience"] = ""  # of a trial: EXPERIENCE if it is one of the search's `portfolio`
    # The learning rate of `config` is multiplied by the factor of the latest of these epochs.
    rate_factors: Annotated[dict[int, float], ByEpoch] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_parent_epoch(self) -> RunRecord:
        if "parent" in self.model_fields_set and "parent_epoch" not in self.model_fields_set:
            raise ValueError("parent_epoch is missing, though parent is there")
        return self

    @property
    def parent_name(self) -> str:
        """The name of the parent trial, or ""."""
        return "" if self.parent is None else trial_name(self.parent)


class ModelRecord(RunRecord):
    """`config.json` of `models/<role>`: one or more networks of a configuration."""

    model: str  # the trial whose configuration it has, or "paper"
    members: list[str]  # name and key of each final run that it was made from, the best one first
    folds: list[int] = Field(default_factory=list)  # on which each of them validated


class SpaceRecord(Record):
    """The hyperparameter file of a search."""

    source: str  # the path or name that was given
    values: dict[str, Any]  # the mapping that it holds
    # Of the hyperparameters that `values` leaves out, as they were when the search began.
    defaults: dict[str, Any] = Field(default_factory=lambda: dict(VALUES_BEFORE))

    def space(self) -> SearchSpace:
        """Return the search space. Raises InputError."""
        now = TrialConfig().model_dump()
        then = {**VALUES_BEFORE, **self.defaults}
        changed = {name: value for name, value in then.items() if now.get(name) != value}
        return SearchSpace.from_record({**changed, **self.values}, self.source)


class TrialShape(Record):
    """The resources of a trial. A resumed search keeps them."""

    model_config = ConfigDict(extra="forbid")

    workers_per_trial: Annotated[int, Field(ge=1)]
    gpus_per_worker: Amount | None  # None: one where there are GPUs
    trials_per_gpu: Annotated[int, Field(ge=1)] = 1


class WarmStart(Record):
    """How many trials of earlier searches the study began with."""

    taken: int
    left_out: dict[str, int] = Field(default_factory=dict)  # by reason


class SearchRecord(FolderRecord):
    """`search.json`: a search."""

    space: SpaceRecord
    shape: TrialShape | None = None
    storage: str | None = None  # URI of the checkpoints, without a password; None: the run folders
    ray_address: str | None = None  # that the latest session was given; None: an embedded Ray, or that of a notebook
    warm_start: WarmStart | None = None
    # What experience says of the trials from number 1 on: hyperparameters by name. The sampler draws those left out.
    portfolio: list[dict[str, Any]] = Field(default_factory=list)
    # What tells two candidates apart: their training, or, as in older versions, any hyperparameter, also one without
    # effect. A search keeps its rule, so that a completed one does not get other candidates.
    candidates_differ_in: Literal["training", "hyperparameters"] = "hyperparameters"
    packing: dict[str, Any] = Field(default_factory=dict)  # measurements of `--trials-per-gpu auto`


class SelectionRecord(Record):
    """`selection.json`: which configuration is the champion, and why."""

    champion: str  # the name of its trial, or "paper" where nothing better than the baseline was found
    sentence: str
    seeds: list[int]  # of the selection runs that were compared
    # By configuration: the mean over these runs. Without those that lack a run.
    means: dict[str, float | None]


class Successor(Record):
    """The child of a stopped trial (--scheduler pbt): it begins with `epoch` of the trial `parent`."""

    parent: int
    epoch: int


class RunStatus(Record):
    """`status.json`: the state of a search or run."""

    state: Annotated[str, Field(pattern=f"^({'|'.join((RUNNING, *ENDED))})$")]
    reason: str = ""  # one line
    started: float = 0.0  # Unix seconds
    ended: float | None = None  # Unix seconds; None while it runs
    predicted_memory_mb: Amount | None = None  # predicted `peak_memory_mb`, MiB
    traceback: str = ""
    successor: Successor | None = None
    front: list[str] | None = None  # of a search with several objectives: the trials on the Pareto front


@dataclass(frozen=True, slots=True)
class EpochRow:
    """A line of `metrics.jsonl`. Not a pydantic model: a long search reads hundreds of thousands of them."""

    epoch: int  # from 1
    time: float  # Unix seconds at the end of the epoch, by the clock of the machine that trained
    ended: str | None  # a state of `ENDED` if the training ended with this epoch
    metrics: dict[str, float | None]  # by name; None: not a number
    # Of a trial: when the driver of the search received the row, Unix seconds by its clock. It rises from row to row of
    # all trials. None: in folders of older versions.
    received: float | None = field(default=None, compare=False)

    @property
    def order(self) -> float:
        """Its place among the rows of all trials: decisions were made in this order."""
        return self.time if self.received is None else self.received

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochRow:
        """Return the row of a flat mapping. Raises KeyError. `EpochLine` has the other rules."""
        metrics = dict(values)
        received = metrics.pop("received", None)
        return cls(metrics.pop("epoch"), metrics.pop("time"), metrics.pop("ended"), metrics, received)

    def as_json(self) -> dict[str, Any]:
        """Return the flat mapping that a line holds."""
        received = {} if self.received is None else {"received": self.received}
        return {"epoch": self.epoch, "time": self.time, "ended": self.ended, **received, **self.metrics}


class EpochLine(Record):
    """The rules of a line of `metrics.jsonl`."""

    epoch: Annotated[int, Field(ge=0, le=100_000)]
    time: float
    ended: str | None
    received: float | None = None
    __pydantic_extra__: dict[str, float | None]


class Usage(Record):
    """`used.json`: what a search has used, over all its sessions."""

    seconds: Amount = 0.0  # in which trials ran
    gpu_seconds: Amount = 0.0  # that trials held GPUs
    final_seconds: Amount = 0.0  # in which final runs ran
    final_gpu_seconds: Amount = 0.0  # that final runs held GPUs
    checkpoint_bytes: Amount = 0.0  # the largest total of its checkpoints; 0 where they are stored elsewhere
    slots: Amount = 0.0  # trials or final runs that have their machines now
    slots_waiting: Amount = 0.0  # those that were begun and wait for machines
    __pydantic_extra__: dict[str, Amount]

    def as_json(self) -> dict[str, Any]:
        return self.model_dump()


class RungForecast(Record):
    """A rung of a scheduler."""

    epoch: int
    trials: float  # expected to reach it


class ForecastRecord(Record):
    """`forecast.json`: what a search was expected to use, before its first trial."""

    rungs: list[RungForecast]
    epochs: Amount  # of all trials
    start_s: Amount  # seconds before the first trial
    search_s: Amount  # seconds of the trials
    final_s: Amount  # seconds of the final runs
    total_s: Amount  # seconds
    final_runs: Count
    final_epochs: Count  # of all final runs
    gpu_hours: Amount
    disk_bytes: Count  # of checkpoints
    peak_memory_mb: Amount  # MiB of a worker
    ends_by: str  # the budget that ends the trials, or ""


class EarlierTrial(Record):
    """A line of `earlier.jsonl`: a trial of an earlier search (--warm-start)."""

    search: str = Field("", alias="from")  # path of its search
    config: StoredConfig
    state: str
    values: Annotated[dict[int, Any], ByEpoch]  # the objective by epoch
    final: list[float] | None = None  # the value of each objective, where there are several


class MlflowLedger(Record):
    """`mlflow.json`: what MLflow has of a search or run already."""

    model_config = ConfigDict(frozen=False)

    uri: str | None = None  # of the MLflow store, without a password
    run_id: str | None = None
    rows: Annotated[int, Field(ge=0)] = 0  # epochs
    made: bool = False  # whether the run was created for this ledger, not found in MLflow
    experiment_id: str | None = None
    params: bool = False  # whether it has the parameters and constant tags
    state: str | None = None  # the last state that MLflow got
    files: list[str] = Field(default_factory=list)
    tested: float | None = None  # `opened` of the evaluation that it has, Unix seconds
    front: bool | None = None  # the tag `pareto_front`
    outcome: dict[str, str] = Field(default_factory=dict)  # the tags of a search's champion and verdict


def read_record(form: type[R], path: Path, remedy: str = RESTORE) -> R:
    """Read and validate a JSON file. Raises InputError that names the file, the faults and the `remedy`."""
    try:
        model = form.model_validate_json(path.read_bytes())
    except (OSError, ValueError):  # read again, for the message
        return parse(form, read_json(path), path, remedy)
    if isinstance(model, FolderRecord):
        _check_complete(model, path, remedy)
    return model


def read_optional(form: type[R], path: Path, remedy: str = RESTORE) -> R | None:
    """Read and validate a JSON file as `read_record` does; None if it does not exist."""
    return read_record(form, path, remedy) if path.exists() else None


def parse(form: type[R], values: Mapping[str, Any], path: Path, remedy: str = RESTORE, line: int = 0) -> R:
    """Validate the content of a file, or of one `line` of it. Raises InputError as `read_record` does."""
    try:
        model = form.model_validate(dict(values))
    except ValidationError as error:
        _raise_nested(form, values, error, path)
        place = f"{path}: line {line} is damaged" if line else f"{path}: {form.FAULT}"
        raise InputError(f"{place}; {remedy}", validation_faults(error, form)) from None
    if isinstance(model, FolderRecord):
        _check_complete(model, path, remedy)
    return model


def _raise_nested(form: type[Record], values: Mapping[str, Any], error: ValidationError, path: Path) -> None:
    """Raise the InputError of settings or of a configuration that cannot be used, if that is all that is wrong."""
    if not issubclass(form, FolderRecord) or any(
        fault["loc"][0] not in ("settings", "config") or not isinstance(values.get(str(fault["loc"][0])), Mapping)
        for fault in error.errors()
        if fault["loc"]
    ):
        return
    try:
        RunSettings.from_mapping(values["settings"])
    except InputError as unusable:
        raise InputError(f"{path}: the settings are not valid", unusable.faults) from None
    TrialConfig.from_record(values.get("config", {}), f"{path}: config")


def _check_complete(record: FolderRecord, path: Path, remedy: str) -> None:
    if missing := record.missing_in_file():
        raise InputError(f"{path}: is damaged; {remedy}", [f"{name} is missing" for name in missing])


def check_lines(form: type[R], lines: Sequence[Mapping[str, Any]], path: Path) -> list[R]:
    """Validate the lines of a file. Raises InputError that names the line."""
    return [parse(form, values, path, line=number) for number, values in enumerate(lines, 1)]
