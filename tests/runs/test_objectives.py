"""Several objectives: invalid options, the Pareto front, what Optuna gets, and a whole search that ends in a front."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from records import epoch_row, run_record, search_record
from rich.console import Console

from wmlsearch.cli import main
from wmlsearch.cli.options import SettingChoice
from wmlsearch.cli.search_summary import show_search
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import OBJECTIVES, QUALITY_METRICS, RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.report.page import write_report
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.objectives import (
    best_epoch,
    candidate_value,
    cut_off_by_budget,
    dice_value,
    front,
    objective_values,
    objective_warnings,
)
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.warm_start import select_earlier_trials
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import preflight
from wmlsearch.workflows.observer import Outcome
from wmlsearch.workflows.search_plan import SearchRequest
from wmlsearch.workflows.tune import tune

BOTH = ["val_dice_best", "images_per_s"]
ALL = (
    "val_dice_patients_best, val_dice_best, val_dice, val_iou, val_soft_dice, val_average_precision or "
    "val_dice_patients"
)


# --------------------------------------------------------------------------------------------------- invalid options


def refused(*words: str) -> str:
    """Return the error of `wmlsearch tune quick WORDS`, without the name of the program."""
    result = CliRunner().invoke(main, ["tune", "quick", *words], prog_name="wmlsearch")
    assert result.exit_code == 2, result.output
    return result.stderr.removeprefix("wmlsearch: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["--objectives", "val_dice_best"],
            "--objectives must be at least two names, but got 'val_dice_best'; a single one is given by --objective",
        ),
        (
            ["--objectives", "val_dice,epoch_s,val_dice"],
            "--objectives must differ, but val_dice is given 2 times",
        ),
        (
            ["--objectives", "val_dice_best, image_per_s"],
            "--objectives: unknown name 'image_per_s': did you mean 'images_per_s'?",
        ),
        (
            ["--objectives", "images_per_s,val_dice_best"],
            f"--objectives must begin with {ALL}, because the first selects each trial's best epoch and its weights, "
            "but got images_per_s",
        ),
        (
            ["--objectives", "val_dice_best,images_per_s", "--scheduler", "asha"],
            "--scheduler must be none with several objectives, because a scheduler ranks trials by one number, "
            "but got asha",
        ),
        (
            ["--objectives", "val_dice_best,images_per_s", "--sampler", "cmaes"],
            "--sampler must not be cmaes with several objectives, because it learns from one number; use tpe or gp",
        ),
    ],
)
def test_what_can_not_be_combined(
    words: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(*words) == f"these options cannot be used\n  - {fault}"
    assert list(tmp_path.iterdir()) == []


def test_all_faults_at_once() -> None:
    faults = refused("--objectives", "epoch_s,epoch_s,loss", "--sampler", "cmaes", "--scheduler", "median").splitlines()
    assert [" ".join(fault.split()[1:5]) for fault in faults[1:]] == [
        "--objectives must differ, but",
        "--objectives: unknown name 'loss':",
        "--objectives must begin with",
        "--scheduler must be none",
        "--sampler must not be",
    ]


def test_one_objective_and_several() -> None:
    assert refused("--objectives", "val_dice_best,epoch_s", "--objective", "val_dice_best") == (
        "--objective and --objectives cannot be given together: the first of --objectives selects each trial's "
        "best epoch"
    )
    with pytest.raises(InputError, match=r"objective must be the first of several \(val_dice\) or left out, but got v"):
        RunSettings.from_mapping({"objectives": ["val_dice", "epoch_s"], "objective": "val_iou"})


def test_settings_of_several_objectives() -> None:
    settings = RunSettings.from_mapping({"objectives": ["val_dice", "epoch_s"]})
    assert (settings.objective, settings.scheduler, settings.objective_names) == (
        "val_dice",
        "none",
        ["val_dice", "epoch_s"],
    )
    assert RunSettings.from_mapping(settings.model_dump()) == settings, "as a resumed search reads them"
    assert (RunSettings().objectives, RunSettings().objective_names) == ([], ["val_dice_patients_best"])
    assert SettingChoice("objective").choices == QUALITY_METRICS


def test_objective_warnings() -> None:
    assert objective_warnings(RunSettings(), True) == []
    assert objective_warnings(RunSettings(target_dice=0.8), True) == []
    assert objective_warnings(RunSettings(objectives=["val_dice", "val_loss"]), True) == []
    settings = RunSettings(objectives=["val_dice", "val_iou", "images_per_s", "epoch_s"], target_dice=0.8)
    noise = "images_per_s and epoch_s: depends on what else runs on the machine, so small differences mean nothing"
    assert objective_warnings(settings, False) == [
        noise,
        "val_dice and val_iou: both rank trials in the same order; one of them is enough",
        "images_per_s and epoch_s: both measure how fast a network trains; one of them is enough",
        "4 objectives: with so many, most trials are on the Pareto front, which then selects little",
        "--target-dice: the search ends by val_dice, whatever values the other objectives have",
    ]
    other = objective_warnings(RunSettings(objectives=["val_iou", "epoch_s"], target_dice=0.8), False)[-1]
    assert "ends by val_dice_patients_best, whatever" in other
    assert (
        objective_warnings(settings, True)[0]
        == f"{noise}; values of earlier trials are from the machines of their searches"
    )


def test_peak_memory_needs_gpus() -> None:
    settings = RunSettings(objectives=["val_dice_best", "peak_memory_mb"])
    preflight.check_budgets(SPACE, settings, Slots(1, 1, 1, 1.0))
    with pytest.raises(InputError) as caught:
        preflight.check_budgets(SPACE, settings, Slots(1, 1, 1, 0.0))
    assert str(caught.value) == (
        "--objectives peak_memory_mb: cannot be measured on CPUs, since the peak memory of a process that trains one "
        "trial after another never falls; leave it out"
    )


# ------------------------------------------------------------------------------------------------------ the front


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ({"val_dice_patients_best": 0.6, "val_dice_best": 0.7}, 0.6),
        ({"val_dice_patients_best": 0.0, "val_dice_best": 0.7}, 0.0),
        ({"val_dice_best": 0.7}, 0.7),  # of an older version
        ({"val_dice_patients_best": None, "val_dice_best": None}, None),
        ({}, None),
    ],
)
def test_the_value_that_candidates_are_compared_by(metrics: dict[str, float | None], value: float | None) -> None:
    assert candidate_value(epoch_row({"epoch": 1, **metrics})) == value


@pytest.mark.parametrize(
    ("losses", "ended", "changes", "cut_off"),
    [
        ([0.5, 0.4, 0.3, 0.35], "completed", {}, True),
        ([0.5, 0.3, 0.4, 0.35], "completed", {}, True),  # the best epoch is two behind the end
        ([0.3, 0.5, 0.4, 0.35], "completed", {}, False),  # three: its patience ended with its last epoch
        ([0.5, 0.3, 0.3, 0.3], "completed", {}, True),  # the first of equal ones
        ([0.3, 0.5, 0.4, 0.35], "early_stopped", {}, False),
        ([0.5, 0.4, 0.3], "stopped", {}, False),  # by the scheduler
        ([0.5, 0.4, 0.3], None, {}, False),  # still running
        ([0.5, 0.4, 0.3], "completed", {"schedule": "constant"}, True),
        ([0.5, 0.4, 0.3], "completed", {"schedule": "cosine"}, False),
        ([], None, {}, False),
    ],
)
def test_a_run_that_was_cut_off_by_its_number_of_epochs(
    losses: list[float], ended: str | None, changes: dict[str, Any], cut_off: bool
) -> None:
    rows = [
        epoch_row({"epoch": epoch, "ended": ended if epoch == len(losses) else None, "val_loss": loss})
        for epoch, loss in enumerate(losses, start=1)
    ]
    assert cut_off_by_budget(rows, TrialConfig(early_stop_patience=3, **changes)) is cut_off


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("val_dice_patients_best", 0.6),
        ("val_dice_best", 0.7),
        ("val_dice", 0.5),
        ("val_iou", 0.6),  # no Dice: the value by which candidates are compared
        ("val_soft_dice", None),
    ],
)
def test_the_dice_of_an_epoch(objective: str, value: float | None) -> None:
    metrics = {"val_dice_patients_best": 0.6, "val_dice_best": 0.7, "val_dice": 0.5, "val_iou": 0.4}
    assert dice_value(epoch_row({"epoch": 1, **metrics}), objective) == value


def test_values_are_all_of_one_epoch() -> None:
    rows = [
        epoch_row({"epoch": 1, "val_dice_best": None, "images_per_s": 90.0}),
        epoch_row({"epoch": 2, "val_dice_best": 0.5, "images_per_s": 50.0}),
        epoch_row({"epoch": 3, "val_dice_best": 0.6, "images_per_s": 40.0}),
        epoch_row({"epoch": 4, "val_dice_best": 0.6, "images_per_s": 70.0}),
    ]
    assert best_epoch(rows, "val_dice_best") is rows[2], "the first of equal ones, as its weights are kept"
    assert objective_values(rows, BOTH) == [0.6, 40.0]
    assert objective_values(rows[:1], BOTH) is None
    assert objective_values([], BOTH) is None
    assert objective_values(rows, ["val_dice_best", "val_loss"]) is None


@pytest.mark.parametrize(
    ("objectives", "values", "expected"),
    [
        (BOTH, [(0.5, 10), (0.6, 5), (0.4, 20), (0.4, 10), (0.6, 4)], "TTTFF"),
        (["val_dice", "epoch_s"], [(0.5, 10), (0.6, 5), (0.4, 20), (0.4, 1), (0.6, 5)], "FTFTT"),
        (BOTH, [None, (0.1, 1), None], "FTF"),
        (BOTH, [], ""),
        (["val_dice", "epoch_s", "val_loss"], [(0.5, 3, 0.1), (0.5, 2, 0.2), (0.5, 3, 0.2)], "TTF"),
    ],
    ids=["both up", "one down", "without values", "empty", "three"],
)
def test_the_front(objectives: list[str], values: list[Any], expected: str) -> None:
    assert front(values, objectives) == [letter == "T" for letter in expected]


def test_the_front_equals_that_of_optuna() -> None:
    names = ["val_dice", "images_per_s", "val_loss"]
    values = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)  # many ties
    study = optuna.create_study(directions=[OBJECTIVES[name] for name in names])
    study.add_trials([optuna.trial.create_trial(values=list(row)) for row in values])
    assert [n for n, best in enumerate(front(values.tolist(), names)) if best] == [t.number for t in study.best_trials]


def test_the_weights_of_the_front_are_kept(tmp_path: Path) -> None:
    def kept(
        objectives: Sequence[str], values: Sequence[Sequence[float] | None], room: float = float("inf")
    ) -> list[int]:
        retention = CheckpointRetention(lambda run: str(run.path), lambda _: 1, room, objectives)
        all_runs = [RunDir(tmp_path / str(number)) for number in range(len(values))]
        for run, scores in zip(all_runs, values, strict=True):
            run.path.mkdir(exist_ok=True)
            run.best.touch()
            run.last.touch()
            retention.trial_ended(run, scores)
        assert not any(run.last.exists() for run in all_runs)
        return [int(run.name) for run in all_runs if run.best.exists()]

    corner = [(n / 10, 10.0 - n) for n in range(8)]
    assert kept(BOTH, corner) == list(range(8)), "however many"
    assert kept(BOTH, corner, room=3) == [5, 6, 7]
    assert kept(BOTH, [(0.9, 1), *[(n / 10, 0.5) for n in range(6)], None, (0.1, 9)]) == [0, 8]
    assert kept(["val_dice_best"], [None, *[(n / 10,) for n in range(6)]]) == [2, 3, 4, 5, 6]


# ---------------------------------------------------------------------------------------------- what Optuna gets

STATES = ("completed", "early_stopped", "diverged", "completed", "out_of_memory", "lost", "failed", "completed")


def write_trial(
    search: SearchDir, number: int, config: TrialConfig, rows: Sequence[tuple[Any, ...]], state: str
) -> RunDir:
    about = {"name": f"trial-{number:04d}", "kind": "trial", "config": config.model_dump()}
    run = RunDir.create(search.trial(number).path, run_record(about))
    for epoch, values in enumerate(rows, start=1):
        ended = state if epoch == len(rows) and state == "completed" else None
        run.append(
            epoch_row({"epoch": epoch, "time": float(number), "ended": ended, **dict(zip(BOTH, values, strict=True))})
        )
    run.set_status(state)
    return run


def optuna_trials(search: SearchDir) -> list[tuple[Any, ...]]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.constraints, t.user_attrs.get("trial"))
        for t in optuna.load_study(study_name=search.name, storage=storage).trials
    ]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_a_rebuilt_study_has_the_same_trials_and_proposals(sampler: str, tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    space = SearchSpace.read("quick")
    settings = RunSettings(sampler=sampler, objectives=BOTH)
    asked = Study(search, space, settings)
    for number in range(20):
        config, state = asked.ask(number), STATES[number % len(STATES)]
        rows = [(0.1 + number / 50, 30.0 - number), (0.2 + number / 40, 40.0 - number), (None, 99.0)]
        for epoch, row in enumerate(rows, start=1):
            asked.report(number, epoch, row[0] or 0.0)
        run = write_trial(search, number, config, rows, "running" if number == 19 else state)
        if number != 19:
            asked.tell(number, state, objective_values(run.rows(), BOTH))
    before = optuna_trials(search)
    names = [state.name for _, state, *_ in before]
    assert names[:8] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "PRUNED", "FAIL", "FAIL", "COMPLETE"]
    assert [trial[3] for trial in before[:3]] == [[0.2, 40.0], [0.225, 39.0], None]
    assert all(trial[4] == {} for trial in before), "no intermediate values"
    assert [trial[5] for trial in before[:5]] == [{}, {}, {"diverged": 1.0}, {}, {"out_of_memory": 1.0}]
    copy = SearchDir(tmp_path / "copy" / "s")
    shutil.copytree(search.path, copy.path)
    anew = Study(copy, space, settings)
    assert optuna_trials(copy) == before
    assert [anew.ask(number) for number in (20, 21)] == [asked.ask(number) for number in (20, 21)]
    anew.tell(19, "completed", [0.9, 1.0])
    assert optuna_trials(copy)[19][1:4] == (optuna.trial.TrialState.COMPLETE, before[19][2], [0.9, 1.0])


def test_tpe_avoids_configurations_that_diverge(tmp_path: Path) -> None:
    """A fast rate is better in both objectives, up to 1e-3, where all diverge."""
    space = SearchSpace.from_mapping({"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}})

    def beyond(name: str, state: str) -> int:
        (tmp_path / name).mkdir()
        asked, count = Study(SearchDir(tmp_path / name), space, RunSettings(objectives=BOTH)), 0
        for number in range(40):
            rate = asked.ask(number).learning_rate
            good = rate <= 1e-3
            asked.tell(number, "completed" if good else state, [rate, rate] if good else None)
            count += not good and number >= 20
        return count

    constrained, ignored = beyond("a", "diverged"), beyond("b", "failed")
    assert constrained < ignored, "a diverged trial is a violated constraint, a failed one is left out"


def test_warm_start_takes_completed_trials(tmp_path: Path) -> None:
    space, settings = SearchSpace.read("quick"), RunSettings(objectives=BOTH)
    inside = space.config({})
    about = {"data": {"fingerprint": "f"}, "settings": RunSettings().model_dump()}
    first = SearchDir.create(tmp_path / "first", search_record(about))
    write_trial(first, 0, inside, [(0.3, 10.0), (0.5, 20.0), (0.4, 90.0)], "completed")
    write_trial(first, 1, inside, [(0.6, 20.0)], "stopped")
    write_trial(first, 2, inside, [(0.6, None)], "completed")
    taken, left_out = select_earlier_trials([first], space, settings, "f")
    assert [(trial.state, trial.values, trial.final) for trial in taken] == [("completed", {}, [0.5, 20.0])]
    assert left_out == {"stopped before its end": 1, "without a value of each objective": 1}
    search = SearchDir.create(tmp_path / "new", search_record(about))
    search.set_earlier(taken)
    Study(search, space, settings).ask(0)
    assert [trial[3] for trial in optuna_trials(search)] == [[0.5, 20.0], None]


def test_an_earlier_search_without_the_objective_is_left_out(tmp_path: Path) -> None:
    """Pooled Dice and mean Dice over patients are not mixed in one study."""
    space, settings = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}}), RunSettings(epochs=3)
    about = {"name": "s", "space": {"source": "", "values": space.to_mapping()}, "settings": settings.model_dump()}
    earlier = SearchDir.create(tmp_path / "old", search_record({**about, "data": {"fingerprint": "f"}}))
    for number, metric in enumerate(("val_dice_best", "val_dice_patients_best")):
        config = TrialConfig(depth=2).model_dump()
        run = RunDir.create(earlier.trial(number).path, run_record({"name": f"trial-{number}", "config": config}))
        run.append(epoch_row({"epoch": 1, metric: 0.5}))
        run.set_status("stopped")
    taken, left_out = select_earlier_trials([earlier], space, settings, "f")
    assert [trial.values for trial in taken] == [{1: 0.5}]
    assert left_out == {"of a version without val_dice_patients_best": 1}
    taken, left_out = select_earlier_trials([earlier], space, RunSettings(epochs=3, objective="val_dice_best"), "f")
    assert len(taken) == 1


# ------------------------------------------------------------------------------------------------ tables and report

SPACE = SearchSpace.from_mapping(
    {
        "depth": {"choices": [2, 4]},
        "base_channels": {"choices": [4, 16]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    }
)


def table_lines(search: SearchDir, width: int = 130) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - what it prints is kept
    show_search(console, search)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.fixture
def by_hand(tmp_path: Path) -> Callable[..., SearchDir]:
    """A search of which only folders exist: (dice, other) of each trial's single epoch."""

    def make(objectives: list[str], *values: tuple[float | None, float]) -> SearchDir:
        settings = RunSettings(objectives=objectives, trials=len(values)).model_dump()
        about = {"kind": "search", "settings": settings, "data": {"name": "prepared", "optimistic": False}}
        space = {"source": "here", "values": {"depth": {"choices": [2, 4]}}}
        search = SearchDir.create(tmp_path / "s", search_record({**about, "name": "s", "space": space}))
        for number, (dice, other) in enumerate(values):
            name, config = f"trial-{number:04d}", TrialConfig(depth=4 if number == 0 else 2)
            run = RunDir.create(
                search.trial(number).path, run_record({**about, "name": name, "config": config.model_dump()})
            )
            run.append(epoch_row({"epoch": 1, "val_dice": None, "val_dice_best": dice, objectives[1]: other}))
            run.set_status("completed")
        search.set_status("completed")
        return search

    return make


