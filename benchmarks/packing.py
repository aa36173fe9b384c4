"""The baseline trained by one to four processes at once on one GPU, compared with one process.

    python -m benchmarks.packing [--json FILE]

It counts the images per second of all processes together in steady state. Every process has the data on the GPU. Four
processes exist all the time, and those that do not train are idle. Needs the core only, as benchmarks.training does.
`--trials-per-gpu auto` measures the same through Ray.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.table import Row, show
from benchmarks.training import SIZE, phantom
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.throughput import SteadyTraining, mps_is_on

MAX_PROCESSES = 4  # processes at once
AIM = 3.0  # times what one alone trains
SECONDS, REPEATS = 2.0, 3  # of each number of processes, in turn
PATIENCE_S = 120.0


def measure() -> list[Row]:
    """Return a row for each number of processes, and one for the best number."""
    if not torch.cuda.is_available():
        return [Row("baseline, several trainings at once on one GPU", "no GPU here")]
    with tempfile.TemporaryDirectory() as folder:
        prepared = phantom(Path(folder), 30, SIZE)
        rates = together(prepared, "cuda", MAX_PROCESSES, SECONDS, REPEATS)
    return rows(rates)


def rows(rates: Sequence[float]) -> list[Row]:
    """Return the rows of the table for the images per second of 1, 2, ... trainings at once."""
    single, mps = rates[0], f"MPS {'on' if mps_is_on() else 'off'}"
    what = f"baseline, batch {TrialConfig().batch_size}, GPU, {mps}"
    measured = [
        Row(f"{what}, {count} at once", f"{rate:.0f} images/s", f"{single:.0f} images/s, one alone", rate / single)
        for count, rate in enumerate(rates, start=1)
    ]
    best = max(range(len(rates)), key=lambda place: rates[place])
    result, ratio = f"{best + 1} at once", rates[best] / single
    return [
        *measured,
        Row(f"{what}, trainings an hour at best", result, "one at a time", ratio, f"{AIM:g}", ratio >= AIM),
    ]


def together(prepared: Path, device: str, max_count: int, seconds: float, repeats: int) -> list[float]:
    """Return the median images per second of 1, 2, ..., `max_count` trainings at once, all together."""
    with processes(prepared, device, max_count) as others:
        measured: list[list[float]] = [[] for _ in others]
        for _ in range(repeats):
            for count in range(1, max_count + 1):
                for other in others[:count]:
                    other.send(seconds)
                measured[count - 1].append(sum(_answer(other) for other in others[:count]))
    return [statistics.median(rates) for rates in measured]


@contextmanager
def processes(prepared: Path, device: str, count: int) -> Iterator[list[Connection]]:
    """Start `count` processes that are ready to train. Each gets a number of seconds and returns images per second."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    started = [context.Process(target=_serve, args=(str(prepared), device, child_end)) for _, child_end in pipes]
    try:
        for process, (_, child_end) in zip(started, pipes, strict=True):
            process.start()
            child_end.close()
        ours = [mine for mine, _ in pipes]
        for mine in ours:
            _answer(mine)  # wait until it is ready
        yield ours
    finally:
        for process in started:
            if process.pid is not None:
                process.kill()
                process.join()


def _serve(prepared: str, device: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pace = SteadyTraining(TrialConfig(), PreparedData.open(Path(prepared), device))
    pipe.send(0.0)
    while True:
        pipe.send(pace.images_per_s(pipe.recv()))


def _answer(pipe: Connection) -> float:
    """Return the next answer of a process. Raises RuntimeError if the process has ended or does not answer."""
    if not pipe.poll(PATIENCE_S):
        raise RuntimeError(f"a training process has not answered within {PATIENCE_S:g} s")
    try:
        return float(pipe.recv())
    except EOFError:
        raise RuntimeError("a training process has ended with an error") from None


if __name__ == "__main__":
    show(__doc__, measure)
