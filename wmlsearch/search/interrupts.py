"""What Ctrl-C and SIGTERM do.

While trials run (`graceful_stop`), the first signal ends the search cleanly: Tune stops the trials, their status
becomes "interrupted", final runs and verdict are skipped, and `wmlsearch tune --resume` goes on from the last
checkpoints. A second signal ends the process at once, with exit status 130; then run folders still say "running".

Outside of the trials (`sigterm_as_interrupt`: forecast, final runs, sealed test, report, `wmlsearch train`), each
signal raises KeyboardInterrupt. The workflow catches it, and records the search or run as "interrupted".
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from wmlsearch.search.budget import Budget


class graceful_stop:
    """In the block, the first Ctrl-C or SIGTERM makes the budget end the search; the second ends the process."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.signalled = budget, False

    def __enter__(self) -> None:
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.signalled:
            os._exit(130)
        self.signalled = True
        if not self.budget.failed:  # the errors of the trials are the better reason
            self.budget.reason = "stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM"

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """In the block, SIGTERM raises KeyboardInterrupt, as Ctrl-C does: batch systems and containers end a job by it.

    The handler that `ray.init` sets would end the process without a status.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
