"""The whole of `wmlsearch tune`: search, final baseline, pictures; mirrored in MLflow as it goes."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch import __version__
from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import check_trainable, epochs
from wmlsearch.runs import RUNNING, RunDir, SearchDir, check_new
from wmlsearch.space import Choices, SearchSpace
from wmlsearch.tracking import Mirror
from wmlsearch.verdict.leaderboard import leaderboard

if TYPE_CHECKING:
    from wmlsearch.search.cluster import Slots
    from wmlsearch.search.plan import Forecast

OnChange = Callable[[RunDir], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Where:
    """On what Ray a run is to be: the cluster at `ray_address`, or an embedded one; and how its trials are shaped."""

    ray_address: str | None = None
    storage: str | None = None  # a place for checkpoints that all machines reach; None: the run folders
    workers_per_trial: int = 1
    gpus_per_worker: float | None = None  # None: one, where there are GPUs

    def check_before_ray(self, trials: int) -> None:
        """Refuse what can't run, before Ray starts. Raises InputError."""
        if self.storage:
            from wmlsearch.search.checkpoints import check_writable

            check_writable(self.storage)
        if not self.ray_address:
            self.slots(trials)

    def slots(self, trials: int) -> Slots:
        """How many trials of this shape run at once. Raises InputError where none fits."""
        from wmlsearch.search.cluster import Request, cluster_nodes, free_memory_gb, plan_slots, this_machine

        request = Request(self.workers_per_trial, None, self.gpus_per_worker)
        if not self.ray_address:
            return plan_slots(this_machine(), request, trials, free_memory_gb())
        nodes = cluster_nodes()
        if len(nodes) > 1 and not self.storage:
            raise InputError(
                f"the cluster has {len(nodes)} machines, so checkpoints need a place that all of them reach: "
                "give --storage (a shared folder, or a URI such as s3://bucket/wmlsearch)"
            )
        return plan_slots(nodes, request, trials)

    def place(self, run: RunDir) -> str:
        """Where a run's checkpoints go: its folder, or its place in the storage."""
        if not self.storage:
            return str(run.path.resolve())
        about = run.path.parts[-3:] if run.path.parent.name in ("trials", "final") else run.path.parts[-1:]
        base, mark, options = self.storage.partition("?")  # a URI may end in options, such as ?region=eu-west-1
        return "/".join([base.rstrip("/"), *about]) + mark + options


HERE = Where()


@dataclass(frozen=True)
class Outcome:
    """What a search or training leaves: where it is, why it ended early (or ""), and what MLflow lacks (or "")."""

    run: RunDir
    early: str
    mlflow_problem: str
    pictures: tuple[Path, ...] = ()


def plan(
    space: SearchSpace, settings: RunSettings, data: Path, where: Where = HERE, say: Callable[[str], None] = print
) -> Forecast:
    """Forecast what `tune` would spend with these arguments; nothing is kept. Raises InputError as it does."""
    from wmlsearch.search.cluster import ray_at, watchdog
    from wmlsearch.search.nodes import parcel
    from wmlsearch.search.plan import forecast

    where.check_before_ray(settings.trials)
    _check(space, data, where.workers_per_trial)
    started = time.monotonic()
    with ray_at(where.ray_address), watchdog(say, lambda: "the measurement"):
        slots = where.slots(settings.trials)
        say(f"trials would run {slots}; timing three configurations ...")
        ray_s = time.monotonic() - started
        made = forecast(space, settings, parcel(data, send=bool(where.ray_address)), slots, where.slots(1))
    return dataclasses.replace(made, start_s=made.start_s + ray_s)


