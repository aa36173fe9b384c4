"""Population based training: which trials are stopped and replaced, and that a search killed anywhere decides alike."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from records import search_record
from whole_search import study_trials

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.runs import folders
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.schema import UNFINISHED, EpochRow, Successor
from wmlsearch.search import checkpoints, memory_admission, object_store, trial_worker
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoint_size import bytes_for_best_weights, most_checkpoint_bytes
from wmlsearch.search.checkpoints import CheckpointRetention, Checkpoints, stored_snapshots
from wmlsearch.search.messages import WorkerJob
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.pbt import FACTORS, Population, Takeover, expected_size, most_snapshots
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.rungs import Rung, levels_of
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.trial_worker import TrainingSession
from wmlsearch.search.tune_loop import replay_reports
from wmlsearch.search.warm_start import select_earlier_trials
from wmlsearch.space import SearchSpace
from wmlsearch.workflows import preflight

SPACE = SearchSpace.from_mapping({"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "schedule": "constant"})


def settings(**values: Any) -> RunSettings:
    return RunSettings(
        **{"scheduler": "pbt", "sampler": "tpe", "epochs": 7, "grace_epochs": 2, "trials": 16, "seed": 2, **values}
    )


# ------------------------------------------------------------------------------------------------------ stopped trials


def test_the_worst_quarter_is_stopped_and_the_best_quarter_is_kept() -> None:
    population = Population(settings())
    assert [population.report(number, 1, 0.0) for number in range(9)] == [False] * 9, "compared at multiples of 2 only"
    heard = [0.5, 0.6, 0.4, 0.3, 0.1, 0.7, 0.2, 0.65, 0.45, 0.15]
    stopped = [number for number, value in enumerate(heard) if population.report(number, 2, value)]
    # the fourth is the worst of four; 0.2 is among the worst of seven but not the worst; of ten the worst two go
    assert stopped == [3, 4, 9]
    assert population.candidates[2] == [5, 7, 1, 0], "a quarter of 16 trials"
    assert population.successors[3] == Takeover(3, 1, 2)
    assert population.successors[4] == Takeover(4, 1, 2)
    assert population.successors[9].parent in (5, 7)
    for number in range(10, 13):
        population.report(number, 2, 0.8)
    assert population.candidates[2] == [10, 11, 12, 5], "of equal trials the earlier ones"
    assert not population.needs_snapshot(1, 2)
    population.add_pending(3)
    assert population.needs_snapshot(1, 2), "a child is to begin with it"
    assert [population.report(number, 7, 0.0) for number in range(9)] == [False] * 9, (
        "the last epoch ends a trial anyway"
    )


def test_of_equal_trials_none_is_stopped() -> None:
    population = Population(settings())
    assert not any(population.report(number, 2, 0.0) for number in range(40))
    assert population.candidates[2] == list(range(4))
    assert not population.report(40, 2, 0.1)
    assert population.report(41, 2, -0.1)


def test_a_trial_that_ended_by_itself_is_not_compared() -> None:
    scheduler = Scheduler(settings())
    for number in range(3):
        assert not scheduler.report(number, 2, 0.5)
    assert not scheduler.report(3, 2, 0.1, ended=True)
    assert not scheduler.report(3, 2, 0.1), "an epoch that was reported before is ignored"
    assert scheduler.report(4, 2, 0.1)
    assert scheduler.stop_reason(4, 2) == (
        "in the worst quarter at epoch 2: a child of trial-0000 takes its place",
        Successor(parent=0, epoch=2),
    )


def test_settings_without_a_comparison_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        RunSettings.from_mapping({"scheduler": "pbt", "epochs": 4, "grace_epochs": 4})
    assert caught.value.faults == (
        "grace_epochs < epochs must hold with pbt, which compares trials at each multiple of it, "
        "but got (grace_epochs=4, epochs=4)",
    )
    with pytest.raises(InputError) as caught:
        RunSettings.from_mapping({"scheduler": "pbt", "trials": 4})
    assert caught.value.faults == (
        "trials >= 5 must hold with pbt, because the worst of 4 is the first that a child replaces, but got (trials=4)",
    )
    with pytest.raises(InputError) as caught:
        preflight.check_budgets(SPACE, settings(trials=6), Slots(6, 1, 1, 0.0))
    assert str(caught.value) == (
        "--scheduler pbt: all 6 trials would start at once, so no child of a good trial could replace a poor one; "
        "give more --trials"
    )


# -------------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(("trials", "epochs", "grace"), [(20, 18, 2), (60, 9, 1), (8, 3, 1)])
def test_the_forecast_of_a_population(trials: int, epochs: int, grace: int) -> None:
    chosen = settings(trials=trials, epochs=epochs, grace_epochs=grace)
    chance, rounds, spent, most = random.Random(1), 200, 0, 0  # noqa: S311 - a simulation
    for _ in range(rounds):
        population, begin = Population(chosen), [0] * trials
        for number in range(trials):  # one after another, with random values
            for epoch in range(begin[number] + 1, epochs + 1):
                spent += 1
                if population.report(number, epoch, chance.random()):
                    if number + 1 < trials:
                        begin[number + 1] = epoch
                    break
        most = max(most, sum(len(parents) for parents in population.candidates.values()))
    expected = sum(level.epochs for level in levels_of(chosen))
    assert expected == pytest.approx(spent / rounds, rel=0.06)
    assert most <= most_snapshots(chosen, 1)


def test_the_levels_of_a_population() -> None:
    size = expected_size(settings())
    assert 0 < size < 16
    assert levels_of(settings()) == tuple(
        Rung(end, size, size * epochs) for end, epochs in ((2, 2), (4, 2), (6, 2), (7, 1))
    )
    assert levels_of(settings(scheduler="none")) == (Rung(7, 16, 16 * 7),)
    assert expected_size(settings(trials=5, epochs=3)) == pytest.approx(4.0 + (1 - 0.25) / (1 + 1 / 5))


def test_max_checkpoint_gb_includes_snapshots() -> None:
    last, best = most_checkpoint_bytes(SPACE)
    chosen = settings(trials=20, epochs=18, max_checkpoint_gb=0.5)
    assert most_snapshots(chosen, 2) == 8 * 5 + 4
    assert most_snapshots(settings(scheduler="asha"), 2) == 0
    running, kept = 2 * (2 * last + best), 44 * (last + best)
    with pytest.raises(InputError) as caught:
        bytes_for_best_weights(SPACE, chosen, Slots(2, 1, 1, 0.0))
    assert str(caught.value) == (
        f"--max-checkpoint-gb 0.5: 2 running trials may need {running / 1e9:.3g} GB, 44 snapshots for children "
        f"{kept / 1e9:.3g} GB and the best weights {best / 1e9:.3g} GB; give at least "
        f"{math.ceil((running + kept + best) / 1e6) / 1000:g}, or search smaller networks, or compare less often "
        "(--grace-epochs)"
    )
    enough = chosen.model_copy(update={"max_checkpoint_gb": 2.0})
    assert bytes_for_best_weights(SPACE, enough, Slots(2, 1, 1, 0.0)) == 2e9 - running - kept


# -------------------------------------------------------------- a whole search without Tune and torch, killed anywhere


class Killed(BaseException):
    """An exception that no handler of the program catches."""


WRITES = ((os, "replace", os.replace), (folders, "append_line", folders.append_line), (Path, "unlink", Path.unlink))


class World:
    """A machine on which training costs nothing, and which can die at any write: when a file is replaced or deleted, or
    a line is appended."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, store: bool) -> None:
        self.search, self.store = SearchDir(root / "s"), root / "store" if store else None
        self.writes, self.dies_at, self.clock, self.trained = 0, -1, itertools.count(1), 0
        self.most = 0  # snapshots at a time
        for module, name, act in WRITES:
            monkeypatch.setattr(module, name, self.watched(act))
        monkeypatch.setattr(trial_worker, "epochs", self.epochs)
        monkeypatch.setattr(trial_worker, "load_checkpoint", lambda path: {"reports": json.loads(path.read_text())})
        monkeypatch.setattr(trial_worker, "check_same_training", lambda *_, **__: None)
        data = SimpleNamespace(train=SimpleNamespace(images=SimpleNamespace(device=None)))
        monkeypatch.setattr(trial_worker, "open_data", lambda _shipment, _fold: data)
        monkeypatch.setattr(trial_worker, "limit_to_share", lambda *_: None)
        monkeypatch.setattr(trial_worker, "predict_peak_memory", lambda *_: memory_admission.MemoryFit(1, 2, 1.0))
        if store:
            scratch = root / "scratch"  # for local copies of a store: a killed process leaves them
            scratch.mkdir(parents=True)
            monkeypatch.setattr(tempfile, "tempdir", str(scratch))
            local = fs.LocalFileSystem()
            pretended = SimpleNamespace(from_uri=lambda uri: (local, uri.replace("store:/", str(self.store))))
            names = ("LocalFileSystem", "FileType", "FileSelector", "copy_files")
            shown = {name: getattr(fs, name) for name in names}
            for module in (checkpoints, object_store):
                monkeypatch.setattr(module, "fs", SimpleNamespace(FileSystem=pretended, **shown))

    def watched(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **named: Any) -> Any:
            self.writes += 1
            if self.writes == self.dies_at:
                raise Killed
            return act(*arguments, **named)

        return write

    def place(self, run: AnyDir) -> str:
        return f"store://{run.path.relative_to(self.search.path.parent)}" if self.store else str(run.path)

    def epochs(self, config: TrialConfig, data: None, *, last: Path, best: Path, max_epochs: int, **how: Any) -> Any:
        """A training whose score grows faster the nearer its rate is to 0.01. With a high rate it ends by itself."""
        rows = json.loads(last.read_text()) if last.exists() else []
        while not (rows and rows[-1]["ended"]):
            self.trained += 1
            epoch, rates = len(rows) + 1, how["rate_factors"]
            rate = config.learning_rate * rates.get(max((it for it in rates if it <= epoch), default=0), 1.0)
            value = (rows[-1]["val_dice_patients_best"] if rows else 0.0) + 0.1 / (1 + abs(math.log10(rate) + 2))
            ended = "completed" if epoch == max_epochs else "early_stopped" if rate > 0.08 and epoch == 2 else None
            now = float(next(self.clock))
            rows.append({"epoch": epoch, "epoch_s": 1.0, "time": now, "ended": ended, "val_dice_patients_best": value})
            for path in (best, last):
                aside = path.with_name(f".{path.name}.aside")
                aside.write_text(json.dumps(rows))
                os.replace(aside, path)
            yield EpochRow.from_json(rows[-1])

    def run(self, chosen: RunSettings, at_once: int = 1) -> None:
        """Run the trials like `run_trials`, without Tune: the slots train an epoch in turn."""
        scheduler = Scheduler(chosen)
        replay_reports(self.search, chosen, scheduler)
        proposals = Study(self.search, SPACE, chosen, self.search.record().portfolio)
        budget = Budget(self.search, chosen, Slots(at_once, 1, 1, 0.0))
        retention = CheckpointRetention(self.place, lambda _run: 1, math.inf, chosen.objective_names)
        recorder = Recorder(self.search, chosen, proposals, budget, self.place, retention, lambda _run: None, scheduler)
        job = WorkerJob(Shipment(Path(), ""), chosen, threads=1, snapshot_every=chosen.grace_epochs)
        numbers = [n for n in range(chosen.trials) if self.search.trial(n).state in UNFINISHED]
        running: list[tuple[Any, TrainingSession]] = []
        while True:
            while numbers and len(running) < at_once and (begun := recorder.begin(numbers[0])) is not None:
                numbers.pop(0)
                trial = SimpleNamespace(config=begun.as_plain(), run_metadata=SimpleNamespace(num_failures=0))
                running.append((trial, TrainingSession(job, begun)))
            if not running or budget.reason:
                break
            for trial, training in list(running):
                result = training.step().as_plain(chosen.objective)
                if result.get("done"):
                    scheduler.on_trial_complete(None, trial, result)
                elif scheduler.on_trial_result(None, trial, result) == "STOP":
                    result["done"] = True
                recorder.on_trial_result(0, [], trial, result)
                retention.wait()
                self.most = max(self.most, len(self.snapshots()))
                if result.get("done"):
                    training.close()
                    running.remove((trial, training))
        recorder.interrupt_unfinished()
        retention.wait()

    def snapshots(self) -> set[tuple[str, int]]:
        stored = stored_snapshots(self.search, self.place)
        return {(f"{number:04d}", epoch) for epoch, numbers in stored.items() for number in numbers}

    def begin(self, chosen: RunSettings, portfolio: Sequence[Mapping[str, Any]] = ()) -> None:
        about = {"settings": chosen.model_dump(), "data": {"fingerprint": "f"}, "versions": {}}
        SearchDir.create(self.search.path, search_record(about, portfolio=list(portfolio)))

    def facts(self) -> list[dict[str, Any]]:
        return [
            {
                **{name: getattr(run.record(), name) for name in ("config", "parent", "parent_epoch", "replaces")},
                "factors": run.record().rate_factors,
                **{name: getattr(run.status(), name) for name in ("state", "reason", "successor")},
                "rows": [
                    {name: value for name, value in row.as_json().items() if name not in ("time", "received")}
                    for row in run.rows()
                ],
            }
            for run in self.search.trials()
        ]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    count = itertools.count()
    return lambda store=False: World(tmp_path / str(next(count)), monkeypatch, store)


