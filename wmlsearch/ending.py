"""How a search ends: final runs with several seeds, a champion, the sealed test, a verdict.

Each step is kept in the run folder and not done again when a search is resumed.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.manifest import SEALED, Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.jobs import Progress, Where, about_run
from wmlsearch.model.ensemble import ensemble_threshold
from wmlsearch.model.export import export, is_exported, load_exported
from wmlsearch.model.inference import Model
from wmlsearch.runs import GOOD, RUNNING, RunDir, SearchDir
from wmlsearch.verdict.champion import MEASURE, PAPER, Candidate, candidates, champion, to_confirm
from wmlsearch.verdict.evaluation import SLICES, VOLUMES, evaluate, judge, unit_means
from wmlsearch.verdict.leaderboard import leaderboard
from wmlsearch.views import TEST

if TYPE_CHECKING:
    from wmlsearch.search.cluster import Slots

BASELINE, CHAMPION = "baseline", "champion"


def confirm(
    search: SearchDir,
    settings: RunSettings,
    data: dict[str, Any],
    where: Where,
    slots: Slots,
    changed: Callable[[RunDir], None],
    say: Callable[[str], None],
) -> None:
    """Train the paper's configuration and the best others, with all seeds, through Ray Train, under the same budget.

    `data` is a parcel. Runs that have come to their end are left as they are. KeyboardInterrupt when the search is
    asked to stop.
    """
    from wmlsearch.search.budget import STOP_WISH
    from wmlsearch.search.confirm import Order, train_runs

    models: dict[str, tuple[dict[str, Any], dict[int, float]]] = {PAPER: (TrialConfig().model_dump(), {})}
    for run in to_confirm(leaderboard(search), settings.confirm_top):
        models[run.about()["name"]] = run.about()["config"], run.rate_factors()
    orders = []
    for seed in settings.final_seeds:
        for name, (config, factors) in models.items():
            run = search.final(name, seed)
            if run.begun() and run.state in GOOD:
                continue
            about = about_run(
                f"{name}-seed{seed}",
                "baseline run" if name == PAPER else "confirmation",
                TrialConfig(**config),
                settings.model_copy(update={"seed": seed}),
                search.about()["data"],
            )
            more = {"rate_factors": factors} if factors else {}
            orders.append(Order(run, {**about, "model": name, **more}, seed, where.place(run)))
    if not orders:
        return
    names = ", ".join(name for name in models if name != PAPER)
    seeds = f"{len(settings.final_seeds)} seed{'s' if len(settings.final_seeds) > 1 else ''}"
    say(f"final runs: the paper's configuration{f' and {names}' if names else ''}, {seeds} each, {slots}")
    before, began = search.used(), time.monotonic()

    def changed_or_stop(run: RunDir) -> None:
        passed = time.monotonic() - began
        held = slots.count * slots.workers * slots.gpus
        search.set_used(
            {
                "final_seconds": before["final_seconds"] + passed,
                "final_gpu_seconds": before["final_gpu_seconds"] + passed * held,
            }
        )
        changed(run)
        if search.stop_requested():
            raise KeyboardInterrupt(STOP_WISH)

    train_runs(orders, settings, data, slots, changed_or_stop, elastic=bool(where.ray_address))


def crown(
    search: SearchDir, settings: RunSettings, data: Path, changed: Callable[[RunDir], None], say: Callable[[str], None]
) -> bool:
    """Choose the champion on the validation patients; export it and the baseline. False where one of them is missing.

    A model is a folder `models/<role>`: its networks, the best one first, and what is known of it as metrics.
    """
    found = candidates(search)
    paper = next((it for it in found if it.name == PAPER and it.score is not None), None)
    best = champion(found)
    for role, candidate in ((BASELINE, paper), (CHAMPION, best)):
        if candidate is not None:
            changed(_keep_model(search, settings, data, role, candidate))
    if paper is None:
        say("no verdict: the baseline did not come to its end with all seeds")
    elif settings.confirm_top and best is None:
        say("no verdict: no other configuration than the paper's came to its end with all seeds")
    elif best is not None:
        spread = f", standard error {best.standard_error:.4f}" if best.standard_error is not None else ""
        say(f"champion by the validation patients: {best.name}, mean {MEASURE} {best.mean:.4f}{spread}")
    return paper is not None and best is not None


def _keep_model(search: SearchDir, settings: RunSettings, data: Path, role: str, candidate: Candidate) -> RunDir:
    """The folder of a model, made anew where it is another one than before, or was not finished."""
    kept, first = search.model(role), candidate.best
    runs = [first, *(run for run in candidate.runs if run.path != first.path)]
    key = [f"{run.name} {run.about()['key']}" for run in runs]
    if kept.begun() and kept.about()["members"] == key:
        if kept.state == "completed" and is_exported(kept.export):
            return kept
        for half in (kept.export, *kept.path.glob(f".{kept.export.name}.*")):  # its writer may have been killed
            shutil.rmtree(half, ignore_errors=True)
        kept.set_status(RUNNING)
    else:
        kept.remove()
        config = TrialConfig(**candidate.config)
        about = about_run(f"{role} ({candidate.name})", role, config, settings, search.about()["data"])
        factors = {"rate_factors": first.rate_factors()} if first.rate_factors() else {}
        RunDir.create(kept.path, {**about, "model": candidate.name, "members": key, **factors})
    models = [Model.of_run(run) for run in runs]
    export(models, kept.export, ensemble_threshold(models, PreparedData.open(data).val))
    values = [value for value in candidate.values if value is not None]
    spread = {f"{MEASURE}_sd": statistics.stdev(values)} if len(values) > 1 else {}
    if not kept.rows():
        kept.append({"epoch": 0, "time": time.time(), "ended": None, MEASURE: candidate.mean, **spread})
    kept.set_status("completed")
    return kept


def sealed_test(search: SearchDir, settings: RunSettings, data: Path, progress: Progress) -> dict[str, Any]:
    """Open the sealed test for the baseline and the champion, and judge; kept as the search's `test.json`."""
    roles = {role: load_exported(search.model(role).export) for role in (BASELINE, CHAMPION)}
    names = {role: search.model(role).about()["model"] for role in roles}
    fingerprint = Manifest.read(data).fingerprint
    own = fingerprint == search.about()["data"]["fingerprint"]
    by = {"run": search.name, "key": search.about()["key"], "path": str(search.path.resolve()), "models": names}
    found, gallery = evaluate(
        {role: it.members for role, it in roles.items()},
        data,
        by,
        {role: it.ensemble_threshold for role, it in roles.items() if it.ensemble_threshold},
        progress,
    )
    words = {BASELINE: "the paper's", CHAMPION: f"The found configuration ({names[CHAMPION]})"}
    members = [search.model(role).about()["members"] for role in roles]
    found |= {"names": names, "members": members, "verdict": judge(found, BASELINE, CHAMPION, words, settings.seed)}
    if own:
        search.set_gallery(gallery)
        for role in roles:
            search.model(role).set_test({"opened": found["opened"], "metrics": flat(found, role)})
    search.set_test(found, "" if own else fingerprint)  # last: a resumed search takes it for all of it
    return found


