"""What a search ends with, as the terminal shows it: confirmed configurations, test scores, the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.objectives import MEASURE
from wmlsearch.verdict.champion import candidates
from wmlsearch.verdict.evaluation import SLICES, VOLUMES
from wmlsearch.verdict.wording import PAPERS, RATIOS, how_often, mean_sd


def confirmed_table(search: SearchDir) -> Table | None:
    """The final runs of each configuration on the validation patients; None before there are any."""
    found = candidates(search)
    if not found:
        return None
    chosen = search.model("champion")
    best = chosen.about()["model"] if chosen.exists() else ""
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
