"""The end of a search, without Ray: final runs, champion, models, sealed test; killed and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from records import epoch_row, run_record

from wmlsearch.cluster import resources
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import LEDGER, SEALED
from wmlsearch.data.sealed_test import openings
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.inference.export import load_exported
from wmlsearch.model.checkpoint import CHECKPOINT_FORMAT
from wmlsearch.model.unet import UNet
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER
from wmlsearch.runs.schema import GOOD, RUNNING, SelectionRecord
from wmlsearch.search.final_training import RunRequest, RunTrainer
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import final_models, remaining_work, run_search, sealed_test
from wmlsearch.workflows.final_runs import FinalSlots
from wmlsearch.workflows.model_lookup import find_model
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.provenance import data_record, search_record
from wmlsearch.workflows.search_plan import SearchPlan
from wmlsearch.workflows.stored_search import NO_STORAGE
from wmlsearch.workflows.train import TrainRequest
from wmlsearch.workflows.train import train as train_one

TINY = TrialConfig(depth=1, base_channels=1)  # of the stored weights
FAILED = -1.0
Values = Callable[[str], float]  # the value of a final run, by its name


class Killed(BaseException):
    """Stands for `kill -9`: nothing that handles errors catches it."""


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """The prepared data with a ledger of their own."""
    copy = Path(shutil.copytree(prepared, tmp_path / "data"))
    (copy / SEALED / LEDGER).write_text("")
    return copy


class Ending:
    """A search whose trials have ended: the baseline, and trials of other depths with these values of the objective."""

    def __init__(self, path: Path, data: Path, trials: Mapping[int, float], /, folds: int = 3, **settings: Any) -> None:
        self.data, self.trained = data, list[str]()
        chosen = RunSettings(epochs=2, **{"confirm_top": 2, "confirm_seeds": 2, "final_runs": 3, **settings})
        space = SearchSpace.from_mapping({"depth": {"choices": [1, 2, 3, 4, 5]}}, "here")
        manifest = PreparedData.open(data).manifest
        self.plan = SearchPlan(
            space=space,
            settings=chosen,
            data=data,
            manifest=manifest,
            data_record=data_record(data, PreparedData.open(data)),
            placement=LOCAL,
            slots=Slots(1, 1, 1, 0.0),
            forecast_final_slots=Slots(1, 1, 1, 0.0),
        )
        self.search = SearchDir.create(path, search_record("s", self.plan, 0, {}))
        self.plan = replace(self.plan, manifest=cast(Any, SimpleNamespace(fold_count=folds)))
        for number, value in {0: 0.5, **trials}.items():
            self.add_trial(number, value)

    def add_trial(self, number: int, value: float, state: str = "completed", **config_values: Any) -> None:
        config = TrialConfig() if number == 0 else TrialConfig(**{"depth": number, **config_values})
        about = {"name": f"trial-{number:04d}", "config": config.model_dump(), "settings": self.plan.settings}
        run = RunDir.create(self.search.trial(number).path, run_record(about, data=self.plan.data_record.as_json()))
        run.append(row(value))
        run.set_status(state)

    def go_on(self, values: Values, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Run the rest of the search in a new session; return what it says. Runs of the value FAILED fail."""

        def without_ray(
            _: RunTrainer, requests: Sequence[RunRequest], slots: Slots, on_change: Any, *_ticks: Any
        ) -> None:
            for request in requests:
                self.trained.append(request.record.name)
                train(request, values(request.record.name))
                on_change(request.run)

        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(RunTrainer, "train", without_ray)
            if not remaining_work.judged_by_older_version(self.search):
                observer = Observer(say=said.append)
                run_search._choose_and_judge(self.search, self.plan, cast(Any, None), observer, NO_STORAGE)
        return said

    def end(self) -> str:
        """Record the end of the search, with its report; return what a resumed one says if nothing is left to do."""
        self.search.set_status("completed")
        self.search.report.mkdir(exist_ok=True)
        (self.search.report / "index.html").touch()
        return self.left_to_do()

    def left_to_do(self, **budgets: Any) -> str:
        settings = self.search.record().settings.model_copy(update=budgets)
        return remaining_work.nothing_left(self.search, settings, default_uri(self.search.path.parent))

    def members(self) -> dict[str, list[str]]:
        return {role: self.search.model(role).record().members for role in (BASELINE, CHAMPION)}

    def opened(self) -> int:
        return len(openings(self.data))