def test_a_child_starts_from_its_parents_snapshot(world: Callable[..., World]) -> None:
    here, chosen = world(), settings()
    here.begin(chosen)
    here.run(chosen)
    trials = here.search.trials()
    children = [run for run in trials if run.record().parent is not None]
    assert any(here.search.trial(run.record().parent or 0).record().parent is not None for run in children), (
        "a grandchild"
    )
    for run in children:
        about, rows = run.record(), run.rows()
        parent, epoch = here.search.trial(about.parent), about.parent_epoch
        assert about.config == parent.record().config
        assert rows[:epoch] == parent.rows()[:epoch]
        assert [row.epoch for row in rows] == list(range(1, len(rows) + 1))
        *before, last = sorted(run.record().rate_factors.items())
        assert dict(before) == parent.record().rate_factors
        assert last[0] == epoch + 1
        assert last[1] / (before[-1][1] if before else 1.0) in [pytest.approx(factor) for factor in FACTORS]
        replaced = here.search.trial(about.replaces)
        assert replaced.status().successor == Successor(parent=about.parent, epoch=epoch)
        assert replaced.status().reason == (
            f"in the worst quarter at epoch {epoch}: a child of trial-{parent.name} takes its place"
        )
        assert int(run.name) == int(replaced.name) + 1, "one at a time, a stopped trial is replaced at once"
    stopped = [run for run in trials if run.state == "stopped"]
    assert len(stopped) - len(children) == (trials[-1].state == "stopped")
    assert here.trained == sum(len(run.trained_rows()) for run in trials), "no epoch twice"
    fresh = [int(run.name) for run in trials[1:] if run not in children]
    assert [trial[-1] for trial in study_trials(here.search)] == fresh, (
        "the baseline configuration lies outside this space"
    )
    assert not any(here.search.path.rglob("epoch-*")), "no trial can begin at the end"
    assert 0 < here.most <= most_snapshots(chosen, 1)
    left = select_earlier_trials([here.search], SPACE, chosen, "f")[1]
    assert left["children of population based training"] == len(children)


