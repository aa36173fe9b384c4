"""Run all benchmarks one after another, each in a fresh process, and print their table. `make bench` calls this.

python -m benchmarks [--out FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.table import Row, machine, table

NAMES = (
    "training",
    "packing",
    "peak",
    "turnaround",
    "tracking",
    "driver",
    "memory",
    "prepare",
    "startup",
    "frameworks",
)
VERSIONS = ("ray", "optuna", "mlflow", "monai", "numpy")  # torch and Python are in the machine's line


def run(names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Run benchmarks, and return the rows of those that succeed and the names of those that fail."""
    rows: list[Row] = []
    failed = []
    for place, name in enumerate(names, 1):
        print(f"{place}/{len(names)} {name} ...", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows_file = Path(folder) / "rows.json"
            command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(rows_file)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - our own code
            if done.returncode:
                failed.append(name)
            else:
                rows += [Row(**row) for row in json.loads(rows_file.read_text())]
        word = "failed after" if done.returncode else "took"
        print(f"    {word} {time.monotonic() - start:.0f} s", flush=True)
    return rows, failed


def report(rows: Sequence[Row], failed: Sequence[str]) -> str:
    """Return the date, the machine, the versions and the table as text."""
    lines = [f"{time.strftime('%Y-%m-%d')}, {machine()}, {', '.join(map(_version, VERSIONS))}", "", table(rows)]
    lines += ["", f"failed: {', '.join(failed)}"] if failed else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"run these only, of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    rows, failed = run(given.names or NAMES)
    text = report(rows, failed)
    print(text)
    if given.out:
        given.out.write_text(text)
    sys.exit(1 if failed else 0)


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


if __name__ == "__main__":
    main()
