"""The memory of volumes that are read one after another; processes that end. How they share: test_prepare."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from wmlsearch.data import worker_pool
from wmlsearch.data.worker_pool import LARGE_BYTES

VOLUMES = """
import sys
from pathlib import Path
import numpy as np
from wmlsearch.data.worker_pool import LARGE_BYTES, return_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if "at once" in sys.argv:
    return_freed_memory()
before, kept = held(), []
for more in range(3):
    volume = np.ones(LARGE_BYTES + more, np.uint8)
    kept.append(bytearray(100_000))  # what is kept of it
    del volume
print(held() - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc keeps what was freed"
)
def test_what_is_kept_of_volumes_does_not_keep_their_memory() -> None:
    def held(*words: str) -> int:
        process = subprocess.run([sys.executable, "-c", VOLUMES, *words], capture_output=True, text=True, check=True)
        return int(process.stdout)

    assert held() > LARGE_BYTES
    assert held("at once") < LARGE_BYTES / 4


SCRIPT = """
import os, signal, sys
from wmlsearch.config import InputError
from wmlsearch.data.worker_pool import worker_pool

def end(number):
    os.kill(os.getpid(), signal.SIGKILL)

def read(function):
    try:
        with worker_pool(jobs=2, volumes=2, file_bytes=0) as call_each:
            print(list(call_each(function, [(-1,), (-2,)])))
    except InputError as error:
        print(error)

"""
GUARD = 'if __name__ == "__main__":\n    '


def output_of(last_line: str, folder: Path) -> str:
    file = folder / "script.py"
    file.write_text(SCRIPT + last_line)
    return subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True).stdout


def test_a_script_with_a_guard(tmp_path: Path) -> None:
    assert output_of(f"{GUARD}read(abs)", tmp_path) == "[1, 2]\n"


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    """Each process imports the script and would start processes again, which Python refuses."""
    lines = output_of("read(abs)", tmp_path).splitlines()
    assert lines[-1].startswith("the processes that read volumes ended at their start. Each of them imports the script")
    assert 'below `if __name__ == "__main__":`' in lines[-1]


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    said = output_of(f"{GUARD}read(end)", tmp_path)
    assert said.startswith("a process that reads volumes was killed, probably because memory ran out; try --jobs 1")


def test_processes_fit_into_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def processes(free: int, voxels: int) -> int:
        monkeypatch.setattr(worker_pool, "free_bytes", lambda: free)
        return worker_pool.processes_in_memory(voxels)

    assert processes(10**10, 10**8) == 3, "each takes 3.05 GB"
    assert processes(10**9, 10**8) == 1
    assert processes(10**9, 0) == 4, "2-D pictures"
