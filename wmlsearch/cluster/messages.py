"""Messages from the head of a cluster to the laptop: a line with MARK, then a JSON object that names its type.

It imports only the standard library at its top, because each command on the head imports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MARK = "@wmlsearch@ "

UNKNOWN, RUNNING, ENDED, GONE = "unknown", "running", "ended", "gone"


@dataclass(frozen=True)
class JobState:
    """The state of a job on the head. A job is a `wmlsearch tune` that was started from elsewhere.

    Args:
        name: Of the search.
        state: UNKNOWN (no such job), RUNNING, ENDED, or GONE (its process died without an exit status).
        started: Unix seconds.
        pid: Of the running `wmlsearch tune`.
        status: The exit status of an ended job; 128 + N where signal N ended it.
        ended: Unix seconds.
    """

    name: str
    state: str = UNKNOWN
    started: float = 0.0
    pid: int | None = None
    status: int | None = None
    ended: float | None = None


@dataclass(frozen=True)
class SearchSummary:
    """Identity, status and usage of a search, by which two copies of its folder are compared."""

    key: str
    status: Mapping[str, Any]  # status.json
    used: Mapping[str, float]  # used.json

    @classmethod
    def read(cls, folder: Path) -> SearchSummary | None:
        """Read a search folder; None before the search has begun."""
        from wmlsearch.runs.folders import SearchDir

        search = SearchDir(folder)
        if not search.exists():
            return None
        return cls(search.record().key, search.status().as_json(), search.usage().as_json())


@dataclass(frozen=True)
class Message:
    """A message that can be written as a line and read again."""

    def line(self) -> str:
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return MARK + json.dumps({"type": type(self).__name__, **values})


@dataclass(frozen=True)
class Failure(Message):
    """The head refuses a command."""

    error: str


@dataclass(frozen=True)
class Hello(Message):
    """The answer to `hello`: what the laptop has to know before it sends anything."""

    version: str  # of wmlsearch on the head
    home: str  # the folder of all that wmlsearch keeps on the head
    has_data: bool  # whether the prepared data set is already there
    job: JobState
    names: list[str]  # of all jobs, the latest last
    search: SearchSummary | None = None  # None: the job has made no search folder


@dataclass(frozen=True)
class DataAccepted(Message):
    """The prepared data set has arrived complete."""

    folder: str


@dataclass(frozen=True)
class Started(Message):
    """A job was started or resumed; what it prints begins at byte `offset` of its log."""

    job: JobState
    offset: int


@dataclass(frozen=True)
class LogLine(Message):
    """A line that a job or `wmlsearch status` printed; `offset` is the position in the job's log after it."""

    text: str
    offset: int = 0


@dataclass(frozen=True)
class JobReport(Message):
    """How a job and its search stand."""

    job: JobState
    names: list[str]  # of all jobs, the latest last
    search: SearchSummary | None = None  # None: the job has made no search folder


@dataclass(frozen=True)
class Packed(Message):
    """The files of a search that the laptop fetches."""

    folder: str
    size: int  # bytes


@dataclass(frozen=True)
class TunnelOpen(Message):
    """The head's MLflow answers at this port of the head."""

    port: int


_TYPES: dict[str, type[Message]] = {
    form.__name__: form for form in (Failure, Hello, DataAccepted, Started, LogLine, JobReport, Packed, TunnelOpen)
}


def read_message(text: str) -> Message:
    """Return the message in the JSON text after MARK; fields that a newer version added are ignored.

    Raises ValueError if the text is torn, or is not a message of this version.
    """
    values = json.loads(text)
    try:
        form = _TYPES[values["type"]]
        arguments = _known_fields(form, values)
        if "job" in arguments:
            arguments["job"] = JobState(**_known_fields(JobState, arguments["job"]))
        if arguments.get("search") is not None:
            arguments["search"] = SearchSummary(**_known_fields(SearchSummary, arguments["search"]))
        return form(**arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message of this version of wmlsearch ({error})") from None


def _known_fields(form: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(form) if field.name in values}
