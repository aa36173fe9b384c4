"""Why a search or training ended before its last trial or epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto


class EndCause(StrEnum):
    """What kind of event ended a search or training early."""

    REQUEST = auto()  # Ctrl-C, another signal, or `wmlsearch stop`
    RAY_DIED = auto()  # a server of this machine's Ray, or the head of a cluster
    STORAGE = auto()  # the run folder or the storage cannot be written
    MACHINES = auto()  # each machine with a slot is faulty
    BUDGET = auto()  # a budget is used up; a trial that cannot begin, or a space without another, does the same
    ERROR = auto()  # an error in the program


_RESUMABLE = (EndCause.REQUEST, EndCause.RAY_DIED, EndCause.STORAGE, EndCause.MACHINES)


@dataclass(frozen=True)
class EarlyEnd:
    """Why a search or training ended early; as a string, its text."""

    cause: EndCause
    text: str  # what the run folder records as the reason: one line, and perhaps a traceback
    signal_number: int | None = None  # the signal that asked for it

    @classmethod
    def by_dead_ray(cls, dead: Sequence[str]) -> EarlyEnd:
        """Return the end of what ran on Ray when these servers died."""
        return cls(EndCause.RAY_DIED, f"stopped, since Ray has died ({' and '.join(dead)})")

    @classmethod
    def by_storage(cls, error: OSError) -> EarlyEnd:
        """Return the end of what cannot be written any more."""
        return cls(EndCause.STORAGE, f"stopped, since {error}")

    @property
    def resumable(self) -> bool:
        """Whether the search was cut short, so that `tune --resume` may reach its planned end."""
        return self.cause in _RESUMABLE

    def __str__(self) -> str:
        return self.text


STOP_REQUESTED = EarlyEnd(EndCause.REQUEST, "stopped by `wmlsearch stop`")