@pytest.mark.parametrize(("store", "every"), [(False, 13), (True, 29)], ids=["folder", "object store"])
def test_a_search_killed_at_any_write_ends_like_one_that_was_not(
    store: bool, every: int, world: Callable[..., World]
) -> None:
    chosen = settings(trials=11)
    never = world(store)
    never.begin(chosen)
    first = never.writes
    never.run(chosen)
    facts, study_ = never.facts(), study_trials(never.search)
    assert sum(fact["parent"] is not None for fact in facts) >= 2
    for dies_at in range(first + 1, never.writes, every):
        here = world(store)
        here.begin(chosen)
        here.dies_at = dies_at
        with pytest.raises(Killed):
            here.run(chosen)
        here.run(chosen)
        assert here.facts() == facts, dies_at
        assert study_trials(here.search) == study_, dies_at
        assert here.snapshots() == set(), dies_at
        assert here.trained - never.trained <= 1, "at most the epoch that was not saved is repeated"


def test_children_take_no_configuration_from_experience(world: Callable[..., World]) -> None:
    chosen = settings(trials=20)
    portfolio = [{"learning_rate": rate} for rate in (3e-4, 5e-2, 2e-4, 1e-2, 4e-4, 2e-2, 6e-4, 8e-3)]
    never, here = world(), world()
    for one in (never, here):
        one.begin(chosen, portfolio)
    never.run(chosen, at_once=2)
    records = [run.record() for run in never.search.trials()]
    tried = [number for number, record in enumerate(records) if record.origin == "experience"]
    assert [records[number].config.learning_rate for number in tried] == [each["learning_rate"] for each in portfolio]
    children = [number for number, record in enumerate(records) if record.parent is not None]
    assert min(children) < max(tried), "a child began before the last of them"
    assert [records[number].origin for number in children] == [""] * len(children)
    for budget in (20, 40, 60):
        here.run(chosen.model_copy(update={"max_epochs_total": budget, "baseline": False}))
    here.run(chosen)
    records = [run.record() for run in here.search.trials()]
    tried = [number for number, record in enumerate(records) if record.origin == "experience"]
    assert [records[number].config.learning_rate for number in tried] == [each["learning_rate"] for each in portfolio]


