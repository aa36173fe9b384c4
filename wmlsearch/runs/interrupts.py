"""Signals that ask this process to end: Ctrl-C, SIGTERM, SIGQUIT, and SIGHUP, which a closed terminal sends.

Each raises `Interrupted` in the main thread, which the workflows record, or is handled in another way for a while
(`handled`, `noted_only`). Only a Ctrl-C counts as a second request, and none within a second of the first: `timeout`
sends its signal to its child and again to the whole group, a closing terminal sends several, and SIGTERM follows SIGHUP
at a logout. A signal stays ignored where it was ignored when the process began, as SIGHUP is under `nohup`, and SIGINT
in a background job of a script.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from wmlsearch.runs.early_end import EarlyEnd, EndCause

_NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP, as a closed terminal sends it",
    signal.SIGQUIT: "SIGQUIT",
}
_NOT_FOR_CHILDREN = (signal.SIGHUP, signal.SIGQUIT)
SAME_REQUEST_S = 1.0  # signals that come together are one request


class Interrupted(KeyboardInterrupt):
    """A signal or another thread asked this process to end. Its text is the reason that a run folder records."""

    def __init__(self, end: EarlyEnd) -> None:
        super().__init__(end)
        self.end = end


def end_by_signal(number: int) -> EarlyEnd:
    """Return the end that a signal asks for: "stopped by Ctrl-C"."""
    return EarlyEnd(EndCause.REQUEST, f"stopped by {_NAMES[signal.Signals(number)]}", number)


def end_of(error: KeyboardInterrupt) -> EarlyEnd:
    """Return why it was raised, in the block that handles the requests.

    Ray's C code raises a KeyboardInterrupt of its own in place of the `Interrupted` of a handler that it has called.
    """
    if isinstance(error, Interrupted):
        return error.end
    if text := str(error):
        return EarlyEnd(EndCause.REQUEST, text)
    return _Requests.raised or end_by_signal(first_request() or signal.SIGINT)


def exit_status(end: EarlyEnd) -> int:
    """Return the exit status of a command that was asked to end: 128 + the number of the signal.

    That of another request, such as `wmlsearch stop`, is that of Ctrl-C, 130.
    """
    return 128 + (end.signal_number or signal.SIGINT)


@dataclass(frozen=True, eq=False)
class _Request:
    """A signal that this process got."""

    number: int
    time_s: float = field(default_factory=time.monotonic)


class _Requests:
    """The signals that this process got since the outermost block began that handles them."""

    got: list[_Request] = []  # noqa: RUF012 - one for the process, as its signal handlers are
    unhandled: int | None = None  # a signal that came while the main thread was in a call into C, which may never end
    arrivals: int | None = None  # the file from which the number of each signal can be read as it comes
    handlers: list[object] = []  # noqa: RUF012 - of the blocks that the main thread is in, the innermost last
    end: EarlyEnd | None = None  # what another thread interrupts the main thread for, until that gets the signal
    raised: EarlyEnd | None = None  # what another thread has interrupted the main thread for
    interrupted_by_thread = False  # so a signal that comes may be that of a thread
    numbers: frozenset[int] = frozenset()  # the signals that are handled


def first_request() -> int | None:
    """Return the first signal that asked this process to end, in the outermost block that handles them, or None.

    Python calls the handler of a signal only when the main thread runs Python code; other threads learn of it here.
    """
    if _Requests.got:
        return _Requests.got[0].number
    if _Requests.arrivals is not None and _Requests.unhandled is None and not _Requests.interrupted_by_thread:
        with contextlib.suppress(OSError):
            numbers = os.read(_Requests.arrivals, 4096)
            _Requests.unhandled = next((number for number in numbers if number in _Requests.numbers), None)
    return _Requests.unhandled


def _forget_arrivals() -> None:
    """In a fork: its signals are not those of this process."""
    if _Requests.arrivals is not None:
        signal.set_wakeup_fd(-1)
        _Requests.arrivals = None


os.register_at_fork(after_in_child=_forget_arrivals)


@contextlib.contextmanager
def _arrivals_readable() -> Iterator[None]:
    """Let `first_request` see signals as they come, unless this program reads them itself, as asyncio may."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if previous == -1:
        _Requests.arrivals = reader
    else:
        signal.set_wakeup_fd(previous)
    try:
        yield
    finally:
        _Requests.arrivals = _Requests.unhandled = None
        _Requests.interrupted_by_thread = False
        if previous == -1:
            signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


