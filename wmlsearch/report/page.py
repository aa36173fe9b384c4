"""The report of a search: one HTML page with its figures and tables, made from the run folder alone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from wmlsearch.config import RunSettings
from wmlsearch.forecast.comparison import compare_with_forecast
from wmlsearch.report import figure_style, figures, sealed_figures, verdict_figures
from wmlsearch.report.champion_section import champion_view, final_rows, seeds_of, why_no_verdict
from wmlsearch.report.commands import space_yaml, tune_command
from wmlsearch.report.evaluation_section import evaluation_view
from wmlsearch.report.importances import importances
from wmlsearch.report.search_section import children, costs, endings, failures, ranked_trials
from wmlsearch.report.tables import write_tables
from wmlsearch.report.unit_scores import dice_pairs
from wmlsearch.runs.evaluation import Evaluation, Verdict
from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.leaderboard import Leaderboard, leaderboard
from wmlsearch.runs.liveness import live_state
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER
from wmlsearch.runs.objectives import CANDIDATE_METRIC
from wmlsearch.runs.wording import duration, rounded_beside
from wmlsearch.space import SearchSpace
from wmlsearch.verdict.champion import Candidate, read_candidates
from wmlsearch.verdict.statistics import ALPHA, BETTER, WORSE
from wmlsearch.verdict.wording import leakage_note, lesion_free_sentence, openings_note, optimistic_note

MAX_ROWS = 20  # of a table; further rows are folded away
MAX_COLUMNS = 9  # hyperparameters with a column of their own; more of them share one column
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
# Table II of the paper: Dice of other systems on their own data.
OTHER_SYSTEMS = (
    ("Valverde", "0.56"),
    ("Roy", "0.5639"),
    ("Aslani", "0.6114 (ISBI), 0.6655 (NRU)"),
    ("Krüger", "0.45"),
    ("Hashemi", "0.5642 (U-Net), 0.703 (FC-DenseNet)"),
    ("Gessert", "0.656"),
    ("La Rosa", "0.62"),
    ("Cerri", "0.65, 0.58, 0.54, 0.58"),
)
METRIC_NAMES = {
    "hd95_mm": "95 % Hausdorff distance (mm)",
    "hd95_px": "95 % Hausdorff distance (pixels)",
    "volume_error_abs_ml": "lesion volume error (ml)",
    "lesion_f1": "lesion-wise F1",
    "lesion_recall": "lesion-wise recall",
    "lesion_precision": "lesion-wise precision",
    "iou": "IoU",
    "volume_ml": "false volume (ml)",
    "fp": "false pixels",
    "lesions_false": "false lesions",
}
VERDICT_CLASSES = {BETTER: "good", WORSE: "bad"}  # by outcome; "open" for the others


def write_report(search: SearchDir) -> Path:
    """Write `report/index.html`, the figures and the tables of a search, running or finished; return the page.

    The same folder gives the same bytes.

    Raises InputError for a damaged folder.
    """
    search.report.mkdir(exist_ok=True)
    record, board = search.record(), leaderboard(search)
    status = search.status()
    candidates = read_candidates(search)
    space = record.space.space()
    settings = record.settings
    state = live_state(search)
    evaluation = search.evaluation()
    verdict = evaluation.verdict if evaluation else None
    if verdict is None:
        evaluation = None
    selection = search.selection()
    champion = evaluation.names[CHAMPION] if evaluation else selection.champion if selection else ""
    shares, importances_note = importances(board, space)
    write_text(search.report / "space.yaml", space_yaml(space))
    page = _environment().get_template("page.html.j2").render(
        name=search.name,
        record=record,
        settings=settings,
        state=state,
        reason=status.reason,
        warning=optimistic_note(record),
        verdict=verdict,
        verdict_class=lambda outcome: VERDICT_CLASSES.get(outcome, "open"),
        why_no_verdict=why_no_verdict(
            settings, state, candidates, selection, all(search.model(role).exists() for role in (BASELINE, CHAMPION))
        ),
        selection=selection,
        baseline_is_champion=selection is not None and selection.champion == PAPER,
        test=evaluation_view(evaluation) if evaluation else None,
        figures=_draw_figures(search, board, space, settings, candidates, champion, evaluation, shares),
        importances_note=importances_note,
        board=board,
        columns=list(space.dimensions) if len(space.dimensions) <= MAX_COLUMNS else [],
        trials=ranked_trials(board),
        endings=endings(board),
        failures=failures(search),
        children=children(board),
        costs=costs(search),
        compared=compare_with_forecast(search),
        champion=champion_view(search, record, board, candidates, champion),
        final_runs=final_rows(candidates, champion),
        final_seeds=seeds_of(candidates),
        measure=candidates[0].metric if candidates else CANDIDATE_METRIC,
        leakage_note=leakage_note,
        openings_note=openings_note,
        lesion_free_sentence=lesion_free_sentence,
        tables=write_tables(search, board, candidates, champion, evaluation),
        tune=tune_command(record),
        space_yaml=space_yaml(space),
        max_rows=MAX_ROWS,
        other_systems=OTHER_SYSTEMS,
    )  # fmt: skip
    write_text(search.report_page, page)
    return search.report_page


def _draw_figures(
    search: SearchDir,
    board: Leaderboard,
    space: SearchSpace,
    settings: RunSettings,
    candidates: Sequence[Candidate],
    champion: str,
    evaluation: Evaluation | None,
    shares: Mapping[str, float],
) -> dict[str, Path]:
    """Draw the figures that have data, delete those of an earlier report; return all that exist, by name."""
    with_values = any(entry.value is not None for entry in board.trials)
    # On CPUs a peak is that of the worker process since its start, not of a single trial.
    memories = figures.peak_memories(board) if search.usage().gpu_seconds else []
    drawings: dict[str, Callable[[Path], None] | None] = {
        "history": (lambda path: figures.history(path, board)) if with_values else None,
        "curves": (lambda path: figures.curves(path, board, settings, candidates, champion)) if with_values else None,
        "front": (lambda path: figures.pareto(path, board)) if board.front else None,
        "rates": (lambda path: figures.rates(path, board)) if with_values and settings.scheduler == "pbt" else None,
        "parallel": (lambda path: figures.parallel(path, board, space)) if with_values and space.dimensions else None,
        "memory": (lambda path: figures.memory(path, memories)) if memories else None,
        "importances": (lambda path: figures.importance_bars(path, shares)) if shares else None,
        "folds": None,
    }
    if any(run.value is not None for candidate in candidates for run in candidate.judgement):
        drawings["folds"] = lambda path: verdict_figures.fold_scores(path, candidates, champion)
    drawings |= _sealed_drawings(search, evaluation)
    for name, draw in drawings.items():
        path = search.report / f"{name}.png"
        path.unlink(missing_ok=True)
        if draw is not None:
            draw(path)
    paths = {name: search.report / f"{name}.png" for name in (*drawings, "examples")}
    return {name: path for name, path in paths.items() if path.is_file()}


def _sealed_drawings(search: SearchDir, evaluation: Evaluation | None) -> dict[str, Callable[[Path], None] | None]:
    """Return what draws the figures of the sealed test, None for those that have no data."""
    drawings: dict[str, Callable[[Path], None] | None] = dict.fromkeys(("forest", "paired", "volumes", "gallery"))
    if evaluation is None or evaluation.verdict is None:
        return drawings
    verdict, gallery = evaluation.verdict, search.gallery()
    if _has_forest(verdict):
        drawings["forest"] = lambda path: verdict_figures.forest(path, evaluation, verdict)
    if dice_pairs(evaluation):
        # The forest plot shows the differences already.
        primary = None if _has_forest(verdict) else verdict.primary
        drawings["paired"] = lambda path: sealed_figures.paired(path, evaluation, primary)
    drawings["volumes"] = lambda path: sealed_figures.volumes(path, evaluation)
    if gallery is not None:
        drawings["gallery"] = lambda path: sealed_figures.gallery(path, evaluation, gallery)
    return drawings


def _has_forest(verdict: Verdict) -> bool:
    return verdict.configuration is not None and verdict.configuration.difference is not None


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("wmlsearch", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        score=_score,
        signed=lambda value: _score(value, "+.4f"),
        bound=lambda value: DASH if value is None else rounded_beside(value, 0, "+.4f").replace("-", MINUS),
        p=_p,
        duration=lambda seconds: DASH if seconds is None else duration(seconds),
        metric_name=lambda metric: METRIC_NAMES.get(metric, metric.replace("_", " ")),
        embedded=_embedded,
        width=_width,
    )
    return environment


def _score(value: float | None, form: str = ".4f") -> str:
    """Return `0.7292` with a typographic minus sign, or a dash for None."""
    return DASH if value is None else f"{value:{form}}".replace("-", MINUS)


def _p(value: float | None) -> str:
    return DASH if value is None else "< 0.001" if value < 0.001 else rounded_beside(value, ALPHA, ".3f")


def _embedded(path: Path) -> str:
    """Return a figure as a data: URI, so that the page is a single file."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _width(path: Path) -> int:
    """Return the width in CSS pixels at which the text of all figures has the same size, from the PNG's header."""
    return round(int.from_bytes(path.read_bytes()[16:20], "big") * 100 / figure_style.DPI)
