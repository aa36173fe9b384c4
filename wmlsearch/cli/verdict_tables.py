"""How a search ended, on the terminal: final runs, scores on the sealed test, the verdict."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from wmlsearch.runs.evaluation import SLICES, Evaluation, NetworkScores, Scope, Verdict
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import CHAMPION
from wmlsearch.verdict.champion import read_candidates, role_of
from wmlsearch.verdict.wording import (
    PAPER_TABLE,
    PAPER_TABLE_NAME,
    RATIOS,
    lesion_free_sentence,
    mean_sd,
    openings_note,
    states_of,
)


def final_runs_table(search: SearchDir) -> Table | None:
    """Return a table of the final runs on the validation patients, None before there are any."""
    candidates = read_candidates(search)
    if not candidates:
        return None
    model = search.model(CHAMPION)
    selection = search.selection()
    champion = selection.champion if selection else model.record().model if model.exists() else ""
    table = _table("final runs")
    measure = candidates[0].metric
    for name in (
        "configuration",
        "selection runs",
        f"mean {measure}",
        "standard error",
        "judgement runs",
        "states",
        "",
    ):
        table.add_column(name, justify="left" if name in ("configuration", "states", "") else "right")
    for candidate in candidates:
        role = role_of(candidate, champion)
        statistics = (candidate.mean, candidate.standard_error)
        numbers = ["-" if value is None else f"{value:.4f}" for value in statistics]
        runs = [str(len(runs)) for runs in (candidate.selection, candidate.judgement)]
        cells = (candidate.name, runs[0], *numbers, runs[1], states_of(candidate), role)
        table.add_row(*cells, style="bold" if role else "")
    return table


def show_verdict(console: Console, search: SearchDir) -> None:
    """Print why the champion was chosen, and the evaluation of a search if the sealed test was opened."""
    if selection := search.selection():
        console.print(selection.sentence, highlight=False, soft_wrap=True)
    if evaluation := search.evaluation():
        show_evaluation(console, evaluation)


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the pooled scores of each scope, mean and standard deviation over runs, and the verdict."""
    for scope in evaluation.scopes:
        console.print(_scope_table(evaluation, scope))
    console.print(openings_note(evaluation.opened_before), highlight=False)
    if evaluation.verdict:
        _show_claims(console, evaluation.verdict)


def _show_claims(console: Console, verdict: Verdict) -> None:
    """Print the outcomes in short, then each claim under its name; that about the configurations is bold."""
    if verdict.has_claims:
        models = f"; (b) the models: {verdict.models.outcome}" if verdict.models else ""
        short = f"champion against baseline: (a) the configurations: {verdict.outcome}{models}"
        console.print(short, style="bold", highlight=False, soft_wrap=True)
    about = " (a), the configurations" if verdict.has_claims else ""
    console.print(f"verdict{about}: {verdict.sentence}", style="bold", highlight=False, soft_wrap=True)
    if verdict.models:
        console.print(f"verdict (b), the models: {verdict.models.sentence}", highlight=False, soft_wrap=True)
    if verdict.lesion_free:
        console.print(lesion_free_sentence(verdict.lesion_free), highlight=False, soft_wrap=True)


def _scope_table(evaluation: Evaluation, scope: Scope) -> Table:
    table = _table(f"sealed test, {scope}: pooled over pixels, mean ± standard deviation over runs")
    table.add_column("model")
    for name in ("threshold", *RATIOS):
        table.add_column(name, justify="right")
    for role, model in evaluation.models.items():
        name = f"{role} ({evaluation.names[role]})" if evaluation.names else role
        table.add_row(name, "own", *_ratio_cells(model.members, scope))
        table.add_row(name, evaluation.half_threshold, *_ratio_cells(model.members, scope, half=True))
        if model.ensemble:
            table.add_row("  ensemble", "own", *_ratio_cells([model.ensemble], scope))
    if scope == SLICES:
        cells = (f"{mean:.4f} ± {spread:.4f}" for mean, spread in (PAPER_TABLE[name] for name in RATIOS))
        table.add_row(PAPER_TABLE_NAME, "0.5", *cells, style="dim")
    return table


def _ratio_cells(networks: list[NetworkScores], scope: Scope, half: bool = False) -> list[str]:
    scores = [network.scope(scope) for network in networks]
    rows = [one.pooled_half if half else one.pooled for one in scores]
    return [mean_sd([row.value(name) for row in rows]) for name in RATIOS]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold")
    table.pad_edge = False
    return table