def row(value: float) -> Any:
    values = {"val_dice_patients_best": value, "val_dice_best": value, "val_dice": value}
    return epoch_row({"epoch": 1, "ended": "completed", **values})


def train(request: RunRequest, value: float) -> None:
    """Do as Ray Train does: a folder, a row, weights, a status."""
    run, record = request.run, request.record
    if run.exists():
        run.set_status(RUNNING)
    else:
        RunDir.create(run.path, record)
    if value == FAILED:
        run.set_status("failed", "no luck")
        return
    run.reconcile([row(value)])
    torch.manual_seed(record.settings.seed)
    weights = UNet(TINY.depth, TINY.base_channels, TINY.dropout, TINY.norm).state_dict()
    about = {"config": TINY.model_dump(), "seed": record.settings.seed, "threshold": 0.5, "report": {}}
    torch.save({"format": CHECKPOINT_FORMAT, **about, "model": weights}, run.best)
    run.set_status("completed")


def better(name: str) -> float:
    """Return a value by which trial-0002 is the champion."""
    return {"paper": 0.5, "trial-0001": 0.4, "trial-0002": 0.6}.get(name.rpartition("-")[0], 0.3)


def worse(name: str) -> float:
    return 0.5 if name.startswith(PAPER) else 0.4


SELECTION = [f"{name}-seed{seed}" for seed in (1, 2) for name in (PAPER, "trial-0002", "trial-0001")]
JUDGEMENT = [f"{name}-run{number}" for number in range(3) for name in (PAPER, "trial-0002")]


def test_seeds_and_folds_of_all_final_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6, 2: 0.7, 3: 0.2}, seed=10)
    said = ending.go_on(better, monkeypatch)
    assert (
        ending.trained == [name.replace("seed1", "seed11").replace("seed2", "seed12") for name in SELECTION] + JUDGEMENT
    )
    facts = {
        run.name: (record.kind, record.purpose, record.settings.seed, record.fold, record.config.depth, record.model)
        for run, record in ((run, run.record()) for run in ending.search.finals())
    }
    # the trials have seed 10; run k of a configuration validates on fold k, of three
    assert facts == {
        "paper-seed11": ("selection run", "selection", 11, 0, 4, "paper"),
        "paper-seed12": ("selection run", "selection", 12, 1, 4, "paper"),
        "trial-0001-seed11": ("selection run", "selection", 11, 0, 1, "trial-0001"),
        "trial-0001-seed12": ("selection run", "selection", 12, 1, 1, "trial-0001"),
        "trial-0002-seed11": ("selection run", "selection", 11, 0, 2, "trial-0002"),
        "trial-0002-seed12": ("selection run", "selection", 12, 1, 2, "trial-0002"),
        "paper-run0": ("judgement run", "judgement", 13, 0, 4, "paper"),
        "paper-run1": ("judgement run", "judgement", 14, 1, 4, "paper"),
        "paper-run2": ("judgement run", "judgement", 15, 2, 4, "paper"),
        "trial-0002-run0": ("judgement run", "judgement", 13, 0, 2, "trial-0002"),
        "trial-0002-run1": ("judgement run", "judgement", 14, 1, 2, "trial-0002"),
        "trial-0002-run2": ("judgement run", "judgement", 15, 2, 2, "trial-0002"),
    }
    selection = ending.search.selection()
    assert selection is not None
    assert selection.sentence in said
    assert said[0].startswith("selection runs: baseline configuration, trial-0002, trial-0001; 2 runs each, ")
    assert said[2].startswith("judgement runs: baseline configuration and champion (trial-0002); 3 runs each, ")
    record = ending.search.model(CHAMPION).record()
    assert (record.model, sorted(record.folds), len(record.members)) == ("trial-0002", [0, 1, 2], 3)
    exported = load_exported(ending.search.model(CHAMPION).export)
    assert sorted((member.seed, member.fold) for member in exported.members) == [(13, 0), (14, 1), (15, 2)]
    assert {member.threshold for member in exported.members} == {exported.ensemble_threshold}
    evaluation = ending.search.evaluation()
    assert evaluation is not None
    assert evaluation.names == {BASELINE: PAPER, CHAMPION: "trial-0002"}
    assert ending.opened() == 1


