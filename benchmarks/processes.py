"""Run functions in processes with a time limit, and measure the memory of processes (Linux)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CODE = """
import json, sys
from {module} import {name}
answer = {name}(*json.loads(sys.argv[1]))
with open(sys.argv[2], "w") as file:
    json.dump(answer, file)
"""


class Overdue(RuntimeError):
    """A process has not ended within its time limit."""


def call(
    function: Callable[..., Any],
    *arguments: Any,
    limit_s: float,
    watch: Callable[[int], None] | None = None,
    every_s: float = 0.1,
) -> Any:
    """Call a module's function in a fresh Python process, and return its result. Both ways the values are JSON.

    `watch(pid)` is called repeatedly while the function runs. Raises Overdue after `limit_s` seconds, and RuntimeError
    with the error if the function fails. On an overrun all processes that it has started are killed.
    """
    module = function.__module__
    if module == "__main__":  # run by python -m: only the module's specification has its name
        module = sys.modules[module].__spec__.name  # type: ignore[union-attr]  # python -m gives the module a specification
    code = _CODE.format(module=module, name=function.__name__)
    with tempfile.TemporaryDirectory() as folder:
        answer, errors = Path(folder) / "answer.json", Path(folder) / "errors"
        command = [sys.executable, "-c", code, json.dumps(arguments), str(answer)]
        with errors.open("wb") as stream:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)  # noqa: S603 - our own code
        end = time.monotonic() + limit_s
        try:
            while process.poll() is None:
                if time.monotonic() > end:
                    raise Overdue(f"{function.__name__} has not ended within {limit_s:g} s")
                if watch:
                    watch(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(every_s)
        finally:
            for pid in (*descendants(process.pid), process.pid) if process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            raise RuntimeError(f"{function.__name__} failed:\n{errors.read_text(errors='replace')[-2000:]}")
        return json.loads(answer.read_text())


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    pids = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                pids += [int(child), *descendants(int(child))]
    return pids


def memory(pid: int) -> int:
    """Return a process's proportional set size in bytes: memory shared by n processes counts 1/n. 0 if it has ended."""
    with contextlib.suppress(OSError):
        return _pss(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 0


def mapped(pid: int, folder: Path) -> int:
    """Return the part of `memory` that maps files of a folder."""
    size, within = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:  # a mapping begins: its addresses, and its file at last
            within = f"{folder}/" in line
        elif within:
            size += _pss(line)
    return size


def _pss(text: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
