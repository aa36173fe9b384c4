"""The memory of volumes that are read one after another. How they are shared out: test_prepare."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

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
