"""The figures of the verdict: readable with few patients and with many, and true to the scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from evaluations import evaluation_of, network, networks
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wmlsearch.config import TrialConfig
from wmlsearch.report import figure_style, verdict_figures
from wmlsearch.report.verdict_figures import fold_scores, forest
from wmlsearch.runs.evaluation import Evaluation, Verdict
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.champion import Candidate, FinalRun
from wmlsearch.verdict.comparison import judge

Drawn = list[tuple[Figure, Axes]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures that are drawn, as they were saved."""
    figures: Drawn = []
    original = verdict_figures.figure

    @contextmanager
    def figure(*sizes: Any, **more: Any) -> Iterator[tuple[Figure, Any]]:
        with original(*sizes, **more) as (canvas, grid):
            yield canvas, grid
            canvas.canvas.draw()
            figures.append((canvas, grid[0, 0]))

    monkeypatch.setattr(verdict_figures, "figure", figure)
    monkeypatch.setattr(figure_style, "DPI", 50)
    return figures


def compared(patients: int, runs: int, name: str = "p{}") -> tuple[Evaluation, Verdict]:
    """Two configurations, of which the champion is better by 0.05 in all patients but the first."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, patients)
    better = np.where(np.arange(patients) == 0, -0.05, 0.05)
    noise = rng.normal(0, 0.02, (2, runs, patients))
    scores = {BASELINE: base + noise[0], CHAMPION: base + better + noise[1]}
    members = {role: networks(rows.tolist(), [run % 5 for run in range(runs)]) for role, rows in scores.items()}
    ensembles = {role: network(f"{role} ensemble", rows.mean(0).tolist()) for role, rows in scores.items()}
    evaluation = evaluation_of(members, ensembles if runs > 1 else None)
    return evaluation, judge(evaluation, BASELINE, CHAMPION, "trial-0007", 0)


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def overlapping(canvas: Figure, axes: Axes) -> list[tuple[str, str]]:
    """The pairs of neighbouring row labels that overlap."""
    drawn = axes.get_yticklabels()
    boxes = sorted((label.get_window_extent().y0, label.get_window_extent().y1, label.get_text()) for label in drawn)
    return [(low[2], high[2]) for low, high in itertools.pairwise(boxes) if low[1] > high[0] + 1]


@pytest.mark.parametrize(("patients", "runs"), [(6, 2), (9, 5), (20, 5), (40, 10), (100, 5), (400, 30)])
def test_a_forest_plot_is_readable_with_few_patients_and_with_many(
    patients: int, runs: int, drawn: Drawn, tmp_path: Path
) -> None:
    forest(tmp_path / "f.png", *compared(patients, runs))
    [(canvas, axes)] = drawn
    assert overlapping(canvas, axes) == []
    assert canvas.get_figheight() < 16
    named = [f"p{number}" for number in range(patients)] if patients <= 40 else []
    assert sorted(label for label in labels(axes) if label.startswith("p")) == sorted(named)
    assert labels(axes)[:3] == ["(a) configurations", f"(b) ensembles of {runs} networks", "(a) smallest detectable"]
    assert labels(axes)[3:5] == ["run 0 (fold 0)", "run 1 (fold 0)" if runs > 5 else "run 1 (fold 1)"]


def test_a_forest_plot_shows_the_scores(drawn: Drawn, tmp_path: Path) -> None:
    evaluation, verdict = compared(6, 2)
    forest(tmp_path / "f.png", evaluation, verdict)
    [(_, axes)] = drawn
    scores = {
        role: np.array([[unit.dice for unit in run.scope("whole volumes").units] for run in model.members])
        for role, model in evaluation.models.items()
    }
    differences = scores[CHAMPION] - scores[BASELINE]
    assert labels(axes)[-1] == "p0", "the patient with the lowest difference is the last"
    points = {round(float(x), 9) for line in axes.lines for x in np.asarray(line.get_xdata(), float)}
    assert {round(float(x), 9) for x in differences.ravel()} <= points, "a point for each pair of runs and patient"
    assert {round(float(x), 9) for x in differences.mean(axis=1)} <= points, "a mean for each pair of runs"
    assert verdict.configuration is not None
    assert verdict.models is not None
    for claim in (verdict.configuration, verdict.models):
        assert {round(cast(float, value), 9) for value in (claim.low, claim.difference, claim.high)} <= points
    texts = " ".join(text.get_text() for text in axes.texts)
    assert f"\N{PLUS-MINUS SIGN}{verdict.configuration.detectable:.3f}" in texts


@pytest.mark.parametrize(("patients", "runs"), [(4, 2), (1, 2), (8, 1)])
def test_without_an_interval_the_differences_are_drawn(patients: int, runs: int, drawn: Drawn, tmp_path: Path) -> None:
    evaluation, verdict = compared(patients, runs)
    forest(tmp_path / "f.png", evaluation, verdict)
    [(_, axes)] = drawn
    what = "(b) single networks" if runs == 1 else "(b) ensembles of 2 networks"
    assert labels(axes)[:3] == ["(a) configurations", what, "run 0 (fold 0)"]
    assert "(no interval)" in axes.texts[0].get_text()


def test_a_long_name_keeps_its_end(drawn: Drawn, tmp_path: Path) -> None:
    evaluation, verdict = compared(6, 2)
    text = evaluation.model_dump_json(by_alias=True).replace('"p1"', f'"{"long-" * 20}p1"')
    forest(tmp_path / "f.png", Evaluation.model_validate_json(text), verdict)
    [(_, axes)] = drawn
    assert "\N{HORIZONTAL ELLIPSIS}g-long-long-long-p1" in labels(axes)


def candidate(name: str, mean: float, folds: int, judged: int) -> Candidate:
    def runs(count: int, purpose: str) -> tuple[FinalRun, ...]:
        about = [
            SimpleNamespace(settings=SimpleNamespace(seed=n), fold=n % folds, purpose=purpose) for n in range(count)
        ]
        return tuple(FinalRun(cast(Any, None), cast(Any, one), "completed", mean + one.fold / 100) for one in about)

    return Candidate(name, TrialConfig(), {}, runs(2, "selection"), runs(judged, "judgement"), ())


@pytest.mark.parametrize(
    ("folds", "across"), [(1, "the validation patients"), (5, "fold of the patients that a run validated on")]
)
def test_final_runs_by_fold(folds: int, across: str, drawn: Drawn, tmp_path: Path) -> None:
    shown = [candidate("paper", 0.6, folds, 5), candidate("trial-0007", 0.65, folds, 5), candidate("x", 0.62, folds, 0)]
    fold_scores(tmp_path / "f.png", shown, "trial-0007")
    [(canvas, axes)] = drawn
    values = [float(y) for points in axes.collections for _, y in np.asarray(points.get_offsets())]
    assert len(values) == 7 + 7 + 2
    assert axes.get_xlabel() == across
    assert axes.get_ylabel() == "validation: mean Dice per patient"
    # The judgement runs of the champion, on folds 0 to 4 once each, have the mean 0.65 + 0.02.
    means = [float(np.asarray(line.get_ydata())[0]) for line in axes.lines if line.get_linestyle() == "--"]
    assert means == pytest.approx([0.6 + 0.02 * (folds > 1), 0.65 + 0.02 * (folds > 1)])
    names = [text.get_text() for legend in canvas.legends for text in legend.get_texts()]
    assert names == [
        "baseline", "champion (trial-0007)", "other candidates", "selection run", "judgement run",
        "mean of judgement runs",
    ]  # fmt: skip


def test_the_baseline_as_champion(drawn: Drawn, tmp_path: Path) -> None:
    fold_scores(tmp_path / "f.png", [candidate("paper", 0.6, 5, 5)], "paper")
    [(canvas, _)] = drawn
    assert canvas.legends[0].get_texts()[0].get_text() == "baseline and champion"
