"""Predict what a search of many trials on many GPUs needs, from the measured cost of a trial, a report and a byte.

The live table of a terminal and checkpoints on an object store (moto's S3) are counted.

python -m benchmarks.scaling

Measures the constants (some minutes), writes them into docs/scaling.json, draws docs/images/scaling.png, and puts the
tables into docs/scaling.md. With `--keep` it measures nothing and takes the constants that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pyarrow import fs

from benchmarks import driver, simulated
from benchmarks.search_quality.tables import MEASURE, shipped_table
from benchmarks.table import machine
from wmlsearch.cli.live_display import REDRAWS_PER_S
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.checkpoint_size import checkpoint_bytes
from wmlsearch.search.checkpoints import KEPT_BEST
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.rungs import levels_of
from wmlsearch.search.samplers.forest import OWN_FOREST_TRIALS
from wmlsearch.search.tune_patches import reuse_all_actors
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.sync import push
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.placement import Placement

DOCS = Path(__file__).resolve().parents[1] / "docs"
TRIALS, EPOCHS, AT_ONCE = 1500, 5, 500  # of the simulation
BARE, BARE_EPOCHS, BARE_AT_ONCE = 100, (2, 12), 8  # trials of Tune alone, their reports in two runs, and its actors
MIRRORED = 12  # trials that are sent to MLflow, for its cost and bytes
BIN = 100  # trials of a point of the figure
# What is asked for: the search, and how long an epoch may take. With so early a first rung most trials are short, which
# is the most work for the driver.
SEARCH, GPUS, EPOCH_S = RunSettings(trials=10_000, grace_epochs=2), 1000, (1.0, 5.0, 30.0)
DATA_BYTES = 2 * 4918 * 256 * 256  # the paper's data set with its masks, 8 bit each
GPUS_PER_NODE = 8
STORAGE_BYTES_PER_S = 1e9  # of a shared file system, taken to say where it would give way


@dataclass(frozen=True)
class Constants:
    """Measured on one machine. Times are CPU times of the driver's process; bytes are without compression."""

    measured: str  # when and on what
    begin_ms: float  # a trial's proposal (forest) and folder, before any has ended
    begin_ms_per_trial: float  # more for each trial that has ended
    report_ms: float
    end_ms: float
    threads_ms_per_trial: float  # of the threads that fit forests and delete checkpoints in an object store
    redraw_ms: float  # of the thread that draws the live table, while `AT_ONCE` trials run
    bare_trial_ms: float  # of Tune and Ray themselves, all threads, for a trial beside its reports
    bare_report_ms: float  # of the same, for a report
    memory_bytes_per_trial: float
    bare_memory_bytes_per_trial: float
    result_bytes: float  # a report on its way to the driver
    folder_bytes_per_trial: float
    folder_bytes_per_report: float
    files_per_trial: float
    journal_bytes_per_trial: float
    journal_bytes_per_report: float
    mlflow_ms_per_trial: float  # in the mirror's process, SQLite
    mlflow_ms_per_report: float
    mlflow_rows_per_trial: float
    mlflow_rows_per_report: float
    mlflow_bytes_per_trial: float
    mlflow_bytes_per_report: float
    resume_ms_per_trial: float  # to rebuild the study of a resumed search
    improving_share: float  # of the epochs of recorded curves: only these upload `best.pt`


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Start and slope of the straight line through points, by least squares."""
    slope, start = statistics.linear_regression(xs, ys)
    return start, slope


def bins(values: Sequence[float], per_bin: int) -> list[float]:
    """The median of each stretch of values: what else the machine does lifts a mean."""
    return [statistics.median(values[at : at + per_bin]) for at in range(0, len(values) - per_bin + 1, per_bin)]


def _tree_bytes(folder: Path) -> tuple[int, int]:
    """Of all files below a folder: bytes, and how many there are."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def measure() -> tuple[Constants, simulated.Times]:
    """Run the simulation, and ask its folders what they hold."""
    settings = RunSettings(trials=TRIALS, epochs=EPOCHS, grace_epochs=2, baseline=False, forecast=False)
    bare = []
    for epochs in BARE_EPOCHS:
        with reuse_all_actors():  # as in a search: else it is the start of processes that is measured
            bare.append(driver.bare(settings.model_copy(update={"trials": BARE, "epochs": epochs}), BARE_AT_ONCE))
    bare_trial_s, bare_report_s = line(BARE_EPOCHS, [watch.trial_cpu_s for watch in bare])
    with tempfile.TemporaryDirectory(prefix="wmlsearch-bench-") as out, object_store() as storage:
        search = simulated.new_search(Path(out) / "search", settings)
        placement = Placement(storage=storage)
        put_checkpoints(placement, search, TRIALS)
        times = simulated.simulate(search, settings, AT_ONCE, placement)
        begin = bins(times.begin[AT_ONCE + OWN_FOREST_TRIALS :], BIN)  # from when a thread fits the forests
        begin_s, begin_slope_s = line([OWN_FOREST_TRIALS + BIN * (at + 0.5) for at in range(len(begin))], begin)
        rows_bytes = sum(len(json.dumps(row.as_json())) + 1 for row in search.trial(0).rows())
        journal = search.journal.read_text().splitlines(keepends=True)
        journal_reports = [len(text) for text in journal if '"intermediate_value"' in text]
        started = time.process_time()
        Study(search, simulated.space(), settings)
        resume_s = time.process_time() - started
        mlflow = _mlflow(search)
        folder_bytes, files = _tree_bytes(search.trial(0).path)  # with the mirror's ledger
        half = len(times.memory_bytes) // 2
        result = {"report": simulated.row(0, 1, EPOCHS), "epoch": 1, settings.objective: 0.5}
    return Constants(
        measured=f"{date.today()}, {machine()}",
        begin_ms=1000 * begin_s,
        begin_ms_per_trial=1000 * max(begin_slope_s, 0.0),
        report_ms=1000 * statistics.median(times.report),
        end_ms=1000 * statistics.median(times.end),
        threads_ms_per_trial=1000 * times.threads_s / TRIALS,
        redraw_ms=1000 * times.redraw_s,
        bare_trial_ms=1000 * bare_trial_s,
        bare_report_ms=1000 * bare_report_s,
        memory_bytes_per_trial=(times.memory_bytes[-1] - times.memory_bytes[half]) / half,
        bare_memory_bytes_per_trial=bare[-1].growth_mb * 2**20 / 100,
        result_bytes=len(pickle.dumps(result)),
        folder_bytes_per_trial=folder_bytes - rows_bytes,
        folder_bytes_per_report=rows_bytes / EPOCHS,
        files_per_trial=files,
        journal_bytes_per_trial=(sum(map(len, journal)) - sum(journal_reports)) / TRIALS,
        journal_bytes_per_report=statistics.fmean(journal_reports),
        resume_ms_per_trial=1000 * resume_s / TRIALS,
        improving_share=improving_share(),
        **mlflow,
    ), times


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """Run moto's S3 in another process, and return the URI of a storage in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own
    os.environ |= {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto", "AWS_EC2_METADATA_DISABLED": "true"}
    options = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        system, _ = fs.FileSystem.from_uri(f"s3://bucket/x?{options}&allow_bucket_creation=true")
        system.create_dir("wml-bucket")
        yield f"s3://wml-bucket/runs?{options}"
    finally:
        server.kill()
        server.wait()


def put_checkpoints(placement: Placement, search: SearchDir, trials: int) -> None:
    """Put small checkpoints of trials into the store, as their workers would: the driver only deletes them."""
    system, root = fs.FileSystem.from_uri(placement.checkpoint_location(search))

    def put(number: int) -> None:
        for name in ("last.pt", "best.pt"):
            with system.open_output_stream(f"{root}/trials/{number:04d}/{name}") as stream:
                stream.write(b"weights")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(trials)))


def improving_share() -> float:
    """Return the share of epochs that are the best so far, among the first epochs of the recorded curves."""
    best, improving, epochs = 0.0, 0, 0
    for curve in shipped_table().all:
        best = 0.0
        for row in curve.rows[: SEARCH.grace * SEARCH.reduction_factor]:  # a trial seldom goes further
            epochs += 1
            improving += row[MEASURE] > best
            best = max(best, row[MEASURE])
    return improving / epochs


def _mlflow(search: SearchDir) -> dict[str, float]:
    """What trials cost in MLflow: each is sent when it has begun, after each report, and when it has ended."""
    uri = default_uri(search.path.parent)
    client, database = connect(uri), search.path.parent / "mlflow.db"
    push(client, uri, search, search)

    def sent(run: RunDir) -> float:
        started = time.perf_counter()
        push(client, uri, run, search)
        return time.perf_counter() - started

    begin, report, end = [], [], []
    rows_before, bytes_before = _rows(database), database.stat().st_size
    for number in range(MIRRORED):
        run = search.trial(number)
        rows, status = run.rows(), run.status()
        run.reconcile([])
        run.set_status("running")
        begin.append(sent(run))
        for row in rows[:-1]:
            run.append(row)
            report.append(sent(run))
        run.append(rows[-1])
        run.set_status(status.state)
        end.append(sent(run))
    made, size = _rows(database) - rows_before, database.stat().st_size - bytes_before
    per_report = len(simulated.METRICS[: simulated.OURS]) + 1  # and best_dice, where an epoch is the best so far
    of_reports = per_report * EPOCHS * MIRRORED
    # A metric's row is as long as any other: bytes are shared out by rows.
    trial_ms = 1000 * (statistics.median(begin) + statistics.median(end) - statistics.median(report))
    return {
        "mlflow_ms_per_trial": trial_ms,
        "mlflow_ms_per_report": 1000 * statistics.median(report),
        "mlflow_rows_per_trial": (made - of_reports) / MIRRORED,
        "mlflow_rows_per_report": per_report,
        "mlflow_bytes_per_trial": size / made * (made - of_reports) / MIRRORED,
        "mlflow_bytes_per_report": size / made * per_report,
    }


def _rows(database: Path) -> int:
    """Of all tables of an SQLite file."""
    import sqlite3

    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return sum(connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in tables)  # noqa: S608 - names of its own tables


@dataclass(frozen=True)
class Need:
    """What a search needs. The first ones follow from how long an epoch takes."""

    reports_per_s: float
    trials_per_s: float
    tune_cores: float  # of Tune and Ray in the driver
    report_cores: float  # of what this project does for reports and the ends of trials
    proposal_cores: float  # of trials that begin
    thread_cores: float  # of the threads beside the loop: forests, deletions, the live table
    result_bytes_per_s: float
    checkpoint_bytes_per_s: float
    mirror_behind_s: float
    reports: float
    memory_bytes: float
    folder_bytes: float
    files: float
    journal_bytes: float
    mlflow_rows: float
    mlflow_bytes: float
    mlflow_cpu_s: float
    checkpoint_bytes: float
    data_bytes: float
    resume_s: float

    @property
    def cores(self) -> float:
        return self.tune_cores + self.report_cores + self.proposal_cores + self.thread_cores


def need(constants: Constants, settings: RunSettings, gpus: int, epoch_s: float) -> Need:
    """The model: everything is a number of trials or reports times its cost, or a rate of them."""
    c, trials = constants, settings.trials
    reports = sum(level.epochs for level in levels_of(settings))
    reports_per_s = gpus / epoch_s
    trials_per_s = reports_per_s * trials / reports
    last, best = checkpoint_bytes(TrialConfig())
    rows_per_s = 1000 / c.mlflow_ms_per_report  # what one process sends, a trial at a time, however many rows it has
    return Need(
        reports_per_s=reports_per_s,
        trials_per_s=trials_per_s,
        tune_cores=(reports_per_s * c.bare_report_ms + trials_per_s * c.bare_trial_ms) / 1000,
        report_cores=(reports_per_s * c.report_ms + trials_per_s * c.end_ms) / 1000,
        proposal_cores=trials_per_s * (c.begin_ms + c.begin_ms_per_trial * trials) / 1000,
        thread_cores=(trials_per_s * c.threads_ms_per_trial + REDRAWS_PER_S * c.redraw_ms) / 1000,
        result_bytes_per_s=reports_per_s * c.result_bytes,
        checkpoint_bytes_per_s=reports_per_s * (last + c.improving_share * best),
        mirror_behind_s=(gpus + trials_per_s) / rows_per_s,
        reports=reports,
        memory_bytes=trials * (c.memory_bytes_per_trial + c.bare_memory_bytes_per_trial),
        folder_bytes=trials * c.folder_bytes_per_trial + reports * c.folder_bytes_per_report,
        files=trials * c.files_per_trial,
        journal_bytes=trials * c.journal_bytes_per_trial + reports * c.journal_bytes_per_report,
        mlflow_rows=trials * c.mlflow_rows_per_trial + reports * c.mlflow_rows_per_report,
        mlflow_bytes=trials * c.mlflow_bytes_per_trial + reports * c.mlflow_bytes_per_report,
        mlflow_cpu_s=(trials * c.mlflow_ms_per_trial + reports * c.mlflow_ms_per_report) / 1000,
        checkpoint_bytes=gpus * (2 * last + best) + KEPT_BEST * best,
        data_bytes=gpus / GPUS_PER_NODE * DATA_BYTES,
        resume_s=trials * c.resume_ms_per_trial / 1000,
    )


def max_gpus(constants: Constants, settings: RunSettings, epoch_s: float) -> int:
    """So many keep one core of the driver busy. The live table takes its part whatever their number."""
    none = need(constants, settings, 0, epoch_s).cores
    return int((1 - none) / (need(constants, settings, 1, epoch_s).cores - none))


def rates(constants: Constants) -> str:
    """The table of what follows from how long an epoch takes."""
    needs = [need(constants, SEARCH, GPUS, epoch_s) for epoch_s in EPOCH_S]
    shown: list[tuple[str, Callable[[Need], str]]] = [
        ("reports a second", lambda demand: f"{demand.reports_per_s:.3g}"),
        ("trials begun a second", lambda demand: f"{demand.trials_per_s:.2g}"),
        ("driver, cores: Tune and Ray", lambda demand: f"{demand.tune_cores:.2g}"),
        ("driver, cores: reports and ends of trials", lambda demand: f"{demand.report_cores:.2g}"),
        ("driver, cores: proposals and folders", lambda demand: f"{demand.proposal_cores:.2g}"),
        ("driver, cores: forests, deletions, live table", lambda demand: f"{demand.thread_cores:.2g}"),
        ("**driver, cores in all (it has one)**", lambda demand: f"**{demand.cores:.2g}**"),
        ("results to the driver, MB/s", lambda demand: f"{demand.result_bytes_per_s / 1e6:.2g}"),
        ("checkpoints to the storage, GB/s", lambda demand: f"{demand.checkpoint_bytes_per_s / 1e9:.2g}"),
        ("MLflow is behind by, s", lambda demand: f"{demand.mirror_behind_s:.0f}"),
    ]
    head = " | ".join(f"{epoch_s:g} s" for epoch_s in EPOCH_S)
    lines = [f"| an epoch takes | {head} |", "|---|" + "---:|" * len(EPOCH_S)]
    lines += [f"| {what} | {' | '.join(show(demand) for demand in needs)} |" for what, show in shown]
    most = " | ".join(f"**{max_gpus(constants, SEARCH, epoch_s)}**" for epoch_s in EPOCH_S)
    return "\n".join([*lines, f"| **GPUs that one driver keeps busy** | {most} |"])


def totals(constants: Constants) -> str:
    """The table of what follows from the number of trials."""
    demand = need(constants, SEARCH, GPUS, 1.0)
    rows = [
        ("reports", f"{demand.reports:,.0f}"),
        ("driver's memory, beside what it has at first", f"{demand.memory_bytes / 1e6:,.0f} MB"),
        ("run folders", f"{demand.folder_bytes / 1e6:,.0f} MB in {demand.files:,.0f} files"),
        ("the study's journal", f"{demand.journal_bytes / 1e6:,.0f} MB"),
        ("MLflow's database", f"{demand.mlflow_bytes / 1e6:,.0f} MB in {demand.mlflow_rows / 1e6:.2g} million rows"),
        ("the mirror's process", f"{demand.mlflow_cpu_s / 60:,.0f} min, were each report sent by itself"),
        ("checkpoints at a time", f"{demand.checkpoint_bytes / 1e9:,.0f} GB"),
        (
            "the prepared data, to each node once",
            f"{demand.data_bytes / 1e9:,.0f} GB to {GPUS / GPUS_PER_NODE:.0f} nodes",
        ),
        ("to rebuild the study when a search is resumed", f"{demand.resume_s:.0f} s"),
    ]
    return "\n".join([f"| what | {SEARCH.trials:,} trials |", "|---|---:|", *(f"| {a} | {b} |" for a, b in rows)])


def inputs(constants: Constants) -> str:
    """The constants as a table."""
    numbers = {name: value for name, value in dataclasses.asdict(constants).items() if name != "measured"}
    shown = {name: f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for name, value in numbers.items()}
    lines = [f"| `{name}` | {value} |" for name, value in shown.items()]
    return "\n".join(["| constant | value |", "|---|---:|", *lines])


def breaks(constants: Constants) -> str:
    """The table of what gives way at how many GPUs, first of all first, with epochs of 5 seconds."""
    one = need(constants, SEARCH, 1, 5.0)
    last, best = checkpoint_bytes(TrialConfig())
    rows = [
        (max_gpus(constants, SEARCH, 5.0), "the driver: one core, all that it does"),
        (1 / one.proposal_cores, "proposals and folders alone: one core"),
        (STORAGE_BYTES_PER_S / one.checkpoint_bytes_per_s, "checkpoints to a shared storage that takes 1 GB/s"),
        (1e9 / one.result_bytes_per_s, "results to the driver, 1 GB/s"),
        (60 * 1000 / constants.mlflow_ms_per_report, "MLflow, if it may be a minute behind"),
    ]
    lines = [f"| {gpus:,.0f} | {what} |" for gpus, what in sorted(rows)]
    each = (
        f"`last.pt` is {last / 1e6:.0f} MB and uploaded after each epoch, `best.pt` {best / 1e6:.0f} MB after the "
        f"{constants.improving_share:.0%} of the epochs that are better than those before."
    )
    return "\n".join(["| GPUs | what gives way |", "|---:|---|", *lines, "", each])


TABLES: dict[str, Callable[[Constants], str]] = {
    "measured": lambda constants: f"Measured {constants.measured}.",
    "inputs": inputs,
    "rates": rates,
    "totals": totals,
    "breaks": breaks,
}


def filled(text: str, constants: Constants) -> str:
    """The document with its tables, each between two marks."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{table(constants)}\n{end}{rest.partition(end)[2]}"
    return text


