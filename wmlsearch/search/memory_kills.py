"""Whether the system ended a worker for lack of memory: it kills without a word, and only counts what it killed."""

from __future__ import annotations

import os
import time
from collections import deque

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.runs.machine import memory_kills
from wmlsearch.search.machine_health import machine_error
from wmlsearch.search.worker_group import WorkersDiedError

REASON = "the system ended its process for lack of memory"
ADVICE = (
    "run fewer trials at a time (more --workers-per-trial), search smaller values of batch_size, base_channels or "
    "depth, or give the job more memory"
)
RECENT_S = 10.0  # Ray reports the death of a process after a second or two
COUNTER_INTERVAL_S = 1.0  # between two readings of the counter of kills; Tune's loop runs much more often


class MemoryKills:
    """The kills of the last seconds, each of which explains the death of one process. For an embedded Ray only.

    Workers of a cluster are in other groups of processes, and on other machines. Where there are no groups, the system
    counts the kills of the whole machine: ask often (`look`), so that those of another user are forgotten.
    """

    def __init__(self) -> None:
        self.count, self.looked = memory_kills(), time.monotonic()
        self.times: deque[float] = deque()  # time.monotonic() at which each kill was seen

    def look(self) -> None:
        """Read the counter, unless that was done within the last second, and forget what was killed too long ago."""
        if time.monotonic() - self.looked >= COUNTER_INTERVAL_S:
            self._read()

    def _read(self) -> None:
        before, self.count, now = self.count, memory_kills(), time.monotonic()
        self.looked = now
        self.times.extend([now] * (self.count - before))
        while self.times and now - self.times[0] > RECENT_S:
            self.times.popleft()

    def reason_of_loss(self, error: BaseException | None) -> str:
        """Return why a process was lost, if it died and the system has just killed one for memory; else "".

        Args:
            error: What Ray raised for it: an error in the program is never explained by a kill.
        """
        self._read()
        died = is_death(error) and machine_error(error) is None
        if EMBEDDED not in os.environ or not died or not self.times:
            return ""
        self.times.popleft()
        return REASON


def is_death(error: BaseException | None) -> bool:
    """Return whether an error says that a process or its machine died, or that the machine failed."""
    deaths = RayActorError | NodeDiedError | ObjectLostError | WorkerCrashedError | WorkersDiedError
    return machine_error(error) is not None or isinstance(error, deaths)


def was_preempted(error: BaseException | None) -> bool:
    """Return whether a process was lost since its machine was taken away, as spot machines are."""
    return bool(getattr(error, "preempted", False))