def test_with_more_runs_than_folds_the_folds_come_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, folds=2, confirm_seeds=1)
    ending.go_on(better, monkeypatch)
    assert [ending.search.judgement_run(PAPER, number).record().fold for number in range(3)] == [0, 1, 0]


def test_one_validation_set_is_fold_0_of_every_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, folds=1)
    ending.go_on(better, monkeypatch)
    assert {run.record().fold for run in ending.search.finals()} == {0}


def test_the_judgement_runs_have_the_slots_that_fit_without_the_workers_of_the_selection_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle workers that go on with them hold memory. With other slots they would be ended, and fewer runs trained."""
    free_gb = 18.0

    def hold_memory(name: str) -> float:
        nonlocal free_gb
        free_gb = 8.4
        return better(name)

    monkeypatch.setattr(resources, "this_machine", lambda: [{"CPU": 8.0, "GPU": 0.0}])
    monkeypatch.setattr(resources, "free_memory_gb", lambda: free_gb)
    said = Ending(tmp_path / "s", data, {1: 0.6, 2: 0.7}).go_on(hold_memory, monkeypatch)
    for line, stage in ((said[0], "selection runs: "), (said[2], "judgement runs: ")):
        assert line.startswith(stage)
        assert line.endswith(", 6 at a time, each 1 worker with 1 CPU each")


def test_a_stage_has_the_machines_that_the_cluster_has_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"CPU": 2.0, "GPU": 0.0}]
    monkeypatch.setattr(resources, "cluster_nodes", lambda _: list(machines))
    monkeypatch.setattr(resources, "free_memory_gb", lambda: pytest.fail("a cluster's machines are not this one"))
    plan: Any = SimpleNamespace(placement=Placement("auto", "s3://bucket"), reserved=None)
    slots = FinalSlots(plan)
    assert slots.of(6).count == 2
    machines.append({"CPU": 8.0, "GPU": 0.0})
    assert slots.of(6).count == 6


def test_nothing_better_than_the_baseline(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6, 2: 0.7})
    said = ending.go_on(worse, monkeypatch)
    assert ending.trained == [*SELECTION, "paper-run0", "paper-run1", "paper-run2"]
    assert ending.search.evaluation() is None
    assert ending.opened() == 0
    assert said[-1].startswith("judgement runs: baseline configuration; 3 runs each, ")
    assert said[1] == (
        "Nothing better than the baseline configuration was found, so it is the champion and the sealed test stays "
        "closed: its mean Dice per patient on validation patients is 0.500 over 2 selection runs, that of the best "
        "candidate (trial-0001) 0.400."
    )
    members = ending.members()
    assert members[BASELINE] == members[CHAMPION]
    assert ending.search.model(CHAMPION).record().name == "champion (paper)"
    found = find_model("s", tmp_path, "")
    assert sorted(member.name for member in found.members) == ["paper-run0", "paper-run1", "paper-run2"]
    with pytest.raises(InputError) as refused:
        sealed_test.evaluate_run(ending.search, data, lambda *_: None)
    assert str(refused.value) == (
        "s: its champion is the baseline configuration, so there is nothing to compare on the sealed test; name a "
        f"single run, such as {tmp_path}/s/final/paper-run0"
    )
    assert ending.opened() == 0


def test_the_alias_champion_is_the_baseline_where_nothing_is_better(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, confirm_seeds=1, final_runs=1)
    ending.go_on(worse, monkeypatch)
    uri = default_uri(tmp_path)
    sync(ending.search, uri)
    client = connect(uri)
    tags = client.get_run(ending.search.ledger().run_id or "").data.tags
    assert (tags["champion"], "verdict" in tags) == (PAPER, False)
    assert tags["mlflow.note.content"].startswith("Nothing better than the baseline configuration was found")
    version = client.get_model_version_by_alias("wml-unet", "champion")
    assert client.get_run(version.run_id or "").info.run_name == "champion (paper)"
    for model in ("models:/wml-unet@champion", "models:/wml-unet@baseline"):
        assert [member.name for member in find_model(model, tmp_path, uri).members] == ["paper-run0"]


def test_no_candidate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {})
    ending.add_trial(1, 0.1, "stopped")
    said = ending.go_on(better, monkeypatch)
    assert ending.trained == ["paper-run0", "paper-run1", "paper-run2"]
    assert said[0].endswith("closed: no trial is a candidate.")
    assert ending.search.model(CHAMPION).exists()
    ending.go_on(better, monkeypatch)
    assert len(ending.trained) == 3, "a resumed search has nothing left to train"


def test_confirm_top_0_trains_the_baseline_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, confirm_top=0, final_runs=2)
    ending.go_on(better, monkeypatch)
    assert ending.trained == ["paper-run0", "paper-run1"]
    assert ending.search.selection() is None
    assert [model.name for model in ending.search.models()] == [BASELINE]
    assert ending.opened() == 0


def test_one_judgement_run_is_a_single_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.6}, final_runs=1, confirm_seeds=1)
    ending.go_on(better, monkeypatch)
    assert ending.trained == ["paper-seed1", "trial-0002-seed1", "paper-run0", "trial-0002-run0"]
    exported = load_exported(ending.search.model(CHAMPION).export)
    assert (len(exported.members), exported.ensemble_threshold) == (1, None)
    evaluation = ending.search.evaluation()
    assert evaluation is not None
    assert evaluation.models[CHAMPION].ensemble is None


def test_the_verdict_says_which_runs_the_limit_on_epochs_has_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.6}, final_runs=2, confirm_seeds=1)
    ending.go_on(better, monkeypatch)
    for run in ending.search.finals():
        if run.name in ("paper-run0", "paper-run1", "trial-0002-run1"):
            losses, end = [0.9, 0.8], "completed"  # the lowest loss is the last one
        else:
            losses, end = [0.8] + [0.9] * 10, "early_stopped"
        ends = [None] * (len(losses) - 1) + [end]
        run.reconcile(
            [
                replace(row(0.5), epoch=epoch, ended=ended, metrics={**row(0.5).metrics, "val_loss": loss})
                for epoch, (loss, ended) in enumerate(zip(losses, ends, strict=True), start=1)
            ]
        )
    note = "The limit of 2 epochs ended 2 of the baseline's 2 runs and 1 of the champion's 2 runs"
    assert sealed_test.budget_note(ending.search) == f"{note} that could still improve."
    evaluation = sealed_test.evaluate_search(ending.search, ending.plan.settings, data, lambda *_: None)
    assert evaluation.verdict is not None
    assert evaluation.verdict.budget_note == f"{note} that could still improve."


def test_a_failed_selection_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best candidate fails in one run, so the next one is the champion. A resumed search tries the run again."""
    ending = Ending(tmp_path / "s", data, {1: 0.6, 2: 0.7})
    failing = {"trial-0001": 0.55, "trial-0002": 0.9}

    def values(name: str) -> float:
        return FAILED if name == "trial-0002-seed2" else failing.get(name.rpartition("-")[0], 0.5)

    ending.go_on(values, monkeypatch)
    assert ending.search.model(CHAMPION).record().model == "trial-0001"
    ending.trained.clear()
    ending.go_on(lambda name: failing.get(name.rpartition("-")[0], 0.5), monkeypatch)
    assert ending.trained == ["trial-0002-seed2", "trial-0002-run0", "trial-0002-run1", "trial-0002-run2"]
    assert ending.search.model(CHAMPION).record().model == "trial-0002"
    evaluation = ending.search.evaluation()
    assert evaluation is not None
    assert (evaluation.names[CHAMPION], ending.opened()) == ("trial-0002", 2)


