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
    """A process has not ended within its time."""


def call(
    function: Callable[..., Any],
    *arguments: Any,
    limit_s: float,
    watch: Callable[[int], None] | None = None,
    every_s: float = 0.1,
) -> Any:
    """What a module's function gives in a fresh Python; arguments and answer are plain (JSON).

    `watch(pid)` is called again and again while it runs. Raises Overdue when it takes longer than `limit_s` seconds,
    and RuntimeError with its error when it fails; in any case all processes that it has started are killed.
    """
    module = function.__module__
    if module == "__main__":  # python -m, whose name only its specification has
        module = sys.modules[module].__spec__.name  # type: ignore[union-attr]  # it is there
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
    """The children of a process, their children, and so on."""
    pids = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                pids += [int(child), *descendants(int(child))]
    return pids


def memory(pid: int) -> int:
    """Bytes of memory of a process, those that it shares with n others counted as an n-th (PSS); 0 if it has ended."""
    with contextlib.suppress(OSError):
        return _pss(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 0


def mapped(pid: int, folder: Path) -> int:
    """The part of `memory` that is files of a folder."""
    size, within = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:  # a mapping begins: its addresses, and its file at last
            within = f"{folder}/" in line
        elif within:
            size += _pss(line)
    return size


def _pss(text: str) -> int:
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
