"""The verdict's benchmark: small runs of it, and the tables that are committed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.verdict import __main__ as command
from benchmarks.verdict import recorded, simulated
from benchmarks.verdict.cohorts import SHAPES, Scenario, draw, true_difference
from benchmarks.verdict.power_tables import AT_MOST, division_rows
from benchmarks.verdict.rows import Row, markdown
from wmlsearch.errors import InputError


def write_networks(path: Path, runs: int = 30, patients: int = 20, folds: int = 5) -> None:
    """Write networks of two configurations: run r validates on fold r mod `folds`."""
    rng = np.random.default_rng(0)
    patient, fold = rng.uniform(0.3, 0.8, patients), rng.normal(0, 0.02, folds)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("configuration", "run", "fold", "seed", "patient", "dice"))
        for configuration in ("baseline", "other"):
            for run in range(runs):
                effect = fold[run % folds] + rng.normal(0, 0.03)
                for number, dice in enumerate(patient):
                    score = np.clip(dice + effect + rng.normal(0, 0.03), 0, 1)
                    writer.writerow((configuration, run, run % folds, run + 1, f"{number:02d}", f"{score:.4f}"))


def write_ensembles(path: Path, ensembles: int = 6, patients: int = 20) -> None:
    rng = np.random.default_rng(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("configuration", "ensemble", "patient", "dice"))
        for ensemble in range(ensembles):
            for number in range(patients):
                writer.writerow(("baseline", ensemble, f"{number:02d}", f"{rng.normal(0.6, 0.05):.4f}"))


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recorded scores, which the benchmark reads."""
    write_networks(tmp_path / "recorded.csv")
    write_ensembles(tmp_path / "ensembles.csv")
    networks, ensembles = recorded.read_networks(tmp_path / "recorded.csv"), recorded.read_ensembles
    monkeypatch.setattr(recorded, "read_networks", lambda: networks)
    monkeypatch.setattr(recorded, "read_ensembles", lambda: ensembles(tmp_path / "ensembles.csv"))
    return tmp_path


def test_recorded_scores_are_replayed(
    scores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recorded.replay_configurations, "__defaults__", (200,))
    monkeypatch.setattr(recorded.replay_models, "__defaults__", (100,))
    assert command.main(["--recorded"]) == 0
    output = capsys.readouterr().out
    head = "| claim | configuration | runs or models | patients | draws | false % | bound | holds |"
    assert output.count(head) == 1
    for claim, configuration, runs in (
        *(("a", name, runs) for name in ("baseline", "other") for runs in (2, 3, 5, 10)),
        ("b", "baseline", "ensembles of 5"),
        ("b", "other", "single networks"),
    ):
        assert f"| ({claim}) | {configuration} | {runs} | 20 |" in output
    planted = [line for line in output.splitlines() if line.endswith(f"| {command.FOUND} |")]
    assert len(planted) == 2
    for line in planted:
        found_percent, better = (int(line.split("|")[place]) for place in (5, 7))
        assert 70 < found_percent < 95
        assert better >= command.FOUND


def test_drawn_runs_are_different_and_of_one_fold_each(scores: Path) -> None:
    (recording, _) = recorded.read_networks()
    by_fold = recorded._runs_of_folds(recording)
    rng, first_folds = np.random.default_rng(0), set()
    for runs in (2, 5, 7, 10):
        for _ in range(20):
            sides = recorded._two_sides(by_fold, runs, rng)
            assert sides is not None
            assert len(set(sides.ravel())) == 2 * runs
            folds = np.array(recording.folds)[sides]
            assert (folds[0] == folds[1]).all()
            assert len(set(folds[0])) == min(runs, 5)
            first_folds.add(int(folds[0, 0]))
    assert first_folds == set(range(5))
    assert recorded._two_sides(by_fold, 16, rng) is None, "there are 30 runs"


def test_an_incomplete_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ensembles.csv"
    write_ensembles(path, ensembles=2, patients=3)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="baseline, ensemble 1 lacks patients that others have"):
        recorded.read_ensembles(path)
    with pytest.raises(InputError, match=r"must have the columns configuration, run, .* but lacks run, fold, seed"):
        recorded.read_networks(path)


def test_simulated_scores_vary_as_stated() -> None:
    """Standard deviations of the pieces, and the share of zeros."""
    rng = np.random.default_rng(0)
    for shape in SHAPES[:2]:
        scenario = Scenario(shape, (0.02, 0.05), fold_sd=0.0, interaction_sd=0.0, residual_sd=0.0)
        baseline, champion = draw(scenario, 4000, 2, 3, rng)
        within = [np.std(scores[:, 1] - scores[:, 0]) / np.sqrt(2) for scores in (baseline, champion)]
        assert within == pytest.approx([0.02, 0.05], rel=0.1)
        assert np.std(baseline.mean(axis=1)) == pytest.approx(0.15, rel=0.1)
    baseline, _ = draw(Scenario("zero-heavy"), 1000, 2, 10, rng)
    assert 0.2 < np.mean(baseline == 0) < 0.4
    assert 0.02 < true_difference(Scenario("zero-heavy"), 0.05, rng) < 0.05


def test_the_same_numbers_each_time() -> None:
    rows = list(simulated.calibration_of_models(20))
    assert rows == list(simulated.calibration_of_models(20))
    assert len(rows) == len(SHAPES) * 2 * len(simulated.PATIENTS)
    (one, *_) = simulated.calibration_of_configurations(50)
    assert one == next(simulated.calibration_of_configurations(50))


def test_runs_that_choose_are_not_to_be_judged() -> None:
    """The best of ten equal candidates, by 5 runs that are judged as well, is called better too often."""
    setting = {"candidates": "10", "runs": "5", "patients": 50}
    share = {}
    for rows in (simulated.fresh_runs(1000), simulated.selection_runs(1000)):
        row = next(row for row in rows if all(getattr(row, name) == value for name, value in setting.items()))
        share[row.table] = (row.false_percent, row.holds)
    assert share["whole path"][1]
    assert share["runs that choose are judged"][0] > 6.5


def test_the_former_division_of_trainings_finds_less() -> None:
    assert max(row.ratio for row in division_rows()) <= AT_MOST


def test_a_row_knows_its_bound() -> None:
    # 5 % + 2 sqrt(0.05 x 0.95 / 400) = 7.18 %
    row = Row("t", "a", "symmetric", "2", 9, cohorts=400, wrong=28, covered=380)
    assert (row.false_percent, row.coverage_percent, row.holds) == (7, 95, True)
    assert row.bound_percent == pytest.approx(7.18, abs=0.01)
    assert not Row("t", "a", "symmetric", "2", 9, 400, 29).holds
    assert markdown(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"
