"""Signals that ask a process to end: what each does in each place, reasons and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from wmlsearch.runs.interrupts import (
    Interrupted,
    exit_status,
    first_request,
    handled,
    handlers_kept,
    noted_only,
    reason,
    signals_as_interrupts,
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


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
    with pytest.raises(Interrupted, match=why), signals_as_interrupts():
        os.kill(os.getpid(), number)
    assert (reason(number), exit_status(why), first_request()) == (why, status, number)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_another_request_has_the_status_of_ctrl_c() -> None:
    assert exit_status("stopped by `wmlsearch stop`") == 130


def test_a_hangup_is_no_second_request() -> None:
    """A closing terminal sends SIGHUP to a shell, which sends it on, and systemd sends it after SIGTERM."""
    seen: list[int] = []
    with handled(seen.append):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert seen == [signal.SIGTERM, signal.SIGINT]


def test_a_signal_is_only_noted_while_an_end_is_recorded() -> None:
    steps = []
    with signals_as_interrupts():
        with noted_only():
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("recorded")
        steps.append("after")
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert steps == ["recorded", "after"]
    assert first_request() == signal.SIGTERM


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
