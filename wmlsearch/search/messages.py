"""What a trial worker gets and returns, as typed records.

Ray pickles the records as they are. Only Tune needs plain data: its border is `as_plain`, and `from_plain` validates on
the other side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.schema import EpochRow


@dataclass(frozen=True)
class WorkerJob:
    """What all trials or runs of a worker share. A worker gets it once, when it starts."""

    shipment: Shipment  # the prepared data set
    settings: RunSettings
    _: KW_ONLY
    threads: int  # of torch
    slots: Slots | None = None  # the worker is in one of them; None: it has its machine or GPU for itself
    elastic: bool = False  # whether a worker group continues with fewer workers when a machine is lost
    snapshot_every: int = 0  # epochs between the snapshots of a trial's checkpoint; 0: none
    compiled_networks: str = ""  # folder or URI where they are kept, if they are selected; "": nowhere

    def as_plain(self) -> dict[str, Any]:
        """Return plain values, except for the shipment, which holds references to objects in Ray's store."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        slots = None if self.slots is None else dataclasses.asdict(self.slots)
        return {**fields, "settings": self.settings.model_dump(), "slots": slots}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> WorkerJob:
        """Return the job of which `as_plain` gave the values. Raises TypeError or pydantic's ValidationError."""
        slots = None if values["slots"] is None else Slots(**values["slots"])
        return cls(**{**values, "settings": RunSettings(**values["settings"]), "slots": slots})


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class TrialAssignment(_Message):
    """A trial or run for a worker to train."""

    number: int | None = None  # of a trial in its search; None: a final run or a run of `wmlsearch train`
    checkpoint_location: str  # folder or URI
    reported_epochs: int = 0  # epochs whose reports the driver has already
    config: TrialConfig
    rate_factors: dict[int, float] = {}  # the learning rate is multiplied by the factor of the latest of these epochs
    seed: int | None = None  # None: the seed of the settings
    fold: int = 0  # of the development patients: it is validated, the others are trained

    def as_plain(self) -> dict[str, Any]:
        """Return plain values with strings as keys: the `config` of a Tune trial."""
        return self.model_dump(mode="json")

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TrialAssignment:
        """Return the assignment of which `as_plain` gave the values. Raises pydantic's ValidationError."""
        return cls.model_validate(values)


class MachineFault(NamedTuple):
    """The fields of a `MachineError`, for another process."""

    message: str
    node_id: str  # Ray's id of the machine
    ip: str  # the machine's address


class TrialResult(_Message):
    """What a worker returns after each step of a trial or run: an epoch, how it ended, or both."""

    replayed: list[EpochRow] | None = None  # first step: the rows of the checkpoint that training continues from
    predicted_memory_mb: float | None = None  # first step of a new run: predicted `peak_memory_mb`, MiB
    report: EpochRow | None = None  # the row of the epoch; None: the step has trained none
    done: bool = False  # no step follows; without `ended`, Tune's scheduler stops the trial here
    ended: str = ""  # last step: a state of `runs.schema.ENDED`
    reason: str = ""  # of an end that went wrong, one line
    traceback: str = ""  # of an error in the program
    machine_fault: MachineFault | None = None  # last step: the machine of a worker failed
    broke: bool = False  # an exception left this rank in an unknown state: the other ranks may wait for it

    @property
    def epoch(self) -> int:
        """The number of the reported epoch, 0 without one."""
        return self.report.epoch if self.report else 0

    def with_end(self, ended: str, reason: str = "", **details: Any) -> TrialResult:
        """Return this result as the last one of its run."""
        return self.model_copy(update={"done": True, "ended": ended, "reason": reason, **details})

    def as_plain(self, objective: str) -> dict[str, Any]:
        """Return plain values: a result of Tune, with the epoch and the objective for its scheduler."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        if self.replayed is not None:
            values["replayed"] = [row.as_json() for row in self.replayed]
        if self.report is not None:  # a value that is not a number ranks as the worst one
            value = self.report.metrics[objective] or 0.0
            values |= {"report": self.report.as_json(), "epoch": self.epoch, objective: value}
        return values

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TrialResult:
        """Return the result in one of Tune's, to which Tune has added its own fields. Raises ValidationError."""
        fields = {name: values[name] for name in cls.model_fields if name in values}
        if "replayed" in fields:
            fields["replayed"] = [EpochRow.from_json(row) for row in fields["replayed"]]
        if "report" in fields:
            fields["report"] = EpochRow.from_json(fields["report"])
        return cls.model_validate(fields)


class TuneTrial(Protocol):
    """The part of `ray.tune.experiment.Trial` that holds a TrialAssignment."""

    config: dict[str, Any]


def trial_number(trial: TuneTrial) -> int:
    """Return the search's number of a Tune trial."""
    return int(trial.config["number"])


def note_reported_epochs(trial: TuneTrial, epochs: int) -> None:
    """Let the next process of a Tune trial know how many epochs of it the driver has by now."""
    trial.config["reported_epochs"] = epochs