def test_a_failed_judgement_run_leaves_its_partner_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.7}, confirm_seeds=1)
    ending.go_on(lambda name: FAILED if name == "trial-0002-run1" else better(name), monkeypatch)
    members = {role: sorted(name.split()[0] for name in names) for role, names in ending.members().items()}
    assert members == {BASELINE: ["paper-run0", "paper-run2"], CHAMPION: ["trial-0002-run0", "trial-0002-run2"]}
    ending.go_on(better, monkeypatch)
    assert [len(names) for names in ending.members().values()] == [3, 3]
    assert ending.opened() == 2


def test_without_a_common_judgement_run_there_is_no_verdict(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.7}, confirm_seeds=1, final_runs=2)
    failing = ("paper-run1", "trial-0002-run0")
    said = ending.go_on(lambda name: FAILED if name in failing else better(name), monkeypatch)
    assert said[-1] == (
        "no verdict: baseline configuration and champion have finished no judgement run of the same fold"
    )
    members = {role: [name.split()[0] for name in names] for role, names in ending.members().items()}
    assert members == {BASELINE: ["paper-run0"], CHAMPION: ["trial-0002-run1"]}
    assert ending.opened() == 0


def test_a_baseline_that_fails_always_leaves_the_champion(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.7}, confirm_seeds=1, final_runs=1)
    ending.go_on(lambda name: FAILED if name.startswith(PAPER) else better(name), monkeypatch)
    assert [model.name for model in ending.search.models()] == [CHAMPION]
    assert ending.opened() == 0