def test_the_front_is_listed_first(by_hand: Callable[..., SearchDir]) -> None:
    search = by_hand(BOTH, (0.5, 81.25), (0.45, 60.0), (0.3, 240.04), (None, 500.0), (0.2, 10.0))
    board = leaderboard(search)
    assert [entry.name[-1] for entry in board.trials] == ["0", "2", "1", "4", "3"]
    assert [entry.name[-1] for entry in board.front] == ["0", "2"]
    assert board.best == board.front[0]
    assert table_lines(search) == [
        "s: completed, 5 of 5 trials on prepared",
        " rank  trial       val_dice_best  images_per_s  epochs  state                depth",
        "front  trial-0000         0.5000          81.2       1  completed, baseline      4",
        "front  trial-0002         0.3000         240.0       1  completed                2",
        "       trial-0001         0.4500          60.0       1  completed                2",
        "       trial-0004         0.2000          10.0       1  completed                2",
        "       trial-0003              -         500.0       1  completed                2",
        "Pareto front: 2 of 5 trials, by val_dice_best (highest), images_per_s (highest); a trial's "
        "values are those of its epoch with the highest val_dice_best",
    ]


@pytest.mark.parametrize("objectives", [BOTH, ["val_dice_best", "epoch_s"]])
def test_the_figure_of_the_front(objectives: list[str], by_hand: Callable[..., SearchDir]) -> None:
    search = by_hand(objectives, (0.5, 81.25), (0.45, 60.0), (0.3, 240.04), (None, 500.0), (0.2, 10.0))
    page = write_report(search).read_text()
    assert (search.report / "front.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="figure-front"' in page
    assert "<dt>on the Pareto front</dt><dd>2 trials</dd>" in page if "images_per_s" in objectives else True


# -------------------------------------------------------------------------------------------------- a whole search


@dataclass(frozen=True)
class Done:
    search: SearchDir
    outcome: Outcome


@pytest.fixture(scope="module")
def done(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("runs")
    settings = RunSettings.from_mapping({"epochs": 2, "trials": 5, "objectives": BOTH, "baseline": False})
    search = SearchDir(out / "s")
    return Done(search, tune(search, SearchRequest(SPACE, settings, prepared), default_uri(out)))


def test_a_search_ends_in_a_front(done: Done) -> None:
    assert (done.outcome.early_end, done.outcome.mlflow_problem) == (None, "")
    assert [run.state for run in done.search.trials()] == ["completed"] * 5, "no scheduler"
    assert [len(run.rows()) for run in done.search.trials()] == [2] * 5
    board = leaderboard(done.search)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(done.search.journal)))
    best = optuna.load_study(study_name="s", storage=storage).best_trials
    on_front = {f"trial-{trial.user_attrs['trial']:04d}": trial.values for trial in best}
    assert {entry.name: [entry.metric(name) for name in BOTH] for entry in board.front} == on_front
    assert [f"trial-{run.name}" for run in done.search.trials() if run.best.exists()] == sorted(on_front)
    marked = [line.split()[1] for line in table_lines(done.search) if line.startswith("front  ")]
    assert marked == [entry.name for entry in board.front]
    assert [path.name for path in done.outcome.pictures] == ["index.html", "examples.png"]


def test_mlflow_has_the_front(done: Done) -> None:
    client = MlflowClient(default_uri(done.search.path.parent))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    board = leaderboard(done.search)
    on_front = {entry.name for entry in board.front}
    tags = {run.info.run_name: run.data.tags.get("pareto_front") for run in runs}
    assert tags == {"s": None, **{e.name: "true" if e.name in on_front else "false" for e in board.trials}}
    parent = next(run for run in runs if run.info.run_name == "s")
    assert parent.data.params["objectives"] == "val_dice_best,images_per_s"
    assert done.search.status().front == [entry.name for entry in board.front]
