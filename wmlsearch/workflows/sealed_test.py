"""Evaluation on the sealed test patients: at the end of a search, and by `wmlsearch evaluate`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError, RunSettings
from wmlsearch.data.manifest import SEALED, Manifest
from wmlsearch.inference.export import load_exported
from wmlsearch.inference.predictor import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.tracking.ui_views import TEST
from wmlsearch.verdict.evaluation import SLICES, VOLUMES, evaluate, judge, unit_means
from wmlsearch.workflows.observer import Progress

if TYPE_CHECKING:
    pass


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


def parent_search(run: RunDir) -> RunDir:
    """The search that a run belongs to, or the run itself."""
    above = SearchDir(run.path.resolve().parent.parent)  # which is / at /, where `parents` has an end
    return above if not isinstance(run, SearchDir) and above.exists() else run


def evaluate_run(run: RunDir, data: Path | None, progress: Progress) -> tuple[dict[str, Any], Path]:
    """`wmlsearch evaluate`: a search's models or a single training on the sealed test; and the file that it is in.

    Raises InputError where there is nothing to evaluate, or on other data that the models may have been trained on.
    """
    about = run.about()
    path = Path(parent_search(run).about().get("data_path", ""))
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
        if lacking := [role for role in (BASELINE, CHAMPION) if not run.model(role).exists()]:
            raise InputError(
                f"{run.name}: has no {' and no '.join(lacking)} yet (state: {run.state}); go on with it by "
                f"`wmlsearch tune --resume {run.name}`, or name a single training"
            )
        settings = RunSettings.of(about["settings"])
        return sealed_test(run, settings, data, progress), run.test_file(fingerprint)
    by = {"run": run.name, "key": about["key"], "path": str(run.path.resolve())}
    found, _ = evaluate({"model": [TrainedModel.from_run(run)]}, data, by, progress=progress)
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
