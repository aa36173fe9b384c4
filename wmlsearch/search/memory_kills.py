"""Whether the system ended a worker for lack of memory: it kills without a word, and only counts what it killed."""

from __future__ import annotations

import os

from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.runs.machine import memory_kills

REASON = "the system ended its process for lack of memory"
ADVICE = (
    "run fewer trials at a time (more --workers-per-trial), search smaller values of batch_size, base_channels or "
    "depth, or give the job more memory"
)


class MemoryKills:
    """Counts what the system killed since the last question. Of the workers of an embedded Ray only.

    Workers of a cluster are in other groups of processes, and on other machines.
    """

    def __init__(self) -> None:
        self.count = memory_kills()

    def reason_of_loss(self) -> str:
        """Return why a process that died just now did so, if the system ended one for memory meanwhile; else ""."""
        before, self.count = self.count, memory_kills()
        return REASON if EMBEDDED in os.environ and self.count > before else ""
