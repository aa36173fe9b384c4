"""The report of a search: one HTML page with its figures and tables, from the run folder alone."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.forecast.comparison import compare_with_forecast
from wmlsearch.report import figures, sealed_figures
from wmlsearch.report.commands import point_yaml, space_yaml, train_commands, tune_command
from wmlsearch.report.importances import importances
from wmlsearch.report.tables import seconds_of, write_tables
from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import BAD, RUNNING, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard, leaderboard
from wmlsearch.runs.names import PAPER, trial_name
from wmlsearch.runs.objectives import MEASURE
from wmlsearch.runs.wording import duration
from wmlsearch.space import SearchSpace
from wmlsearch.verdict.champion import Candidate, candidates, champion
from wmlsearch.verdict.evaluation import SLICES, VOLUMES, unit_means
from wmlsearch.verdict.scores import SIZES
from wmlsearch.verdict.statistics import BETTER, WORSE
from wmlsearch.verdict.wording import PAPERS, RATIOS, compared_slices, mean_sd, optimistic_note

SHOWN = 20  # rows of a table before the rest is folded away
COLUMNS = 9  # hyperparameters with a column of their own; more stand in one
DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
LESIONS = ("lesion_recall", "lesion_precision", "lesion_f1")
# Table II of the paper: Dice that others reached on their own data.
OTHERS = (("Valverde", "0.56"), ("Roy", "0.5639"), ("Aslani", "0.6114 (ISBI), 0.6655 (NRU)"), ("Krüger", "0.45"),
          ("Hashemi", "0.5642 (U-Net), 0.703 (FC-DenseNet)"), ("Gessert", "0.656"), ("La Rosa", "0.62"),
          ("Cerri", "0.65, 0.58, 0.54, 0.58"))  # fmt: skip
WORDS = {"hd95_mm": "95 % Hausdorff distance (mm)", "hd95_px": "95 % Hausdorff distance (pixels)",
         "volume_error_abs_ml": "lesion volume error (ml)", "lesion_f1": "lesion-wise F1",
         "lesion_recall": "lesion-wise recall", "lesion_precision": "lesion-wise precision", "iou": "IoU"}  # fmt: skip


def write_report(search: SearchDir, status: Mapping[str, Any] | None = None) -> Path:
    """Write `report/index.html`, the figures and the tables of a search, running or finished; returns the page.

    The same folder gives the same bytes. `status` is how the search stands where its folder doesn't say so yet. Raises
    InputError for a damaged folder.
    """
    search.report.mkdir(exist_ok=True)
    about, status, board, found = search.about(), status or search.status(), leaderboard(search), candidates(search)
    space = SearchSpace.of(about["space"]["values"], about["space"]["source"])
    settings = RunSettings.of(about["settings"])
    test = search.test() if "verdict" in search.test() else {}
    best = champion(found)
    chosen = test["names"]["champion"] if test else best.name if best is not None else ""
    shares, note = importances(board, space)
    write_text(search.report / "space.yaml", space_yaml(space))
    page = _environment().get_template("page.html.j2").render(
        name=search.name,
        about=about,
        settings=settings,
        state=status.get("state", RUNNING),
        reason=status.get("reason", ""),
        warning=optimistic_note(about),
        test=_test(test),
        why_no_test=_why_no_test(settings, status.get("state", RUNNING), found),
        verdict=test.get("verdict"),
        better={BETTER: "good", WORSE: "bad"}.get(test["verdict"]["verdict"], "open") if test else "",
        figures=_figures(search, board, space, settings, found, chosen, test, shares),
        importances_note=note,
        board=board,
        columns=list(space.dimensions) if len(space.dimensions) <= COLUMNS else [],
        trials=[_row(rank, entry, board) for rank, entry in enumerate(board.trials, 1)],
        ends=_ends(board),
        failures=_failures(search),
        lineages=[_lineage(RunDir(Path(e.path))) for e in sorted(board.trials, key=lambda e: e.name) if e.parent],
        final=[_final(candidate, chosen) for candidate in found],
        measure=MEASURE,
        spent=_spent(search),
        compared=compare_with_forecast(search),
        compared_slices=compared_slices,
        champion=_champion(search, about, board, found, chosen),
        tables=write_tables(search, board, found, chosen, test),
        tune=tune_command(about),
        space_yaml=space_yaml(space),
        shown=SHOWN,
        others=OTHERS,
    )  # fmt: skip
    write_text(search.report / "index.html", page)
    return search.report / "index.html"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("wmlsearch", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(
        score=_score,
        signed=lambda value: _score(value, "+.4f"),
        p=_p,
        duration=_duration,
        words=_in_words,
        embedded=_embedded,
        width=_width,
    )
    return made


def _in_words(metric: str) -> str:
    return WORDS.get(metric, metric.replace("_", " "))


def _score(value: float | None, form: str = ".4f") -> str:
    """`0.7292`, with a true minus sign; a dash for what is not a number."""
    return DASH if value is None else f"{value:{form}}".replace("-", MINUS)


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float | None) -> str:
    return DASH if seconds is None else duration(seconds)


def _embedded(path: Path) -> str:
    """A picture as a data: URI, so that the page is whole wherever it goes."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _width(path: Path) -> int:
    """In CSS pixels, at which all figures' letters are of one size: from the PNG's header."""
    return round(int.from_bytes(path.read_bytes()[16:20], "big") * 100 / figures.DPI)


