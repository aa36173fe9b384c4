"""What the stages of a visit do: the GPU tests, searches through Ray with and without faults, benchmarks.

`run(folder, small)` of each runs in the process of its stage; it gets an empty folder, and whether it only tries the
script on a CPU. It raises where something is not as documented, and notes numbers as it goes.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from processes import kill, slots
from search import Lines, Running, check_whole, differences, rows_of, tune_arguments
from visit_stages import MAX_LIMIT_S, note

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.folders import SearchDir
from wmlsearch.tracking.sync import is_mirrored
from wmlsearch.tracking.uri import default_uri

REPOSITORY = Path(__file__).resolve().parents[2]
INJECT = REPOSITORY / "tests" / "faults" / "inject"
END_S = MAX_LIMIT_S - 20  # for a search in a stage; its data set is made before
KILLS = 3
BENCHMARKS = ("training", "packing", "peak", "turnaround")
KERNELS = ("triton", "compile")
COMPILED = "tests/gpu/test_gpu_compiled.py"  # a stage of its own, since it compiles for minutes
LAST_LINES = 60  # of a search's output, which the log of its stage ends with


def gpu_tests(selection: Sequence[str], folder: Path, small: bool) -> None:
    """Run tests that need a GPU. Raises if a test fails, or none ran."""
    report = folder / "report.xml"
    options = ["-m", "gpu", "-rs", "-p", "no:cacheprovider", "--durations", "5", f"--junitxml={report}"]
    _command(sys.executable, "-m", "pytest", *selection, *options, check=False)
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(report).iter("testsuite"):  # noqa: S314 - pytest has just written it
        counts.update({name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")})
    failed = counts["failures"] + counts["errors"]
    note({"passed": counts["tests"] - failed - counts["skipped"], "failed": failed, "skipped": counts["skipped"]})
    if failed or counts["tests"] == counts["skipped"]:
        raise RuntimeError(f"{failed} of {counts['tests']} tests failed, {counts['skipped']} were skipped")


def benchmark(name: str, folder: Path, small: bool, options: Sequence[str] = ()) -> None:
    """Run `python -m benchmarks.NAME`, and note its rows."""
    rows = folder / "rows.json"
    _command(sys.executable, "-m", f"benchmarks.{name}", "--json", str(rows), *options)
    note(rows=json.loads(rows.read_text()))


def frameworks(names: Sequence[str], folder: Path, small: bool) -> None:
    """Compare with other frameworks. One that is not installed or fails is a row with the reason, not a failure."""
    benchmark("frameworks", folder, small, ["--limit-s", f"{END_S:g}", "--only", *names])


def search(trials_per_gpu: str, folder: Path, small: bool) -> None:
    """Search with ASHA, choose a champion and judge it on the sealed test, with MLflow on SQLite."""
    data, out = _phantom(folder, small), _runs(folder)
    sizes = ["--trials", 2 if small else 8, "--epochs", 3 if small else 16, "--grace-epochs", 1 if small else 4]
    ending = ["--confirm-top", 1 if small else 2, "--confirm-seeds", 1, "--final-runs", 1 if small else 3]
    sharing = [] if small else ["--trials-per-gpu", trials_per_gpu]
    words = ["quick", "--data", data, "--name", "s", "--scheduler", "asha", "--seed", 1, *sizes, *ending, *sharing]
    with LoggedSearch(out, *words) as running:
        status = running.end(END_S)
        note_search(running.search)
        _expect(status == 0, f"the search ended with status {status}", running)
        _check_devices(running.search, small)
        _check_mlflow(running.search)
        selection, evaluation = running.search.selection(), running.search.evaluation()
        _expect(selection is not None, "no champion was chosen", running)
        verdict = evaluation.verdict if evaluation else None
        note({"verdict": verdict.outcome if verdict else f"the baseline stays ({selection.sentence})"})
        if packing := running.search.record().packing:
            rates = "/".join(f"{rate:.0f}" for rate in packing["images_per_s"])
            note({"trials on a GPU": running.search.record().shape.trials_per_gpu, "images/s of 1, 2, ...": rates})


def killed_worker(folder: Path, small: bool) -> None:
    """Kill processes of trials (SIGKILL): each trial goes on, with no epoch lost or trained twice."""
    chance = random.Random(1)  # noqa: S311 - the same moments in each visit
    words, out = _short_search(folder, small, epochs=20 if small else 100)
    with LoggedSearch(out, *words) as running, Lines(running.search) as lines:
        for number in range(1, KILLS + 1):
            wanted = lines.count() + chance.randint(1, 5)
            running.until(lambda wanted=wanted: lines.count() >= wanted, END_S)
            time.sleep(chance.uniform(0, 0.3))  # a random time within an epoch
            lines.look()
            pid = chance.choice(slots(running.process.pid))
            killed_at = time.monotonic()
            _expect(kill(pid), f"process {pid} had ended", running)
            running.until(lambda pid=pid: bool(slots(running.process.pid)) and pid not in slots(running.process.pid))
            epochs = lines.count()
            running.until(lambda epochs=epochs: lines.count() > epochs)
            note({f"seconds from kill {number} to the next epoch": round(time.monotonic() - killed_at, 1)})
        _check_end(running, lines, trials=3, epochs=20 if small else 100, small=small)


def cuda_error(folder: Path, small: bool) -> None:
    """Break the GPU's context of one process by a failed assertion on the device: its trial goes on in another one."""
    words, out = _short_search(folder, small, epochs=10)
    fault = {"WMLSEARCH_FAULT_CUDA_ONCE": str(folder / "injected")}
    with LoggedSearch(out, *words, env=_injecting(fault)) as running, Lines(running.search) as lines:
        _check_end(running, lines, trials=3, epochs=10, small=small)
        _expect((folder / "injected").exists(), "no error was injected", running)
        said = re.findall(r"CUDA error: [^\n]*", running.text())
        note({"the output says": said[0].strip() if said else "nothing of the error"})


