"""`tune --on-end COMMAND`: the user's command, run when a search has ended, however it ended.

It reads the JSON of `status --json` on its standard input. Nothing that it does changes the search or its exit status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import IO

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import signals_as_interrupts
from wmlsearch.runs.json_text import json_text
from wmlsearch.workflows.summaries import SearchSummary

LIMIT_S = 60.0  # then the command is ended; what takes longer can be started in the background
_SHOWN = 2000  # bytes of the command's output


class CommandAtEnd:
    """The command of a search; None runs nothing. It runs once, after the block, if the search has begun in it.

    The block has released the folder and Ray then, so the command can resume the search or start the next one.
    """

    def __init__(self, search: SearchDir, command: str | None, say: Callable[[str], None]) -> None:
        self.search, self.command, self.say = search, command, say
        self.begun = False
        self._once = threading.Lock()

    def __enter__(self) -> CommandAtEnd:
        return self

    def __exit__(self, *error: object) -> None:
        self.run()

    def run(self) -> None:
        """Run the command now, if the search has begun and the command has not run yet."""
        if self.command and self.begun and self._once.acquire(blocking=False):
            run_on_end(self.search, self.command, self.say)


def run_on_end(search: SearchDir, command: str, say: Callable[[str], None]) -> None:
    """Run the command with the summary of the search on its standard input; say what it printed, or why it failed."""
    try:
        with signals_as_interrupts():
            problem, output = _run(command, json_text(SearchSummary.of(search)))
    except KeyboardInterrupt as interrupt:
        problem, output = str(interrupt), ""
    except Exception as error:
        problem, output = f"{type(error).__name__}: {error}", ""
    if output:
        say(output)
    if problem:
        say(f"warning: the command of --on-end failed ({problem}); the search and its result are not affected")


def _run(command: str, text: str) -> tuple[str, str]:
    """Return why the command failed, or "", and the end of what it printed.

    Files hold its input and output: a process that it leaves in the background may keep them open, and one that never
    reads does not block. A session of its own keeps Ctrl-C and a closed terminal away from it.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(text.encode())
        given.seek(0)
        process = subprocess.Popen(  # noqa: S602 - it is the user's own command line
            command, shell=True, stdin=given, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        problem = ""
        try:
            if status := process.wait(LIMIT_S):
                problem = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
        except subprocess.TimeoutExpired:
            problem = f"it was ended after {LIMIT_S:g} s"
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return problem, _end_of(printed)


def _end_of(printed: IO[bytes]) -> str:
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(size - _SHOWN, 0))
    return printed.read().decode(errors="replace").strip()
