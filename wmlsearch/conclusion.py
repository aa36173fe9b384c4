"""What a search ends with, as the terminal shows it: confirmed configurations, test scores, the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wmlsearch.data.split import OPTIMISTIC
from wmlsearch.runs import SearchDir
from wmlsearch.verdict.champion import MEASURE, PAPER, candidates
from wmlsearch.verdict.evaluation import SLICES, VOLUMES

RATIOS = ("accuracy", "iou", "dice", "precision", "recall")
# Table I of the paper (mean, standard deviation): 1476 kept slices of its own patients.
PAPERS = {"accuracy": (0.9963, 0.0004), "iou": (0.5739, 0.01), "dice": (0.7292, 0.008), "precision": (0.7592, 0.0088),
          "recall": (0.7016, 0.009)}  # fmt: skip


def confirmed_table(search: SearchDir) -> Table | None:
    """The final runs of each configuration on the validation patients; None before there are any."""
    found = candidates(search)
    if not found:
        return None
    chosen = search.model("champion")
    best = chosen.about()["model"] if chosen.begun() else ""
    table = Table(title="final runs", title_justify="left", title_style="bold", box=None, header_style="bold")
    table.pad_edge = False
    for name in ("configuration", "seeds", f"{MEASURE} mean", "standard error", "mean - error", "states", ""):
        table.add_column(name, justify="left" if name in ("configuration", "states", "") else "right")
    for it in found:
        states = [run.state.replace("_", " ") for run in it.runs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        role = "baseline" if it.name == PAPER else "champion" if it.name == best else ""
        numbers = ["-" if value is None else f"{value:.4f}" for value in (it.mean, it.standard_error, it.score)]
        table.add_row(it.name, str(len(it.runs)), *numbers, counts, role, style="bold" if role else "")
    return table


def show_verdict(console: Console, search: SearchDir) -> None:
    """The sealed test's table and sentence, if it was opened."""
    found = search.test()
    if found:
        show_test(console, found)


def show_test(console: Console, found: Mapping[str, Any]) -> None:
    """An evaluation: each scope's pooled scores, each model's mean and standard deviation over its seeds."""
    for scope in (VOLUMES, SLICES):
        if all(scope in it["members"][0] for it in found["models"].values()):
            console.print(_table(found, scope))
    console.print(how_often(found.get("opened_before", 0)), highlight=False)
    if "verdict" in found:
        console.print(f"verdict: {found['verdict']['sentence']}", style="bold", highlight=False, soft_wrap=True)


def _table(found: Mapping[str, Any], scope: str) -> Table:
    title = f"sealed test, {scope}: pooled over pixels, mean ± standard deviation over seeds"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.header_style, table.pad_edge = "bold", False
    table.add_column("model")
    table.add_column("threshold", justify="right")
    for name in RATIOS:
        table.add_column(name, justify="right")
    for role, it in found["models"].items():
        name = f"{role} ({found['names'][role]})" if "names" in found else role
        shown = [(name, "own", "pooled", it["members"]), (name, "0.5", "pooled_half", it["members"])]
        if it["ensemble"]:
            shown.append(("  its ensemble", "own", "pooled", [it["ensemble"]]))
        for title, threshold, key, networks in shown:
            cells = [mean_sd([network[scope][key][what] for network in networks]) for what in RATIOS]
            table.add_row(title, threshold, *cells)
    if scope == SLICES:
        theirs = (f"{mean:.4f} ± {spread:.4f}" for mean, spread in (PAPERS[what] for what in RATIOS))
        table.add_row("the paper's Table I (other data)", "0.5", *theirs, style="dim")
    return table


def how_often(opened_before: int) -> str:
    """How often the sealed test was opened, in a sentence."""
    if not opened_before:
        return "the sealed test was opened for the first time"
    times = "once" if opened_before == 1 else f"{opened_before} times"
    return f"the sealed test had been opened {times} before: the more often, the less it says"


def optimistic_note(about: Mapping[str, Any]) -> str:
    """Why the results of a run on these data look better than they are: "image-level split: optimistic"; or ""."""
    if not about["data"]["optimistic"]:
        return ""
    return str((about.get("certificate") or {}).get("note") or OPTIMISTIC)


def compared_slices(certificate: Mapping[str, Any]) -> str:
    """What the guard against leakage has found: `480 slices compared: no duplicates across splits`."""
    found = []
    for pair, counts in certificate["duplicates"].items():
        if some := [f"{n} {kind}" for kind, n in counts.items() if n]:
            first, second = pair.split("/")
            found.append(f"{', '.join(some)} of {second} in {first}")
    what = f"duplicates across splits: {'; '.join(found)}" if found else "no duplicates across splits"
    return f"{certificate['compared']} slices compared: {what}"


def mean_sd(values: list[float | None]) -> str:
    """`0.7292 ± 0.0080`: mean and standard deviation; `-` where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.4f}" + (f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else "")
