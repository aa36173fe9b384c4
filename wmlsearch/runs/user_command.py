"""A shell command of the user: run with a text on its standard input, by this process or in place of it.

A batch job ends when its first process ends. `replace_process` therefore runs the command in place of this process:
threads and locks are gone, the process id stays until the command ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from wmlsearch.runs.python_process import module_command, module_path

COMMAND_LIMIT_S = 60.0  # then the command is killed; it can start longer work in the background
_SHOWN = 2000  # bytes of the command's output
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Order:
    """What the program that replaces a process is to do."""

    command: str
    text: str  # for its standard input
    environment: dict[str, str]
    claim: str  # a file that said that the replaced process holds a folder; it is removed
    status: int  # the exit status, whatever the command does


def run(command: str, text: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return why the command failed, or "", and the end of what it printed.

    Files hold its input and output: a process that it leaves in the background may keep them open, and one that never
    reads does not block. A session of its own keeps Ctrl-C and a closed terminal away from it.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(text.encode())
        given.seek(0)
        process = subprocess.Popen(  # noqa: S602 - it is the user's own command line
            command, shell=True, stdin=given, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment,
        )  # fmt: skip
        problem = ""
        try:
            if status := process.wait(COMMAND_LIMIT_S):
                problem = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
        except subprocess.TimeoutExpired:
            problem = f"it was ended after {COMMAND_LIMIT_S:g} s"
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return problem, _end_of(printed)


def lines(problem: str, output: str) -> list[str]:
    """Return what to tell the user about a command that has ended: the end of its output, and its problem."""
    messages = [output] if output else []
    if problem:
        messages.append(
            f"warning: the command of --on-end failed ({problem}); the search and its result are not affected"
        )
    return messages


def replace_process(order: Order) -> None:
    """Let a small program take the place of this process, and do what `order` says. Returns only if that fails."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(asdict(order)).encode())
        file.seek(0)
        os.dup2(file.fileno(), 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # they come once the program has its handlers
        environment = {**order.environment, "PYTHONPATH": module_path(order.environment)}
        os.execve(sys.executable, module_command("wmlsearch.runs.user_command"), environment)  # noqa: S606 - this interpreter


def _replaced() -> int:
    """Do what the order on standard input says; return the exit status."""
    order = Order(**json.load(sys.stdin))
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal or file that cannot show all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in _SIGNALS:  # a function, since the command would inherit "ignored"
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with contextlib.suppress(OSError):  # other processes see that this claim's process has ended
        Path(order.claim).unlink()
    try:
        messages = lines(*run(order.command, order.text, order.environment))
    except (OSError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        messages = lines(str(error), "")
    with contextlib.suppress(OSError):
        print(*messages, sep="\n", flush=True)
    return order.status


def _end_of(printed: IO[bytes]) -> str:
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(size - _SHOWN, 0))
    return printed.read().decode(errors="replace").strip()


if __name__ == "__main__":
    os._exit(_replaced())
