"""A search without training that writes the run folders and rows of a real one at once, without a GPU."""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from wmlsearch.cli.live_display import SearchDisplay
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import DataRecord, SearchRecord, SpaceRecord, SplitCertificate
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.pbt import trial_record
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace
from wmlsearch.space.yaml_files import read_yaml
from wmlsearch.workflows.placement import LOCAL, Placement

# The metrics of an epoch. The last six are fillers, for the 25 metrics of the tracking benchmark.
METRICS = (
    "val_dice_patients_best", "train_loss", "val_loss", "val_dice", "val_iou", "val_precision", "val_recall",
    "val_accuracy", "val_dice_best", "val_threshold", "val_soft_dice", "val_average_precision", "val_dice_patients",
    "val_threshold_patients", "val_patients_empty", "learning_rate", "images_per_s", "epoch_s", "peak_memory_mb",
    *(f"other_{i}" for i in range(6)),
)  # fmt: skip
OURS = 19  # number of metrics that wmlsearch reports
DATA = DataRecord(name="prepared", fingerprint="0" * 64, size=256, plane="axial", axis=2, fit="pad", spacing_mm=1.0,
                  split="patient", optimistic=False)  # fmt: skip
CERTIFICATE = SplitCertificate(
    level="patient", patients={"train": [f"{i:02d}" for i in range(40)], "val": ["40", "41"]}
)


def row(number: int, epoch: int, epochs: int, metrics: int = OURS) -> dict[str, Any]:
    """Return the report of an epoch of trial `number`. Later trials are better, so that no scheduler stops one."""
    values = {name: 0.1234567 * (place + 1) / epoch for place, name in enumerate(METRICS[:metrics])}
    values["val_dice_patients_best"] = (1 - 1 / (number + 2)) * (1 - math.exp(-epoch / 4))
    return {"epoch": epoch, "time": time.time(), "ended": "completed" if epoch == epochs else None, **values}


def space() -> SearchSpace:
    """Return the default search space."""
    path = Path(__file__).resolve().parents[1] / "search_spaces" / "unet.yaml"
    return SearchSpace.from_mapping(read_yaml(path), path.name)


def new_search(folder: Path, settings: RunSettings) -> SearchDir:
    """Create a search folder as `wmlsearch tune` does."""
    record = SearchRecord(
        name=folder.name,
        kind="search",
        space=SpaceRecord(source="unet.yaml", values=space().to_mapping()),
        settings=settings,
        data=DATA,
        certificate=CERTIFICATE,
        versions={"wmlsearch": "0"},
    )
    return SearchDir.create(folder, record)


def new_trial(search: SearchDir, number: int) -> RunDir:
    """Create the folder of a trial with the baseline configuration, as a search does."""
    return RunDir.create(search.trial(number).path, trial_record(search.record(), number, TrialConfig()))


@dataclass
class Times:
    """CPU seconds of the driver's loop, in order. `benchmarks.scaling` plots them."""

    begin: list[float] = field(default_factory=list)  # of each trial: its proposal and its folder
    report: list[float] = field(default_factory=list)  # of each report but a trial's last
    end: list[float] = field(default_factory=list)  # of each trial's last report
    memory_bytes: list[int] = field(default_factory=list)  # resident, at the end of each trial
    threads_s: float = 0.0  # CPU seconds of all other threads of the process
    redraw_s: float = 0.0  # CPU seconds to draw the live table once, at the end


def simulate(search: SearchDir, settings: RunSettings, at_once: int, placement: Placement = LOCAL) -> Times:
    """Run the driver's objects through all trials of a search, with reports at once and without Ray's processes.

    The display is that of a terminal. Its table is drawn once, at the end: a search draws it by the clock.
    """
    slots, scheduler = Slots(at_once, 1, 1, 0.0), Scheduler(settings)
    study, budget = Study(search, space(), settings), Budget(search, settings, slots)
    location = placement.checkpoint_location
    retention = CheckpointRetention(location, _no_size, math.inf, settings.objective_names)
    console = Console(width=120, force_terminal=True, file=io.StringIO())
    display = SearchDisplay(console, search, space(), settings)
    recorder = Recorder(search, settings, study, budget, location, retention, display.update, scheduler)
    times, running, following = Times(), deque[tuple[Any, int]](), 0
    process_s, loop_s = time.process_time(), time.thread_time()
    while running or following < settings.trials:
        if len(running) < at_once and following < settings.trials:
            started = time.thread_time()
            assignment = recorder.begin(following)
            if assignment is None:
                raise RuntimeError(budget.reason)
            config = assignment.as_plain()
            times.begin.append(time.thread_time() - started)
            running.append((SimpleNamespace(config=config, run_metadata=SimpleNamespace(num_failures=0)), 1))
            following += 1
            continue
        trial, epoch = running.popleft()
        report = row(trial.config["number"], epoch, settings.epochs)
        result = {"report": report, "epoch": epoch, settings.objective: report[settings.objective]}
        last = epoch == settings.epochs
        result |= {"done": True, "ended": "completed"} if last else {}
        started = time.thread_time()
        (scheduler.on_trial_complete if last else scheduler.on_trial_result)(None, trial, result)
        recorder.on_trial_result(0, [], trial, result)
        (times.end if last else times.report).append(time.thread_time() - started)
        if last:
            times.memory_bytes.append(resident_bytes())
        else:
            running.append((trial, epoch + 1))
        if following == settings.trials and not times.redraw_s:  # while many trials run
            started = time.thread_time()
            console.print(display._latest_view())
            times.redraw_s = time.thread_time() - started
    retention.wait()
    times.threads_s = time.process_time() - process_s - (time.thread_time() - loop_s)
    return times


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _no_size(_: RunDir) -> int:
    return 0