def test_parallel_trials_with_repeated_kills(world: Callable[..., World]) -> None:
    here, chosen = world(), settings(trials=24)
    here.begin(chosen)
    deaths = 0
    while not here.search.trial(chosen.trials - 1).exists() or here.snapshots():
        here.dies_at = here.writes + 150
        try:
            here.run(chosen, at_once=3)
        except Killed:
            deaths += 1
    assert deaths > 4
    assert here.most <= most_snapshots(chosen, 3)
    trials = here.search.trials()
    assert not [run.state for run in trials if run.state in UNFINISHED]
    children = {run.record().replaces: run for run in trials if run.record().parent is not None}
    assert len(children) == sum(run.record().parent is not None for run in trials), "a trial is replaced by one child"
    stopped = {int(run.name) for run in trials if run.state == "stopped"}
    assert set(children) <= stopped
    assert len(stopped) - len(children) <= 3, "no more than ran at the end are not replaced"
    for replaced, run in children.items():
        about = run.record()
        assert here.search.trial(replaced).status().successor == Successor(
            parent=about.parent, epoch=about.parent_epoch
        )
    for run in trials:
        assert [row.epoch for row in run.rows()] == list(range(1, len(run.rows()) + 1))
    assert sum(len(run.trained_rows()) for run in trials) <= here.trained


