"""The time that `wmlsearch --help` takes, compared with a Python that only imports click.

    python -m benchmarks.startup

It runs fresh processes in turn, 7 of each after one that warms the disk cache, and compares medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.table import Row, show

REPEATS = 7
AIM_S = 0.3
OURS = (sys.executable, "-m", "wmlsearch", "--help")
REFERENCE = (sys.executable, "-c", "import click")


def measure() -> list[Row]:
    """Return the medians of both, and the additional time of `--help`."""
    pairs = [(_seconds(OURS), _seconds(REFERENCE)) for _ in range(REPEATS + 1)][1:]
    ours, reference = (statistics.median(times) for times in zip(*pairs, strict=True))
    more = statistics.median(a - b for a, b in pairs)
    return [
        Row(
            "`wmlsearch --help`",
            f"{ours:.2f} s ({more:.2f} s more)",
            f"`import click`: {reference:.2f} s",
            reference / ours,
            f"less than {AIM_S} s more",
            more < AIM_S,
        )
    ]


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - our own code
    return time.perf_counter() - start


if __name__ == "__main__":
    show(__doc__, measure)