KILLS: dict[str, tuple[object, str, int]] = {  # (where, function, at which call)
    "before the first run": (run_search, "train_selection_runs", 1),
    "in the first selection run": (RunDir, "reconcile", 1),
    "before the second selection run": (RunDir, "create", 2),
    "before the champion is recorded": (SearchDir, "set_selection", 1),
    "after the champion is recorded": (run_search, "train_judgement_runs", 1),
    "before the second judgement run": (RunDir, "create", 5),
    "before the first model": (final_models, "_keep_model", 1),
    "in the export of the first model": (final_models, "export_model", 1),
    "before the second model": (final_models, "_keep_model", 2),
    "in the export of the second model": (final_models, "export_model", 2),
    "before the sealed test": (run_search, "evaluate_search", 1),
    "in the sealed test": (sealed_test, "judge", 1),
    "before the end of the sealed test": (SearchDir, "set_gallery", 1),
}


@pytest.mark.parametrize("place", KILLS)
def test_a_killed_ending_goes_on(place: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6, 2: 0.7}, final_runs=1, confirm_seeds=1)
    owner, name, call = KILLS[place]
    calls = 0

    def dying(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*arguments, **more)

    original: Any = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            ending.go_on(better, monkeypatch)
    ending.go_on(better, monkeypatch)
    assert {run.name for run in ending.search.finals()} == {
        "paper-seed1", "trial-0001-seed1", "trial-0002-seed1", "paper-run0", "trial-0002-run0",
    }  # fmt: skip
    assert len(set(ending.trained)) == 5
    assert all(run.state in GOOD for run in ending.search.all_runs())
    evaluation = ending.search.evaluation()
    assert evaluation is not None
    assert evaluation.members == [ending.members()[role] for role in (BASELINE, CHAMPION)]
    before = {path: path.stat().st_mtime_ns for path in ending.search.path.rglob("*")}
    trained, opened = list(ending.trained), ending.opened()
    ending.go_on(better, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in ending.search.path.rglob("*")} == before, "nothing is left to do"
    assert (ending.trained, ending.opened()) == (trained, opened)


def test_while_a_new_champion_is_trained_nothing_is_said_of_the_earlier_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, confirm_top=1, confirm_seeds=1, final_runs=1)
    ending.go_on(lambda name: 0.55 if name.startswith("trial-0001") else 0.5, monkeypatch)
    assert ending.search.model(CHAMPION).record().model == "trial-0001"
    ending.add_trial(2, 0.8)
    said = ending.go_on(lambda name: FAILED if name == "trial-0002-run0" else better(name), monkeypatch)
    selection = ending.search.selection()
    assert selection is not None
    assert selection.champion == "trial-0002"
    assert any("no verdict" in line for line in said)
    assert ending.search.evaluation() is None
    assert (ending.search.path / "test-of-trial-0001.json").is_file()
    assert not ending.search.model(CHAMPION).exists(), "its network is not the champion's"


