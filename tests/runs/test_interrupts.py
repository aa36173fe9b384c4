"""Signals that ask a process to end: what each does in each place, reasons and exit statuses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import wait_for

from wmlsearch.runs import interrupts
from wmlsearch.runs.early_end import STOP_REQUESTED, EarlyEnd, EndCause
from wmlsearch.runs.interrupts import (
    Interrupted,
    end_by_signal,
    end_of,
    exit_status,
    first_request,
    handled,
    handlers_kept,
    interrupt,
    noted_only,
    signals_as_interrupts,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DEAD_RAY = EarlyEnd.by_dead_ray(["raylet"])


@pytest.mark.parametrize(
    ("number", "why", "status"),
    [
        (signal.SIGINT, "stopped by Ctrl-C", 130),
        (signal.SIGTERM, "stopped by SIGTERM", 143),
        (signal.SIGHUP, "stopped by SIGHUP, as a closed terminal sends it", 129),
        (signal.SIGQUIT, "stopped by SIGQUIT", 131),
    ],
)
def test_each_signal_is_an_interrupt(number: signal.Signals, why: str, status: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    first: list[int | None] = []

    def get() -> None:
        with signals_as_interrupts(), contextlib.ExitStack() as stack:
            stack.callback(lambda: first.append(first_request()))
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=why):
        get()
    assert first == [number]
    end = end_by_signal(number)
    assert (end.cause, str(end), exit_status(end)) == (EndCause.REQUEST, why, status)
    assert first_request() is None, "a later search of this process was not stopped"
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_another_request_has_the_status_of_ctrl_c() -> None:
    assert exit_status(STOP_REQUESTED) == 130


def test_only_ctrl_c_is_a_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closing terminal sends SIGHUP to a shell, which sends it on, and systemd sends it after SIGTERM."""
    monkeypatch.setattr(interrupts, "SAME_REQUEST_S", -1.0)  # as if time had passed between them
    seen: list[int] = []
    with handled(seen.append):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert first_request() == signal.SIGTERM
    assert seen == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_that_come_together_are_one_request(number: signal.Signals) -> None:
    """`timeout` sends its signal to its child, then to the whole group: microseconds apart."""
    seen: list[int] = []
    with handled(seen.append):
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert seen == [number]


def test_a_signal_may_come_while_another_one_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(interrupts._Request):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            if number == signal.SIGHUP:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(interrupts, "_Request", Interrupting)
    seen: list[int] = []
    with handled(seen.append):
        os.kill(os.getpid(), signal.SIGHUP)
    assert seen == [signal.SIGTERM]


def test_a_repeated_signal_leaves_the_cleanup_alone() -> None:
    steps = []

    def end() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("cleaned up")

    with pytest.raises(Interrupted), signals_as_interrupts():
        end()
    assert steps == ["cleaned up"]


@pytest.mark.parametrize("ignored", [None, signal.SIGINT])
def test_another_thread_can_interrupt_the_main_thread(ignored: signal.Signals | None) -> None:
    """Even in the background of a script, where SIGINT is ignored."""
    before = signal.signal(ignored, signal.SIG_IGN) if ignored else None
    waiting, main = threading.Event(), threading.current_thread()
    thread = threading.Timer(0.2, lambda: interrupt(main, DEAD_RAY))
    thread.start()
    try:
        with handled(lambda _: pytest.fail("nobody asked for it")):
            with pytest.raises(Interrupted, match=r"^stopped, since Ray has died \(raylet\)$"):
                waiting.wait(30)
            assert end_of(KeyboardInterrupt()) == DEAD_RAY, "Ray's C code replaces what a handler raises"
            assert first_request() is None
    finally:
        if ignored:
            signal.signal(ignored, before)
    thread.join()
    interrupt(main, DEAD_RAY)  # nobody handles it: nothing happens
    assert end_of(KeyboardInterrupt()) == end_by_signal(signal.SIGINT)


def test_other_threads_learn_of_a_signal_while_the_main_thread_is_in_a_call_into_c(tmp_path: Path) -> None:
    """Such a call may never return: that of Ray for what its dead head knows."""
    end, seen, handled_by_main = tmp_path / "end", list[int | None](), list[int]()
    os.mkfifo(end)

    def end_call() -> None:
        wait_for(lambda: first_request() is not None)
        seen.extend([first_request(), len(handled_by_main)])
        end.write_text("\n")

    thread = threading.Thread(target=end_call)
    with handled(handled_by_main.append):
        assert first_request() is None
        thread.start()
        ctypes.CDLL(None).system(f"kill -TERM {os.getpid()}; read line < {end}".encode())
        thread.join()
    assert (seen, handled_by_main) == ([signal.SIGTERM, 0], [signal.SIGTERM])
    assert first_request() is None