def _is_new(number: int) -> bool:
    """Note a signal; return whether it is a request of its own. Its handler may interrupt that of another one."""
    request = _Request(number)
    _Requests.got.append(request)
    first = _Requests.got[0]
    return request is first or (number == signal.SIGINT and request.time_s - first.time_s > SAME_REQUEST_S)


@contextlib.contextmanager
def handled(act: Callable[[int], None], by_threads: bool = True) -> Iterator[None]:
    """Call `act` with the number of each request that comes in the block. Only the main thread gets signals.

    With `by_threads`, other threads can raise `Interrupted` in it (`interrupt`), in whatever thread it is.
    """
    if threading.current_thread() is not threading.main_thread():
        with _open_to_threads(by_threads):
            yield
        return

    def handle(number: int, _frame: object) -> None:
        end, _Requests.end = _Requests.end, None
        if end and by_threads:
            _Requests.raised = end
            raise Interrupted(end)
        if not end and _is_new(number):
            act(number)

    with contextlib.nullcontext() if _Requests.handlers else _arrivals_readable():
        _Requests.handlers.append(handle)
        previous = {
            number: signal.signal(number, handle) for number in _NAMES if signal.getsignal(number) != signal.SIG_IGN
        }
        _Requests.numbers = frozenset(previous)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            _Requests.handlers.remove(handle)
            if not _Requests.handlers:
                _Requests.got.clear()
                _Requests.end = _Requests.raised = None


_open: dict[int, list[bool]] = {}  # by thread that is not the main one: of each block that it is in, the innermost last


@contextlib.contextmanager
def _open_to_threads(by_threads: bool) -> Iterator[None]:
    """Note whether other threads can raise `Interrupted` in this one, which is not the main thread, in the block."""
    thread = threading.get_ident()
    _open.setdefault(thread, []).append(by_threads)
    try:
        yield
    finally:
        _open[thread].pop()
        if not _open[thread]:
            del _open[thread]


def interrupt(thread: threading.Thread, end: EarlyEnd) -> None:
    """Raise `Interrupted` with this end in another thread, if it is in a block of `handled` that lets threads do so.

    The main thread gets a signal that it handles, which also ends its waiting. Another thread gets the exception when
    it next runs Python code: a call into C has to return first.
    """
    identity = cast(int, thread.ident)
    if thread is threading.main_thread():
        numbers = [number for number in _NAMES if signal.getsignal(number) in _Requests.handlers]
        if numbers:  # a program in the background of a script ignores SIGINT
            _Requests.end, _Requests.interrupted_by_thread = end, True
            signal.pthread_kill(identity, numbers[0])
        return

    class ByThread(Interrupted):
        def __init__(self) -> None:  # the interpreter takes a class and calls it without arguments
            super().__init__(end)

    if _open.get(identity, [False])[-1]:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), ctypes.py_object(ByThread))


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """In the block, each request raises `Interrupted` in the main thread."""

    def interrupt(number: int) -> None:
        raise Interrupted(end_by_signal(number))

    with handled(interrupt):
        yield


@contextlib.contextmanager
def noted_only() -> Iterator[None]:
    """In the block, a signal does nothing but be noted: for the short time in which an end is recorded."""
    with handled(lambda _: None, by_threads=False):
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
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_CHILDREN)  # processes inherit it; signals come afterwards
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