def broken_gpu(folder: Path, small: bool) -> None:
    """Fail each training with a CUDA error: the search ends, and says that no other machine is there."""
    words, out = _short_search(folder, small, epochs=10)
    with LoggedSearch(out, *words, env=_injecting({"WMLSEARCH_FAULT_CUDA": "1"})) as running:
        status = running.end(END_S)
        ended = running.search.status()
        note({"state": ended.state, "reason": ended.reason})
        _expect((status, ended.state) == (1, "failed"), f"status {status}, state {ended.state}", running)
        _expect("CUDA error" in ended.reason and "no other machine" in ended.reason, ended.reason, running)


def two_workers(folder: Path, small: bool) -> None:
    """Ask for trials with more workers than GPUs. With a GPU each they are refused; by default they train on CPUs.

    Workers of one trial cannot share a GPU, so half a GPU each is refused, too.
    """
    gpus = torch.cuda.device_count()
    words, out = _short_search(folder, small, epochs=4)
    with LoggedSearch(out, *words, "--workers-per-trial", gpus + 1, "--gpus-per-worker", 1) as running:
        status = running.end(END_S)
        refused = f"the nearest that fits: {gpus} worker" in running.text()
        note({f"{gpus + 1} workers with a GPU each": "refused" if refused else f"status {status}"})
        _expect(status == 2 and refused, f"{gpus + 1} workers with a GPU each were not refused", running)
    with LoggedSearch(out, *words, "--workers-per-trial", gpus + 1) as running, Lines(running.search) as lines:
        _check_end(running, lines, trials=3, epochs=4, small=True)
        note({f"{gpus + 1} workers, GPUs not asked for": "completed on CPUs"})
    halves = ["--workers-per-trial", 2 * gpus, "--gpus-per-worker", 0.5, "--name", "halves"]
    with LoggedSearch(out, *words, *halves, name="halves") as running:
        status = running.end(END_S)
        refused = "workers of one trial cannot share a GPU" in running.text()
        note({f"{2 * gpus} workers with half a GPU each": "refused" if refused else f"status {status}"})
        _expect(status == 2 and refused, f"{2 * gpus} workers with half a GPU each were not refused", running)


JOBS: dict[str, Callable[[Path, bool], None]] = {
    "tests": partial(gpu_tests, ("tests/gpu", f"--ignore={COMPILED}")),
    "search": partial(search, "1"),
    "search-auto": partial(search, "auto"),
    "killed-worker": killed_worker,
    "cuda-error": cuda_error,
    "broken-gpu": broken_gpu,
    "two-workers": two_workers,
    **{name: partial(benchmark, name) for name in BENCHMARKS},
    "compiled": partial(gpu_tests, (COMPILED,)),
    **{f"kernels-{name}": partial(benchmark, "training", options=("--kernels", name)) for name in KERNELS},
    "frameworks": partial(frameworks, ("pytorch", "pytorch-graphs", "monai")),
    "nnunet": partial(frameworks, ("nnunet",)),
}