def draw(constants: Constants, times: simulated.Times, path: Path) -> None:
    """Measured time of a report and of a proposal against the trials so far, with the model's lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    reports = bins(times.report, BIN * (EPOCHS - 1))
    begin = bins(times.begin, BIN)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    at = [BIN * number + BIN / 2 for number in range(len(reports))]
    left.plot(at, [1000 * s for s in reports], "o", markersize=4, label="measured")
    left.plot(at, [constants.report_ms] * len(at), label="model: constant")
    left.set(title="the driver's time for a report", ylabel="ms")
    at = [BIN * number + BIN / 2 for number in range(len(begin))]
    right.plot(at, [1000 * s for s in begin], "o", markersize=4, label="measured")
    ended = [max(0.0, n - AT_ONCE) for n in at]
    right.plot(at, [constants.begin_ms + constants.begin_ms_per_trial * n for n in ended], label="model: linear")
    right.set(title="the driver's time for a proposal and its folder")
    for axes in (left, right):
        axes.set(xlabel="trials so far", ylim=(0, None))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="measure nothing, take the constants that are there")
    path = DOCS / "scaling.json"
    if parser.parse_args().keep:
        constants = stored(path)
    else:
        constants, times = measure()
        path.write_text(json.dumps(dataclasses.asdict(constants), indent=1) + "\n")
        draw(constants, times, DOCS / "images" / "scaling.png")
    page = DOCS / "scaling.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), constants), encoding="utf-8")
    print(*(table(constants) for table in TABLES.values()), sep="\n\n")


def stored(path: Path) -> Constants:
    values: dict[str, Any] = json.loads(path.read_text())
    return Constants(**values)


if __name__ == "__main__":
    main()