def flat(found: dict[str, Any], role: str) -> dict[str, float]:
    """A model's test scores as metrics of a run: mean over seeds, standard deviation where there are several."""
    metrics: dict[str, float] = {}
    members = found["models"][role]["members"]
    for scope, short in ((VOLUMES, "volumes"), (SLICES, "slices")):
        if scope not in members[0]:
            continue
        for key, end in (("pooled", ""), ("pooled_half", "_half")):
            for name in ("accuracy", "iou", "dice", "precision", "recall"):
                values = [it[scope][key][name] for it in members if it[scope][key][name] is not None]
                if values:
                    metrics[f"test_{short}_{name}{end}"] = statistics.fmean(values)
                if len(values) > 1:
                    metrics[f"test_{short}_{name}{end}_sd"] = statistics.stdev(values)
    means = [value for value in unit_means(found, role, "dice").values() if value is not None]
    if means:
        metrics[TEST] = statistics.fmean(means)
    return metrics


def root_of(run: RunDir) -> RunDir:
    """The search that a run belongs to, or the run itself."""
    above = SearchDir(run.path.resolve().parent.parent)  # which is / at /, where `parents` has an end
    return above if not isinstance(run, SearchDir) and above.begun() else run


def evaluate_again(run: RunDir, data: Path | None, progress: Progress) -> tuple[dict[str, Any], Path]:
    """`wmlsearch evaluate`: a search's models or a single training on the sealed test; and the file that it is in.

    Raises InputError where there is nothing to evaluate, or on other data that the models may have been trained on.
    """
    about = run.about()
    path = Path(root_of(run).about().get("data_path", ""))
    if data is None:
        data = path
        if not path.is_dir() or Manifest.read(data).fingerprint != about["data"]["fingerprint"]:
            raise InputError(
                f"{run.name}: the data that it was trained on are not at {path} any more; name them with --data"
            )
    own = Manifest.read(data).fingerprint == about["data"]["fingerprint"]
    if not own:
        _check_not_seen(path, data)
    fingerprint = "" if own else Manifest.read(data).fingerprint
    if isinstance(run, SearchDir):
        if lacking := [role for role in (BASELINE, CHAMPION) if not run.model(role).begun()]:
            raise InputError(
                f"{run.name}: has no {' and no '.join(lacking)} yet (state: {run.state}); go on with it by "
                f"`wmlsearch tune --resume {run.name}`, or name a single training"
            )
        settings = RunSettings.of(about["settings"])
        return sealed_test(run, settings, data, progress), run.test_file(fingerprint)
    by = {"run": run.name, "key": about["key"], "path": str(run.path.resolve())}
    found, _ = evaluate({"model": [Model.of_run(run)]}, data, by, progress=progress)
    run.set_test({**found, "metrics": flat(found, "model")}, fingerprint)
    return found, run.test_file(fingerprint)


def _check_not_seen(trained_on: Path, data: Path) -> None:
    """Refuse test slices that the models were trained or chosen on, as far as those data can still be read."""
    try:
        # Those with lesion: a slice without head looks the same in every data set.
        seen = {row.checksum: row for row in Manifest.read(trained_on).slices if row.lesion_pixels}
    except InputError:
        return
    sealed = Manifest.read(data / SEALED)
    if known := [(row, seen[row.checksum]) for row in sealed.slices if row.checksum in seen]:
        lines = [
            f"{row.patient or 'patient unknown'}, {row.source} slice {row.index}: is there "
            f"{other.patient or 'patient unknown'}, {other.source} slice {other.index}"
            for row, other in known[:5]
        ]
        raise InputError(
            f"{data}: {len(known)} of its test slices are train or validation slices of {trained_on}, so they would "
            "say nothing; leave those patients out",
            lines,
        )