def _command(*words: str, check: bool = True) -> None:
    status = subprocess.run(words, cwd=REPOSITORY, check=False).returncode
    if check and status:
        raise RuntimeError(f"{' '.join(words[1:4])} ended with status {status}")


def _phantom(folder: Path, small: bool) -> Path:
    """Make the prepared phantom of `make demo`, on which a search finds better configurations than the baseline."""
    patients = 12 if small else 34
    raw = write_phantom(folder / "raw", patients=patients, timepoints=1, shape=(48, 48, 16), lesion_size=3.0)
    prepare(raw, folder / "prepared", PrepareOptions(size=48))
    return folder / "prepared"


def _runs(folder: Path) -> Path:
    (folder / "runs").mkdir()
    return folder / "runs"


def _short_search(folder: Path, small: bool, epochs: int) -> tuple[list[Any], Path]:
    """Return the arguments of a search of three trials without final runs, and its folder of runs."""
    data, out = _phantom(folder, small), _runs(folder)
    return tune_arguments(out, data, trials=3, epochs=epochs), out


class LoggedSearch(Running):
    """A search whose last lines are printed into the stage's log, however it ends."""

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        print("\n".join(self.text().splitlines()[-LAST_LINES:]), flush=True)


def _injecting(faults: dict[str, str]) -> dict[str, str]:
    """Return the environment of a search with faults of `tests/faults/inject`."""
    paths = [str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **faults}


def _expect(holds: bool, fault: str, running: Running) -> None:
    """Raise with the fault and the search's own last line if something does not hold."""
    if not holds:
        lines = running.text().strip().splitlines() or ["no output"]
        raise RuntimeError(f"{fault}; the search's last line: {lines[-1].strip()}")


def _check_end(running: Running, lines: Lines, trials: int, epochs: int, small: bool) -> None:
    """Wait for the end of a short search, and check that each trial has each epoch once, in MLflow too."""
    status = running.end(END_S)
    note_search(running.search)
    _expect(status == 0, f"the search ended with status {status}", running)
    lost, doubled = lines.lost_and_doubled()
    note({"epochs lost": lost, "epochs twice": doubled})
    _expect((lost, doubled) == (0, 0), f"{lost} epochs lost, {doubled} twice", running)
    check_whole(running.search, trials=trials, epochs=epochs)
    _check_devices(running.search, small)
    missing = differences(running.search, running.out / "mlflow.db")
    _expect(missing == (0, 0, []), f"MLflow differs: {missing}", running)


def note_search(search: SearchDir) -> None:
    """Note what a search did: trials by state, epochs, times, memory."""
    runs = [*search.trials(), *search.finals()]
    rows = [row for run in runs for row in run.rows()]
    status, usage = search.status(), search.usage()
    note({"trials": Counter(run.state for run in search.trials()), "final runs": len(search.finals())})
    if rows:
        speeds = [speed for row in rows if row.epoch > 1 and (speed := row.metrics.get("images_per_s"))]
        peaks = [peak for row in rows if (peak := row.metrics.get("peak_memory_mb"))]
        note(
            {
                "epochs": len(rows),
                "seconds to the first epoch": round(min(row.time for row in rows) - status.started, 1),
                "seconds in all": round((status.ended or time.time()) - status.started, 1),
                "GPU seconds": round(usage.gpu_seconds + usage.final_gpu_seconds, 1),
                "images/s (median)": round(statistics.median(speeds)) if speeds else "unknown",
                "peak memory, MiB": round(max(peaks)) if peaks else "unknown",
            }
        )


def _check_devices(search: SearchDir, small: bool) -> None:
    if not small and not search.usage().gpu_seconds:
        raise RuntimeError("the trials held no GPU")


def _check_mlflow(search: SearchDir) -> None:
    """Check that MLflow has each epoch of each run, once."""
    store = search.path.parent / "mlflow.db"
    if not is_mirrored(search, default_uri(store.parent)):
        raise RuntimeError("MLflow does not have all of the search")
    with sqlite3.connect(store) as database:
        for run in [*search.trials(), *search.finals()]:
            query = "select key, step, timestamp, value from metrics where run_uuid = ?"
            stored = database.execute(query, (run.ledger().run_id,)).fetchall()
            lacks = set(rows_of(run)) - set(stored)
            if lacks:
                raise RuntimeError(f"MLflow lacks {len(lacks)} values of {run.name}")
