"""The driver at scale: a search whose trials train nothing, compared with the same number of plain Tune trials.

python -m benchmarks.driver

Both run the same actors (benchmarks/ready.py: a reused class trainable whose steps return at once), one after the
other, each on an embedded Ray with the same number of trials at once. The bare trials have no searcher, scheduler or
callback. The search is `run_trials` with study, forest, ASHA (which gets all reports and stops no trial), budget, run
folders, checkpoint retention, and the mirror to MLflow's SQLite store. The seconds after the first fifth of the trials
are compared, when all actors run; the seconds from the beginning are shown too.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
from ray import tune

from benchmarks.ready import Ready
from benchmarks.simulated import new_search, resident_bytes, row, space
from benchmarks.table import Row, show
from wmlsearch.cluster import connect, resources
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import AnyDir
from wmlsearch.runs.schema import RUNNING
from wmlsearch.search import tune_loop
from wmlsearch.tracking.mirror import Mirror
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.checkpoint_usage import CheckpointUsage
from wmlsearch.workflows.placement import LOCAL

TRIALS, EPOCHS, AT_ONCE = 300, 10, 16
WARM = 1 / 5  # share of the trials after which all actors run


@dataclass
class Watch:
    """The times at which trials ended, with the memory and the CPU seconds of this process at these times."""

    started: float = field(default_factory=time.monotonic)
    ended: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)  # resident
    cpu_s: list[float] = field(default_factory=list)

    def one_more(self) -> None:
        self.ended.append(time.monotonic() - self.started)
        self.memory_mb.append(resident_bytes() / 2**20)
        self.cpu_s.append(time.process_time())

    @property
    def warm(self) -> int:
        """The number of trials after which all actors run."""
        return int(WARM * len(self.ended))

    @property
    def trial_s(self) -> float:
        """Seconds from one trial to the next, after all actors run."""
        return (self.ended[-1] - self.ended[self.warm - 1]) / (len(self.ended) - self.warm)

    @property
    def trial_cpu_s(self) -> float:
        """CPU seconds of all threads of this process for a trial, after all actors run."""
        return (self.cpu_s[-1] - self.cpu_s[self.warm - 1]) / (len(self.ended) - self.warm)

    @property
    def growth_mb(self) -> float:
        """Growth of memory per 100 trials after all actors run, MiB."""
        return 100 * (self.memory_mb[-1] - self.memory_mb[self.warm - 1]) / (len(self.ended) - self.warm)


@contextlib.contextmanager
def ray_with_cores(at_once: int) -> Iterator[None]:
    """Start an embedded Ray that assumes a core for each of `at_once` actors."""
    with patch.object(resources, "available_cpus", lambda: at_once), connect.ray_session(None):
        yield


def job(settings: RunSettings) -> dict[str, Any]:
    return {"shipment": {"row": row(0, 1, settings.epochs)}, "settings": settings.model_dump(), "threads": 1}


def bare(settings: RunSettings, at_once: int) -> Watch:
    """Run plain Tune trials, without searcher, scheduler and callbacks."""
    with ray_with_cores(at_once), tempfile.TemporaryDirectory(prefix="wmlsearch-bench-") as folder:
        watch = Watch()

        def look(_: str, result: Mapping[str, Any]) -> bool:
            if result.get("ended"):
                watch.one_more()
            return False

        trainable = tune.with_parameters(Ready, job=job(settings))
        tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": 1}])),
            param_space={"number": tune.grid_search(list(range(settings.trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=folder,
                stop=look,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    return watch


def search(settings: RunSettings, at_once: int) -> tuple[Watch, float, int, int, int]:
    """Run the search.

    Returns its times, seconds until the mirror was done, epochs in the study, epochs in the run folders, journal bytes.
    """
    slots = resources.Slots(at_once, 1, 1, 0.0)
    with ray_with_cores(at_once), tempfile.TemporaryDirectory(prefix="wmlsearch-bench-") as folder:
        made = new_search(Path(folder) / "search", settings)
        watch, ended = Watch(), set[str]()
        mirror, checkpoints = Mirror(made, default_uri(Path(folder))), CheckpointUsage(made, LOCAL)

        def changed(run: AnyDir) -> None:
            checkpoints.update(run)
            mirror.notify(run)
            if run.name not in ended and run.state != RUNNING:
                ended.add(run.name)
                watch.one_more()

        with patch.object(tune_loop, "TrialWorker", Ready):
            tune_loop.run_trials(
                made,
                space(),
                settings,
                job(settings)["shipment"],
                slots,
                location=LOCAL.checkpoint_location,
                on_change=changed,
            )
        over = time.monotonic()
        if problem := mirror.close(600):
            raise SystemExit(f"the mirror: {problem}")
        behind_s = time.monotonic() - over
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(made.journal)))
        study = optuna.load_study(study_name=made.name, storage=storage)
        study_epochs = sum(len(trial.intermediate_values) for trial in study.get_trials(deepcopy=False))
        folder_epochs = sum(len(run.rows()) for run in made.trials())
        return watch, behind_s, study_epochs, folder_epochs, made.journal.stat().st_size


def measure() -> list[Row]:
    settings = RunSettings(trials=TRIALS, epochs=EPOCHS, grace_epochs=2, baseline=False, forecast=False)
    reference = bare(settings, AT_ONCE)
    ours, behind_s, study_epochs, folder_epochs, journal_bytes = search(settings, AT_ONCE)
    what = f"driver: {TRIALS} trials x {EPOCHS} epochs, {AT_ONCE} at once"
    ratio, warm = reference.trial_s / ours.trial_s, ours.warm
    return [
        Row(
            f"{what}, a trial once all run",
            f"{1000 * ours.trial_s:.0f} ms",
            f"bare Tune {1000 * reference.trial_s:.0f} ms",
            ratio,
            "at least 1/1.2",
            ratio >= 1 / 1.2,
        ),
        Row(
            f"{what}, all, with the start of the actors",
            f"{ours.ended[-1]:.0f} s",
            f"bare Tune {reference.ended[-1]:.0f} s",
            reference.ended[-1] / ours.ended[-1],
        ),
        Row(
            f"driver: memory at trial {warm} and {TRIALS}",
            f"{ours.memory_mb[warm - 1]:.0f} and {ours.memory_mb[-1]:.0f} MiB ({ours.growth_mb:.1f} per 100 trials)",
            f"bare Tune {reference.memory_mb[warm - 1]:.0f} and {reference.memory_mb[-1]:.0f} MiB "
            f"({reference.growth_mb:.1f} per 100 trials)",
            aim="flat",
        ),
        Row(
            "driver: the mirror is done after the last trial by",
            f"{behind_s:.1f} s, the study has {study_epochs} of {folder_epochs} epochs ({journal_bytes / 1e6:.1f} MB)",
            aim="keep up",
            met=behind_s < 10 and study_epochs == folder_epochs,
        ),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
