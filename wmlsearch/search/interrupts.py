"""What a signal does while trials run.

The first one ends the search cleanly: Tune stops the trials, their status becomes "interrupted", final runs and verdict
are skipped, and `wmlsearch tune --resume` goes on from the last checkpoints. A second Ctrl-C ends the command at once;
then run folders still say "running", and `wmlsearch status` says that their process is gone. In a program of the user,
such as a notebook, it raises `Interrupted` instead.

Outside of the trials (forecast, final runs, sealed test, report, `wmlsearch train`), each signal raises `Interrupted`.
The workflow catches it, and records the search or run as "interrupted".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from wmlsearch.runs.interrupts import Interrupted, end_by_signal, handled
from wmlsearch.search.budget import Budget


@contextlib.contextmanager
def graceful_stop(budget: Budget, end_process: Callable[[int], None] | None = None) -> Iterator[None]:
    """In the block, the first request makes the budget end the search; the second ends the process with a status.

    Without `end_process`, the second one raises `Interrupted`.
    """
    signalled = False

    def handle(number: int) -> None:
        nonlocal signalled
        if signalled:
            if end_process is not None:
                end_process(128 + number)
            raise Interrupted(end_by_signal(number))
        signalled = True
        budget.request(end_by_signal(number))  # errors of trials stay the better reason

    with handled(handle):
        yield
