"""Signals that ask this process to end: Ctrl-C, SIGTERM, SIGQUIT, and SIGHUP, which a closed terminal sends.

Each raises `Interrupted` in the main thread, which the workflows record, or is handled in another way for a while
(`handled`, `noted_only`). A SIGHUP that comes after another signal is ignored: a closing terminal sends several. SIGHUP
and SIGQUIT stay ignored where they were ignored when the process began, as under `nohup`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP, as a closed terminal sends it",
    signal.SIGQUIT: "SIGQUIT",
}
_KEPT_IGNORED = (signal.SIGHUP, signal.SIGQUIT)
_BY_REQUEST = "stopped by "  # how each reason begins


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. Its text is the reason that a run folder records."""

    def __init__(self, number: int) -> None:
        super().__init__(reason(number))
        self.number = number


def reason(number: int) -> str:
    """Return why a search or training ended: "stopped by Ctrl-C"."""
    return f"{_BY_REQUEST}{_NAMES[signal.Signals(number)]}"


def exit_status(why: str) -> int:
    """Return the exit status of a command that ended for a reason "stopped by ...": 128 + the number of the signal.

    That of another request, such as `wmlsearch stop`, is that of Ctrl-C, 130.
    """
    return next((128 + number for number in _NAMES if why == reason(number)), 128 + signal.SIGINT)


class _Requests:
    """The signals that this process got since the outermost block began that handles them."""

    numbers: list[int] = []  # noqa: RUF012 - one for the process, as its signal handlers are
    depth = 0


def first_request() -> int | None:
    """Return the first signal that asked this process to end, or None."""
    return _Requests.numbers[0] if _Requests.numbers else None


@contextlib.contextmanager
def handled(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of each signal that comes in the block. Only the main thread can set this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        repeated = number == signal.SIGHUP and bool(_Requests.numbers)
        _Requests.numbers.append(number)
        if not repeated:
            act(number)

    if not _Requests.depth:
        _Requests.numbers.clear()
    _Requests.depth += 1
    previous = {
        number: signal.signal(number, handle)
        for number in _NAMES
        if not (number in _KEPT_IGNORED and signal.getsignal(number) == signal.SIG_IGN)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _Requests.depth -= 1


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """In the block, each signal raises `Interrupted` in the main thread."""

    def interrupt(number: int) -> None:
        raise Interrupted(number)

    with handled(interrupt):
        yield


@contextlib.contextmanager
def noted_only() -> Iterator[None]:
    """In the block, a signal does nothing but be noted: for the short time in which an end is recorded."""
    with handled(lambda _: None):
        yield


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """At the end of the block, set the handlers of these signals as before: `ray.init` replaces that of SIGTERM.

    Processes that start in the block never get SIGHUP and SIGQUIT: a terminal sends them to all its processes, and the
    one that started them ends them in order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _NAMES}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_IGNORED)  # processes inherit it; signals come afterwards
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