def _figures(
    search: SearchDir,
    board: Leaderboard,
    space: SearchSpace,
    settings: RunSettings,
    found: list[Candidate],
    chosen: str,
    test: Mapping[str, Any],
    shares: Mapping[str, float],
) -> dict[str, Path]:
    """Draw what there is something for; the others of an earlier report are deleted."""
    valued = any(entry.value is not None for entry in board.trials)
    pairs = sealed_figures.pairs_of(test) if test else []
    # On CPUs the peak is that of a process since its start, so it says little of a single trial.
    memory = figures.memory_of(board) if search.used()["gpu_seconds"] else []
    draw: dict[str, tuple[bool, Callable[[Path], object]]] = {
        "history": (valued, lambda path: figures.history(path, board)),
        "curves": (valued, lambda path: figures.curves(path, board, settings, found, chosen)),
        "front": (bool(board.front), lambda path: figures.pareto(path, board)),
        "rates": (valued and settings.scheduler == "pbt", lambda path: figures.rates(path, board)),
        "parallel": (valued and bool(space.dimensions), lambda path: figures.parallel(path, board, space)),
        "memory": (bool(memory), lambda path: figures.memory(path, memory)),
        "importances": (bool(shares), lambda path: figures.bars(path, shares)),
        "paired": (bool(pairs), lambda path: sealed_figures.paired(path, test)),
        "volumes": (bool(test), lambda path: sealed_figures.volumes(path, test)),
        "gallery": (bool(test), lambda path: sealed_figures.gallery(path, test, search.gallery())),
    }
    for name, (wanted, make) in draw.items():
        path = search.report / f"{name}.png"
        path.unlink(missing_ok=True)
        if wanted:
            make(path)
    made = {name: search.report / f"{name}.png" for name in (*draw, "examples")}
    return {name: path for name, path in made.items() if path.is_file()}


def _row(rank: int, entry: Entry, board: Leaderboard) -> dict[str, Any]:
    front = any(entry.path == other.path for other in board.front)
    return {
        "rank": "front" if front else rank if entry.value is not None and not board.objectives else "",
        "entry": entry,
        "state": entry.state.replace("_", " "),
        "values": [entry.best.get(name) for name in (board.objectives or (board.objective,))],
        "config": {name: f"{it:.3g}" if isinstance(it, float) else str(it) for name, it in entry.config.items()},
        "seconds": seconds_of(RunDir(Path(entry.path))),
        "paper": figures.is_paper(entry),
    }