def test_more_trials_can_change_the_champion(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, confirm_top=1, confirm_seeds=1, final_runs=1)
    ending.go_on(lambda name: 0.55 if name.startswith("trial-0001") else 0.5, monkeypatch)
    first = ending.search.model(BASELINE).record().key
    ending.add_trial(2, 0.8)
    ending.trained.clear()
    ending.go_on(better, monkeypatch)
    assert ending.trained == ["trial-0002-seed1", "trial-0002-run0"]
    assert ending.search.model(CHAMPION).record().model == "trial-0002"
    assert ending.search.model(BASELINE).record().key == first, "the baseline's model stays"
    assert ending.opened() == 2


def test_a_training_on_a_fold_that_the_data_do_not_have(data: Path, tmp_path: Path) -> None:
    folds = PreparedData.open(data).manifest.fold_count
    for fold in (folds, -1):
        with pytest.raises(InputError, match=rf"^--fold {fold}: must be from 0 to {folds - 1}, since {data} has "):
            train_one(RunDir(tmp_path / "r"), TrainRequest(TINY, RunSettings(), data, 0, fold=fold), "")
    assert not (tmp_path / "r").exists()


# ------------------------------------------------------------------------------------------------- older versions


def older(ending: Ending, name: str, seed: int, value: float) -> None:
    """Add a final run as an older version left it."""
    run = ending.search.final(name, seed)
    settings = ending.plan.settings.model_copy(update={"seed": seed})
    record = run_record(
        {"name": run.name, "kind": "confirmation", "settings": settings, "model": name},
        data=ending.plan.data_record.as_json(),
    )
    train(RunRequest(run, record, str(run.path)), value)


