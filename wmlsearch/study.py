"""The whole of `wmlsearch tune`: search, final baseline, pictures; mirrored in MLflow as it goes."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wmlsearch import __version__
from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import check_trainable, epochs
from wmlsearch.runs import RunDir, SearchDir, check_new
from wmlsearch.space import Choices, SearchSpace
from wmlsearch.tracking import Mirror

OnChange = Callable[[RunDir], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a search or training leaves: where it is, why it ended early (or ""), and what MLflow lacks (or "")."""

    run: RunDir
    early: str
    mlflow_problem: str
    pictures: tuple[Path, ...] = ()


def tune(
    search: SearchDir, space: SearchSpace, settings: RunSettings, data: Path, mlflow_uri: str, on_change: OnChange
) -> Outcome:
    """Search `space` on prepared `data`, then train the paper's baseline under the same budget.

    Everything is in the run folder before it is anywhere else; `on_change` hears of each change. Raises InputError for
    what can't run, before anything is started.
    """
    from wmlsearch.search.cluster import embedded, local_slots
    from wmlsearch.search.confirm import train_run
    from wmlsearch.search.trials import run_trials
    from wmlsearch.verdict.report import write_pictures

    about_data = _check(space, data)
    check_new(search.path)
    with search.owned():
        SearchDir.create(
            search.path,
            {
                "name": search.name,
                "kind": "search",
                "space": {"source": space.source, "values": space.mapping()},
                "settings": settings.model_dump(),
                "data": about_data,
                "versions": versions(),
            },
        )
        mirror = Mirror(search, mlflow_uri)

        def changed(run: RunDir) -> None:
            mirror.notify(run)
            on_change(run)

        early, state = "it broke off with an error", "failed"
        try:
            with embedded():
                early = run_trials(search, space, settings, data, local_slots(settings.trials), changed)
                if settings.baseline and not early.startswith("stopped"):
                    run = _final(search, settings, about_data)
                    changed(run)
                    train_run(run, TrialConfig(), settings, data, local_slots(1), changed)
            state = "interrupted" if early.startswith("stopped") else "completed"
        except KeyboardInterrupt:
            early, state = "stopped by Ctrl-C", "interrupted"
        finally:
            pictures = tuple(write_pictures(search, data)) if any(run.rows() for run in search.trials()) else ()
            search.set_status(state, early)
            on_change(search)
            problem = mirror.close()
    return Outcome(search, early, problem, pictures)


def train(
    run: RunDir,
    config: TrialConfig,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    workers: int = 1,
) -> Outcome:
    """Train one configuration: through Ray Train with `workers` ranks, or with 0 in this process. Raises InputError."""
    prepared = PreparedData.open(data)
    check_trainable(config, prepared, max(workers, 1))
    if workers:
        from wmlsearch.search.cluster import available_cpus, worker_slots

        if workers > available_cpus():
            raise InputError(
                f"--workers {workers}: each worker needs a CPU core, and this machine has {available_cpus()}; "
                f"use --workers {available_cpus()} or fewer"
            )
    check_new(run.path)
    RunDir.create(run.path, _about(run.name, "train", config, settings, _data(data, prepared)))
    mirror = Mirror(run, mlflow_uri)

    def changed(part: RunDir) -> None:
        mirror.notify(part)
        on_change(part)

    early = ""
    try:
        if workers:
            from wmlsearch.search.cluster import embedded
            from wmlsearch.search.confirm import train_run

            with embedded():
                train_run(run, config, settings, data, worker_slots(workers), changed, workers)
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


def _check(space: SearchSpace, data: Path) -> dict[str, Any]:
    """Refuse a search some of whose trials could not train on this data; returns what a run records of the data."""
    prepared = PreparedData.open(data)
    values = {}
    for name, dimension in space.dimensions.items():
        domain = dimension.domain
        if name == "depth":
            values[name] = max(domain.values) if isinstance(domain, Choices) else domain.high
    for config in (space.config(values), TrialConfig()):  # the deepest, and the baseline
        check_trainable(config, prepared)
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


def _final(search: SearchDir, settings: RunSettings, data: dict[str, Any]) -> RunDir:
    run = search.final("paper", settings.seed)
    return RunDir.create(run.path, _about(f"paper-seed{settings.seed}", "baseline", TrialConfig(), settings, data))


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