def _ends(board: Leaderboard) -> list[dict[str, Any]]:
    """How trials ended: state, why, and which they are; the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in sorted(board.trials, key=lambda entry: entry.name):
        reason = entry.reason if entry.state not in BAD else _last_line(entry.reason)
        groups.setdefault((entry.state.replace("_", " "), reason), []).append(entry.name)
    ranked = sorted(groups.items(), key=lambda it: (-len(it[1]), it[0]))
    return [{"state": state, "reason": reason, "trials": names} for (state, reason), names in ranked]


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def _failures(search: SearchDir) -> list[dict[str, Any]]:
    """Trials and final runs that went wrong, the same errors together, with the first one's traceback."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for run in search.trials() + search.finals():
        status = run.status()
        if run.state in BAD:
            reason = status.get("reason", "")
            key = run.state, _last_line(reason)
            trace = status.get("traceback", "") or (reason if "\n" in reason.strip() else "")
            state = run.state.replace("_", " ")
            new: dict[str, Any] = {"state": state, "reason": key[1], "traceback": trace, "names": []}
            groups.setdefault(key, new)["names"].append(run.about()["name"])
    return list(groups.values())


def _lineage(run: RunDir) -> dict[str, Any]:
    about = run.about()
    parent = trial_name(about["parent"])
    return {"name": about["name"], "parent": parent, "epoch": about["parent_epoch"], "schedule": _factors(run)}


def _factors(run: RunDir) -> str:
    return ", ".join(f"{TIMES} {factor:g} from epoch {epoch}" for epoch, factor in run.rate_factors().items())


def _final(candidate: Candidate, chosen: str) -> dict[str, Any]:
    states = [run.state.replace("_", " ") for run in candidate.runs]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    role = "baseline" if candidate.name == PAPER else "champion" if candidate.name == chosen else ""
    return {"it": candidate, "role": role, "states": ", ".join(counts)}


def _spent(search: SearchDir) -> dict[str, str]:
    """Time, GPU-hours and epochs, of trials and final runs."""
    used = search.used()
    spent: dict[str, str] = {}
    for what, key, runs in (("trials", "seconds", search.trials()), ("final runs", "final_seconds", search.finals())):
        if epochs := sum(len(run.trained_rows()) for run in runs):
            spent |= {f"time of the {what}": duration(used[key]), f"epochs of the {what}": str(epochs)}
    gpu_s = used["gpu_seconds"] + used["final_gpu_seconds"]
    return {**spent, "GPU-hours": f"{gpu_s / 3600:.2f}" if gpu_s else "none used"}


def _champion(
    search: SearchDir, about: Mapping[str, Any], board: Leaderboard, found: list[Candidate], chosen: str
) -> dict[str, Any]:
    """The champion, or while there is none the best trial: its configuration, how to train it; {} without both."""
    known = next((candidate for candidate in found if candidate.name == chosen), None)
    (search.report / "champion.yaml").unlink(missing_ok=True)
    if known is not None:
        run, seeds = known.runs[0], [it.about()["settings"]["seed"] for it in known.runs]
    elif board.best is not None:
        run, seeds = RunDir(Path(board.best.path)), [about["settings"]["seed"]]
    else:
        return {}
    config = TrialConfig.of(run.about()["config"]).model_dump()
    write_text(search.report / "champion.yaml", point_yaml(config))
    return {
        "name": chosen or run.about()["name"],
        "confirmed": known is not None,
        "yaml": point_yaml(config),
        "commands": train_commands(about, seeds),
        "factors": _factors(run),
    }


def _why_no_test(settings: RunSettings, state: str, found: list[Candidate]) -> str:
    """Why there is no verdict, in a sentence."""
    if not settings.baseline:
        return "This search was made without final runs and without the sealed test (--no-baseline)."
    if state == RUNNING:
        return "The search is still running: the sealed test is opened at its end."
    if not found:
        return f"The search ended ({state.replace('_', ' ')}) before its final runs."
    paper = next((it for it in found if it.name == PAPER), None)
    if paper is None or paper.score is None:
        return "The baseline did not come to its end with all seeds, so there is nothing to compare with."
    if champion(found) is None:
        return "No other configuration than the paper's came to its end with all seeds."
    return "The sealed test has not been opened yet: `wmlsearch tune --resume` or `wmlsearch evaluate` does that."