def test_final_runs_of_an_older_version_become_selection_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after its first seed. What is left of its selection has its seeds; judgement runs have new ones."""
    ending = Ending(tmp_path / "s", data, {2: 0.7}, folds=1, final_runs=2)
    for name in (PAPER, "trial-0002"):
        older(ending, name, 0, better(f"{name}-seed0"))
    ending.go_on(better, monkeypatch)
    assert ending.trained == [
        "paper-seed1", "trial-0002-seed1", "paper-run0", "trial-0002-run0", "paper-run1", "trial-0002-run1",
    ]  # fmt: skip
    seeds = [ending.search.judgement_run(PAPER, number).record().settings.seed for number in (0, 1)]
    assert seeds == [3, 4]


def test_a_search_that_an_older_version_has_judged_stays_as_it_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Ending(tmp_path / "s", data, {2: 0.7}, folds=1)
    for seed in (0, 1):
        for name in (PAPER, "trial-0002"):
            older(ending, name, seed, 0.5)
    with monkeypatch.context() as patch:  # an older version's models have these runs as members
        patch.setattr(final_models, "_finished", lambda candidate: list(candidate.selection) if candidate else [])
        patch.setattr(final_models, "judgement_pairs", lambda *both: [list(one.selection) for one in both])
        ending.search.set_selection(SelectionRecord(champion="trial-0002", sentence="", seeds=[], means={}))
        assert final_models.keep_models(ending.search, ending.plan.settings, data, Observer())
    ending.search.file("selection").unlink()
    evaluation = sealed_test.evaluate_search(ending.search, ending.plan.settings, data, lambda *_: None)
    assert evaluation.verdict is not None
    assert "an older version chose the champion by these runs" in evaluation.verdict.sentence
    ending.go_on(better, monkeypatch)
    assert (ending.trained, ending.opened()) == ([], 1)
    ending.add_trial(3, 0.9)
    later = ending.search.trial(3)
    later.reconcile([replace(row(0.9), time=ending.search.model(CHAMPION).record().created + 1)])
    ending.go_on(better, monkeypatch)
    assert ending.trained[:2] == ["trial-0003-seed0", "trial-0003-seed1"]
    assert ending.search.model(CHAMPION).record().model == PAPER, "0.5 for all of the older runs"
    assert ending.search.evaluation() is None
    assert (ending.search.path / "test-of-trial-0002.json").is_file(), "its verdict was about another champion"
    assert ending.opened() == 1


@pytest.mark.parametrize(("version", "second"), [("older", "trial-0002"), ("this", "trial-0003")])
def test_a_search_of_an_older_version_keeps_its_candidates(
    version: str, second: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, trials that differ only in a hyperparameter without effect were two candidates."""
    ending = Ending(tmp_path / "s", data, {}, confirm_seeds=1, final_runs=1)
    if version == "older":
        file = ending.search.file("record")
        record = json.loads(file.read_text())
        del record["candidates_differ_in"]
        file.write_text(json.dumps(record))
    ending.add_trial(1, 0.9, schedule="cosine")
    ending.add_trial(2, 0.8, depth=1, schedule="cosine", plateau_patience=7)
    ending.add_trial(3, 0.7)
    ending.go_on(better, monkeypatch)
    assert ending.trained[:3] == ["paper-seed1", "trial-0001-seed1", f"{second}-seed1"]
    trained = len(ending.trained)
    ending.go_on(better, monkeypatch)
    assert len(ending.trained) == trained, "a resumed search trains none of them again"


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow has everything."""
    monkeypatch.setattr(remaining_work, "is_mirrored", lambda *_: True)


ENDED: dict[str, tuple[dict[int, float], Values, dict[str, Any]]] = {  # trials, values of final runs, settings
    "a champion": ({1: 0.6, 2: 0.7}, better, {}),
    "nothing better than the baseline": ({1: 0.6}, worse, {}),
    "no candidate": ({}, better, {}),
    "no selection runs": ({1: 0.6}, better, {"confirm_top": 0}),
}


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.usefixtures("copied")
def test_a_search_that_has_ended_has_nothing_left_to_do(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, values, settings = ENDED[name]
    sizes = {"confirm_seeds": 1, "final_runs": 1, "trials": 1 + len(trials), **settings}
    ending = Ending(tmp_path / "s", data, trials, **sizes)
    ending.search.set_status("completed")
    assert ending.left_to_do() == "", "its final runs are not trained"
    ending.go_on(values, monkeypatch)
    assert ending.end() == f"s: is completed, so nothing is left to do; its results: {tmp_path}/s"
    assert ending.left_to_do(trials=1 + len(trials)), "the budget that it has"
    assert ending.left_to_do(trials=9) == ""
    assert ending.left_to_do(max_hours=1.0) == ""


LOST: dict[str, Callable[[SearchDir], object]] = {
    "a final run": lambda search: search.judgement_run(PAPER, 0).set_status("failed", "the disk was full"),
    "the folder of a final run": lambda search: shutil.rmtree(search.final("trial-0002", 1).path),
    "a model": lambda search: shutil.rmtree(search.model(CHAMPION).path),
    "the networks of a model": lambda search: shutil.rmtree(search.model(BASELINE).export),
    "the evaluation": lambda search: search.evaluation_file().unlink(),
    "the selection": lambda search: search.file("selection").unlink(),
    "a trial": lambda search: search.trial(1).set_status("interrupted", "stopped by SIGTERM"),
    "the report": lambda search: shutil.rmtree(search.report),
    "its own end": lambda search: search.set_status("interrupted", "stopped by Ctrl-C"),
}


@pytest.mark.usefixtures("copied")
def test_a_search_that_has_lost_a_part_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Ending(tmp_path / "whole" / "s", data, {1: 0.6, 2: 0.7}, confirm_seeds=1, final_runs=1, trials=3)
    whole.go_on(better, monkeypatch)
    assert whole.end()
    for number, (name, lose) in enumerate(LOST.items()):
        search = SearchDir(Path(shutil.copytree(whole.search.path, tmp_path / str(number) / "s")))
        assert remaining_work.nothing_left(search, search.record().settings, "sqlite:///x"), name
        lose(search)
        assert remaining_work.nothing_left(search, search.record().settings, "sqlite:///x") == "", name


def test_a_failed_trial_is_not_tried_again(data: Path, tmp_path: Path, copied: None) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, baseline=False, trials=3)
    ending.add_trial(2, 0.1, "failed")
    assert ending.end()


def test_the_budget_that_ended_a_search_would_end_it_again(data: Path, tmp_path: Path, copied: None) -> None:
    ending = Ending(tmp_path / "s", data, {1: 0.6}, baseline=False, trials=30, max_hours=0.5)
    assert ending.end() == "", "28 trials are left"
    ending.search.set_status("completed", "--max-hours 0.5 is reached")
    assert ending.left_to_do().startswith("s: is completed (--max-hours 0.5 is reached), so nothing is left to do; ")
    assert ending.left_to_do(max_hours=1.0) == ""
