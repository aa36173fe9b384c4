"""Ctrl-C and SIGTERM: what runs ends cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wmlsearch.search.budget import Budget

if TYPE_CHECKING:
    pass


class graceful_stop:
    """Ctrl-C (and SIGTERM) ends the search cleanly; a second one ends it at once."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.asked = budget, False

    def __enter__(self) -> None:
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            self.old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True
        if not self.budget.failed:  # which says more
            self.budget.reason = "stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM"

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """In the block SIGTERM, by which batch systems and containers end a job, is as Ctrl-C: what runs ends cleanly.

    Ray's own handler, which `ray.init` has set, would end the process without a word.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # where nobody may set one
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