def test_signals_of_a_fork_are_not_those_of_this_process() -> None:
    with handled(lambda _: None):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert first_request() is None


def test_the_reason_of_an_interrupt_of_rays_own() -> None:
    with signals_as_interrupts():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert end_of(KeyboardInterrupt()) == end_by_signal(signal.SIGTERM)
        assert end_of(Interrupted(STOP_REQUESTED)) == STOP_REQUESTED
        assert end_of(KeyboardInterrupt("by a library")) == EarlyEnd(EndCause.REQUEST, "by a library")


def test_an_end_is_recorded_though_another_thread_interrupts() -> None:
    steps = []
    with noted_only():
        interrupt(threading.main_thread(), DEAD_RAY)
        steps.append("recorded")
        assert first_request() is None, "nobody asked for it"
    assert steps == ["recorded"]


class Worker(threading.Thread):
    """A thread that takes steps until it is interrupted, in each of these blocks in turn."""

    def __init__(self, *blocks: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        super().__init__(daemon=True)
        self.blocks, self.next, self.began, self.reasons = blocks, threading.Event(), threading.Semaphore(0), [""]
        self.start()

    def run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                for block in self.blocks:
                    stack.enter_context(block())
                    self.began.release()
                    while not self.next.wait(0.01):
                        pass
                    self.next.clear()
        except KeyboardInterrupt as error:
            self.reasons.append(str(error))


def test_another_thread_than_the_main_one_is_interrupted() -> None:
    """A search of a notebook may run in any thread."""
    worker = Worker(signals_as_interrupts)
    worker.began.acquire()
    interrupt(worker, DEAD_RAY)
    worker.join(30)
    assert worker.reasons[-1] == DEAD_RAY.text


def test_a_thread_is_not_interrupted_while_it_records_an_end() -> None:
    worker = Worker(contextlib.nullcontext, signals_as_interrupts, noted_only)
    worker.began.acquire()
    interrupt(worker, DEAD_RAY)  # it is no search yet
    worker.next.set()
    worker.began.acquire()
    worker.next.set()
    worker.began.acquire()
    interrupt(worker, DEAD_RAY)  # it records its end
    worker.next.set()
    worker.join(30)
    interrupt(worker, DEAD_RAY)  # it has ended
    assert worker.reasons == [""]


def test_a_signal_is_only_noted_while_an_end_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SAME_REQUEST_S", -1.0)
    steps = []
    with signals_as_interrupts():
        with noted_only():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("recorded")
        steps.append("after")
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        assert first_request() == signal.SIGTERM
    assert steps == ["recorded", "after"]


def test_nohup_is_respected() -> None:
    """What ignores SIGHUP and SIGQUIT at its start goes on ignoring them; SIGTERM still ends it."""
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGQUIT)]
    try:
        with signals_as_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGQUIT)
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in zip((signal.SIGHUP, signal.SIGQUIT), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "other"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_what_a_script_ignores_stays_ignored(number: signal.Signals, other: signal.Signals) -> None:
    """`wmlsearch tune &` in a script: Ctrl-C is for the program in the foreground."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals_as_interrupts(), handled(lambda _: pytest.fail("it was ignored")):
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted), signals_as_interrupts():
            os.kill(os.getpid(), other)
    finally:
        signal.signal(number, before)


def test_other_threads_set_no_handlers() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with signals_as_interrupts(), handlers_kept():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert during == [before]


def test_processes_started_with_kept_handlers_survive_the_terminal() -> None:
    """As `ray.init`, which replaces the handler of SIGTERM and starts servers in the terminal's process group."""
    with signals_as_interrupts():
        ours = signal.getsignal(signal.SIGTERM)
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda *_: None)
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert signal.getsignal(signal.SIGTERM) == ours
    for number in (signal.SIGHUP, signal.SIGQUIT):
        os.kill(child.pid, number)
    child.communicate(b"\n", timeout=30)
    assert child.returncode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGHUP, signal.SIGQUIT}