def tune(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    where: Where = HERE,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Search `space` on prepared `data`, then train the paper's baseline under the same budget.

    Everything is in the run folder before it is anywhere else; `on_change` hears of each change. Raises InputError for
    what can't run, before anything is started.
    """
    from wmlsearch.search.cluster import ray_at, watchdog

    check_new(search.path)
    where.check_before_ray(settings.trials)
    about_data = _check(space, data, where.workers_per_trial)
    with ray_at(where.ray_address), watchdog(say, lambda: _waiting(search)):
        slots = where.slots(settings.trials)
        say(f"trials run {slots}")
        about = {
            "name": search.name,
            "kind": "search",
            "space": {"source": space.source, "values": space.mapping()},
            "settings": settings.model_dump(),
            "data": about_data,
            "certificate": dataclasses.asdict(Manifest.read(data).certificate),
            "versions": versions(),
        }
        with search.owned():
            SearchDir.create(search.path, about)
            return _tune(search, space, settings, data, mlflow_uri, on_change, where, slots)


def _tune(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    where: Where,
    slots: Slots,
) -> Outcome:
    """A search in its own folder, mirrored: whatever happens, the folder says how it ended."""
    mirror = Mirror(search, mlflow_uri)

    def changed(run: RunDir) -> None:
        mirror.notify(run)
        on_change(run)

    early, state = "it broke off with an error", "failed"
    try:
        early = _search(search, space, settings, data, where, slots, changed)
        state = "interrupted" if early.startswith("stopped") else "completed"
    except KeyboardInterrupt:
        early, state = "stopped by Ctrl-C", "interrupted"
    finally:
        pictures = _pictures(search, data)
        search.set_status(state, early)
        on_change(search)
        problem = mirror.close()
    return Outcome(search, early, problem, pictures)


def _search(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Path,
    where: Where,
    slots: Slots,
    changed: OnChange,
) -> str:
    """The trials, then the baseline; returns why it ended early, or ""."""
    from wmlsearch.search.confirm import bring_back, train_run
    from wmlsearch.search.nodes import parcel
    from wmlsearch.search.trials import run_trials

    on_cluster = bool(where.ray_address)
    sent = parcel(data, send=on_cluster)
    early = run_trials(search, space, settings, sent, slots, where.place, changed, elastic=on_cluster)
    best = leaderboard(search).best
    if best is not None:
        run = RunDir(Path(best.path))
        bring_back(run, where.place(run))
    if settings.baseline and not early.startswith("stopped"):
        about = _about(f"paper-seed{settings.seed}", "baseline", TrialConfig(), settings, search.about()["data"])
        run = RunDir.create(search.final("paper", settings.seed).path, about)
        changed(run)
        train_run(run, TrialConfig(), settings, sent, where.slots(1), where.place(run), changed, elastic=on_cluster)
    return early


def _waiting(search: SearchDir) -> str:
    """The trainings that have been started and not reported yet; before its start a trial has no folder."""
    begun = [
        run for run in search.trials() + search.finals() if run.status().get("state") == RUNNING and not run.rows()
    ]
    return " or ".join(run.about()["name"] for run in begun) or "the next trial"


def _pictures(search: SearchDir, data: Path) -> tuple[Path, ...]:
    from wmlsearch.verdict.report import write_pictures

    return tuple(write_pictures(search, data)) if any(run.rows() for run in search.trials()) else ()


def train(
    run: RunDir,
    config: TrialConfig,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    workers: int = 1,
    where: Where = HERE,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train one configuration: through Ray Train with `workers` ranks, or with 0 in this process. Raises InputError."""
    prepared = PreparedData.open(data)
    check_trainable(config, prepared, max(workers, 1))
    where = dataclasses.replace(where, workers_per_trial=max(workers, 1))
    check_new(run.path)
    if workers:
        where.check_before_ray(1)
    RunDir.create(run.path, _about(run.name, "train", config, settings, _data(data, prepared)))
    mirror = Mirror(run, mlflow_uri)

    def changed(part: RunDir) -> None:
        mirror.notify(part)
        on_change(part)

    early = ""
    try:
        if workers:
            from wmlsearch.search.cluster import ray_at, watchdog
            from wmlsearch.search.confirm import train_run
            from wmlsearch.search.nodes import parcel

            on_cluster = bool(where.ray_address)
            with ray_at(where.ray_address), watchdog(say, lambda: run.name):
                sent = parcel(data, send=on_cluster)
                train_run(run, config, settings, sent, where.slots(1), where.place(run), changed, elastic=on_cluster)
        else:
            _train_here(run, config, settings, prepared, changed)
    except KeyboardInterrupt:
        early = "stopped by Ctrl-C"
        run.set_status("interrupted", early)
    except Exception as error:
        run.set_status("failed", str(error))
        raise
    finally:
        problem = mirror.close()
    return Outcome(run, early, problem)


def _train_here(run: RunDir, config: TrialConfig, settings: RunSettings, data: PreparedData, changed: OnChange) -> None:
    from wmlsearch.model.training import Diverged

    try:
        for report in epochs(
            config,
            data,
            max_epochs=settings.epochs,
            seed=settings.seed,
            precision=settings.precision,
            objective=settings.objective,
            last=run.last,
            best=run.best,
        ):
            run.append(report.row())
            changed(run)
        run.set_status(report.ended or "completed")
    except Diverged as error:
        run.set_status("diverged", str(error))


def own_data(out: Path, progress: Progress) -> Path:
    """The built-in phantom below `out`, made and prepared at the first call."""
    prepared = out / "phantom" / "prepared"
    if not (prepared / "manifest.json").is_file():
        raw = out / "phantom" / "raw"
        if not (raw / "dataset_description.json").is_file():
            write_phantom(raw, progress=lambda done, total: progress("making the phantom", done, total))
        prepare(raw, prepared, PrepareOptions(size=128), progress)
    return prepared


def versions() -> dict[str, str]:
    """What ran: for the record of a run."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "ray", "optuna", "mlflow")}
    return {"wmlsearch": __version__, "python": platform.python_version(), **packages, "commit": _commit()}


def _commit() -> str:
    """The git commit of a checkout that runs in place, or ""."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip()


def _check(space: SearchSpace, data: Path, workers: int) -> dict[str, Any]:
    """Refuse a search some of whose trials could not train on this data; returns what a run records of the data."""
    prepared = PreparedData.open(data)
    values = {}
    for name, hardest in (("depth", max), ("batch_size", min)):
        if name in space.dimensions:
            domain = space.dimensions[name].domain
            values[name] = hardest(domain.values if isinstance(domain, Choices) else (domain.low, domain.high))
    for config in (space.config(values), TrialConfig()):  # the hardest, and the baseline
        check_trainable(config, prepared, workers)
    if not any(row.lesion_pixels for row in prepared.manifest.slices if row.split == "val"):
        raise InputError(
            f"{data}: the validation slices hold no lesion, so no Dice can be measured; "
            "prepare with other --val-patients or another --seed"
        )
    return _data(data, prepared)


def _data(folder: Path, prepared: PreparedData) -> dict[str, Any]:
    manifest = prepared.manifest
    return {
        "name": folder.name,
        "fingerprint": manifest.fingerprint,
        "size": manifest.size,
        "plane": manifest.plane,
        "spacing_mm": manifest.spacing_mm,
        "split": manifest.split_level,
        "optimistic": manifest.optimistic,
    }


def _about(name: str, kind: str, config: TrialConfig, settings: RunSettings, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "config": config.model_dump(),
        "settings": settings.model_dump(),
        "data": data,
        "versions": versions(),
    }


def new_name(kind: str) -> str:
    """`search-20261123-201512`: a name for who gave none."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