def test_a_complete_search_continues_with_a_new_population(world: Callable[..., World]) -> None:
    here = world()
    here.begin(settings(trials=8))
    here.run(settings(trials=8))
    before = here.facts()
    here.run(settings(trials=24))
    assert here.facts()[:8] == before
    children = [run.record() for run in here.search.trials() if run.record().parent is not None and int(run.name) >= 8]
    assert children
    assert all(about.parent >= 8 for about in children), "earlier trials have no snapshots"


def test_a_search_that_a_budget_ended_keeps_its_snapshots(world: Callable[..., World]) -> None:
    never, here = world(), world()
    for one in (never, here):
        one.begin(settings())
    never.run(settings())
    here.run(settings(max_epochs_total=35, baseline=False))  # no final runs, for which epochs would be reserved
    assert here.snapshots()
    here.run(settings())
    assert here.facts() == never.facts()
    assert here.snapshots() == set()


# ------------------------------------------------------------------------------------------------------------ snapshots


def test_a_snapshot_is_a_hard_link(tmp_path: Path) -> None:
    parent, child = Checkpoints(str(tmp_path / "0")), Checkpoints(str(tmp_path / "1"))
    (tmp_path / "0").mkdir()
    for path in (parent.last, parent.best):
        path.write_bytes(path.name.encode())
    for _ in range(2):  # a restarted process may repeat it
        parent.save_snapshot(4)
    assert (tmp_path / "0" / "epoch-0004.pt").samefile(parent.last)
    assert not child.copy_snapshot(str(tmp_path / "0"), 2)
    assert child.copy_snapshot(str(tmp_path / "0"), 4)
    assert (child.last.read_bytes(), child.best.read_bytes()) == (b"last.pt", b"best.pt")
    for path in RunDir(tmp_path / "0").snapshot(4):
        parent.delete(path)
    assert sorted(path.name for path in tmp_path.rglob("*.pt*")) == ["best.pt", "best.pt", "last.pt", "last.pt"]
    assert re.fullmatch(r"epoch-\d{4}-best\.pt", RunDir(tmp_path).snapshot(123)[1].name)
