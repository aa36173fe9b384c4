"""What a signal does while trials run.

The first one ends the search cleanly: Tune stops the trials, their status becomes "interrupted", final runs and verdict
are skipped, and `wmlsearch tune --resume` goes on from the last checkpoints. A second one ends the process at once;
then run folders still say "running", and `wmlsearch status` says that their process is gone.

Outside of the trials (forecast, final runs, sealed test, report, `wmlsearch train`), each signal raises `Interrupted`.
The workflow catches it, and records the search or run as "interrupted".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from wmlsearch.runs.interrupts import handled, reason
from wmlsearch.search.budget import Budget


@contextlib.contextmanager
def graceful_stop(budget: Budget) -> Iterator[None]:
    """In the block, the first signal makes the budget end the search; the second ends the process."""
    signalled = False

    def handle(number: int) -> None:
        nonlocal signalled
        if signalled:
            os._exit(128 + number)
        signalled = True
        if not budget.failed:  # the errors of the trials are the better reason
            budget.reason = reason(number)

    with handled(handle):
        yield
