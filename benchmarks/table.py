"""The rows of a benchmark, each with its ratio against a reference of the same run, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD = "| what | wmlsearch | reference | ratio | aim | met |\n|---|---|---|---:|---|---|"


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is how many times better than the reference, by medians; None: not measured.

    `met` is whether the aim is met; None if this machine cannot measure it.
    """

    what: str
    ours: str
    reference: str = ""
    ratio: float | None = None
    aim: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        met = {True: "yes", False: "no", None: ""}[self.met]
        return f"| {self.what} | {self.ours} | {self.reference} | {ratio} | {self.aim} | {met} |"


def table(rows: Iterable[Row]) -> str:
    return "\n".join([HEAD, *map(str, rows)])


def machine() -> str:
    """Return a line about the machine of the measurements."""
    import torch  # not at import: benchmarks that measure memory do not load torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}, {gpu}, torch {torch.__version__}, Python {platform.python_version()}"


def show(
    doc: str | None,
    measure: Callable[..., list[Row]],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda _parser: None,
) -> None:
    """Run the command line of a benchmark: measure and print the table; `--json FILE` writes its rows too.

    `measure` gets the values of the options that `add_options` adds.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows into this file")
    add_options(parser)
    given = parser.parse_args()
    rows = measure(**{name: value for name, value in vars(given).items() if name != "json"})
    print(machine())
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "an unknown CPU")