def _test(test: Mapping[str, Any]) -> dict[str, Any]:
    """The sealed test for the page: a table for each scope, and a row for each unit; {} before it was opened."""
    if not test:
        return {}
    members = [it["members"][0] for it in test["models"].values()]
    scopes = [{"name": scope, "rows": _pooled(test, scope)} for scope in (VOLUMES, SLICES) if scope in members[0]]
    theirs, ours = (unit_means(test, role, "dice") for role in ("baseline", "champion"))
    expert, _ = sealed_figures.lesion_sizes(test, "baseline")
    found = {role: sealed_figures.lesion_sizes(test, role)[1] for role in ("baseline", "champion")}
    differences = {unit: our - their for unit, their, our in sealed_figures.pairs_of(test)}
    units = [
        {
            "unit": unit,
            "expert": expert[unit],
            "sizes": [its[unit] for its in found.values()],
            "dice": [their, ours[unit]],
            "difference": differences.get(unit),
        }
        for unit, their in sorted(theirs.items())
    ]
    seeds = {len(it["members"]) for it in test["models"].values()}
    return {
        "found": test,
        "one": test["unit"].removesuffix("s"),
        "size": "ml" if test["scope"] == VOLUMES else "pixels",
        "pixels": test["scope"] != VOLUMES,
        "scopes": scopes,
        "units": units,
        "sizes_found": _by_size(test),
        "seeds": max(seeds),
        "thresholds": {role: statistics.fmean(m["threshold"] for m in it["members"])
                       for role, it in test["models"].items()},
    }  # fmt: skip


def _by_size(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many lesions of each size are found, at the models' own thresholds: recall over all units, mean ± sd."""
    scope, unit = test["scope"], "mm3" if test["scope"] == VOLUMES else "px"
    rows = []
    for name, low, below in SIZES:
        words = f"under {below:g}" if not low else f"{low:g} to {below:g}" if below < math.inf else f"{low:g} and more"
        counts = test["models"]["baseline"]["members"][0][scope]["pooled"]
        cells = []
        for model in test["models"].values():
            pooled = [member[scope]["pooled"] for member in model["members"]]
            there = [its[f"lesions_{name}_{unit}"] for its in pooled]
            found = [its[f"found_{name}_{unit}"] for its in pooled]
            cells.append(_halves(mean_sd([one / of if of else None for one, of in zip(found, there, strict=True)])))
        rows.append({"size": words, "lesions": counts[f"lesions_{name}_{unit}"], "cells": cells})
    return rows


def _pooled(test: Mapping[str, Any], scope: str) -> list[dict[str, Any]]:
    """Rows of a scope's table: who, threshold, the ratios' mean ± standard deviation; the paper's own in its scope."""
    rows = []
    for role, model in test["models"].items():
        who = f"{role} ({test['names'][role]})"
        shown = [(who, "own", "pooled", model["members"]), (who, "0.5", "pooled_half", model["members"])]
        if model["ensemble"]:
            shown.append((f"{role}, its ensemble", "own", "pooled", [model["ensemble"]]))
        for name, threshold, key, networks in shown:
            cells = [_halves(mean_sd([one[scope][key][it] for one in networks])) for it in (*RATIOS, *LESIONS)]
            rows.append({"who": name, "threshold": threshold, "cells": cells, "kind": role})
    if scope == SLICES:
        theirs = [(f"{mean:.4f}", f"{spread:.4f}") for mean, spread in (PAPERS[it] for it in RATIOS)]
        cells = [*theirs, *[_halves("-")] * len(LESIONS)]
        rows.append({"who": "the paper's Table I (other data)", "threshold": "0.5", "cells": cells, "kind": "other"})
    return rows


def _halves(text: str) -> tuple[str, str]:
    """`0.7292 ± 0.0080` as two, the second empty where there is no spread."""
    mean, _, spread = text.partition(" ± ")
    return mean, spread
