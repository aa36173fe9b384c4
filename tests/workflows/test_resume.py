"""Resuming a search: its study and its scheduler are rebuilt from the run folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from processes import wait_for
from records import epoch_row, run_record, search_record
from whole_search import EPOCHS, run, search_command, start, study_trials, tune

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import ENDED, DataRecord
from wmlsearch.search.final_training import write_result
from wmlsearch.search.messages import TrialResult
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.tune_loop import replay_reports
from wmlsearch.search.warm_start import select_earlier_trials
from wmlsearch.space import SearchSpace
from wmlsearch.space.effects import identity
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.preflight import check_before_data, check_budgets, check_resumed_search
from wmlsearch.workflows.search_plan import ResumeRequest, SearchRequest


@pytest.mark.slow
def test_stop_from_another_terminal_and_resume(prepared: Path, tmp_path: Path) -> None:
    process, search = start(search_command(tmp_path, prepared, trials=100)), SearchDir(tmp_path / "s")
    wait_for(lambda: process.poll() is not None or len(search.trials()) >= 1)
    second = subprocess.run(tune(tmp_path, "--resume", "s"), capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"{search.path}: this search is running already (process {process.pid} on " in second.stderr
    stop = [sys.executable, "-m", "wmlsearch", "stop", "s", "--out", str(tmp_path)]
    done = subprocess.run(stop, capture_output=True, text=True, timeout=300, check=False)
    output, _ = process.communicate(timeout=300)
    assert (done.returncode, process.returncode) == (0, 130), done.stderr + output
    assert done.stdout == (
        "stopping s: its trials end within seconds ...\n"
        "s: interrupted (stopped by `wmlsearch stop`)\n"
        f"to resume: wmlsearch tune --resume s --out {tmp_path}\n"
    )
    assert "ended early: stopped by `wmlsearch stop`" in output
    assert {run.status().state for run in search.trials()} <= set(ENDED)
    assert search.finals() == []
    again = subprocess.run(stop, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 2
    assert again.stderr == "wmlsearch: s: the search is not running (state: interrupted), so there is nothing to stop\n"
    # resumed with other budgets, one of which ends it
    had = sum(len(run.rows()) for run in search.trials())
    final = 4 * EPOCHS  # a selection run and a judgement run, each of the baseline and of one candidate
    output = run(tune(tmp_path, "--resume", "s", "--max-epochs-total", str(had + 3 + final)))
    assert (
        f"ended early: --max-epochs-total {had + 3 + final} is reached ({final} of it is reserved for the final runs)"
        in output
    )
    assert sum(len(run.rows()) for run in search.trials()) == had + 3
    assert search.judgement_run("paper", 0).state == "completed"
    for trial in search.trials():
        assert [row.epoch for row in trial.rows()] == list(range(1, len(trial.rows()) + 1))
    assert search.record().settings.max_epochs_total == had + 3 + final


def test_a_resumed_search_says_which_trials_go_on_and_which_begin_again(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record())
    plan: Any = SimpleNamespace(settings=RunSettings(trials=9))
    for number, (epochs, state) in enumerate([(1, "completed"), (1, "running"), (0, "running"), (2, "interrupted")]):
        run = RunDir.create(search.trial(number).path, run_record(name=f"trial-{number:04d}"))
        for epoch in range(1, epochs + 1):
            run.append(epoch_row({"epoch": epoch}))
        run.set_status(state)
    assert tune_workflow._resume_message(search, plan) == (
        "s is resumed: 1 of 9 trials have ended; trial-0001, trial-0003 continue from their last checkpoints; "
        "trial-0002 restarts from epoch 1, because no epoch had finished"
    )


def test_a_resumed_search_may_have_fewer_epochs_than_its_final_runs(prepared: Path, tmp_path: Path) -> None:
    """An older version reserved fewer of them. The trials have ended then; the final runs go on."""
    settings = RunSettings(epochs=18, max_epochs_total=300)
    assert settings.final_run_count * settings.epochs > 300
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}})
    recorded = DataRecord(name="prepared", fingerprint=Manifest.read(prepared).fingerprint, optimistic=False)
    request = ResumeRequest(space, settings, prepared, recorded_data=recorded)
    assert check_resumed_search(SearchDir.create(tmp_path / "s", search_record()), request).record == recorded
    with pytest.raises(InputError, match="no epochs are left for trials"):
        check_before_data(space, settings, LOCAL, epochs_given=True)
    slots = Slots(1, 1, 1, 0.0)
    check_budgets(space, settings, slots, resumed=True)
    with pytest.raises(InputError, match="no epochs are left for trials"):
        check_budgets(space, settings, slots)


def test_a_population_is_resumed_where_all_its_trials_can_run_at_once() -> None:
    """It began on a smaller machine, and perhaps only its final runs are left."""
    space, settings, slots = SearchSpace.read("quick"), RunSettings(scheduler="pbt", trials=8), Slots(8, 1, 1, 0.0)
    check_budgets(space, settings, slots, resumed=True)
    with pytest.raises(InputError, match="all 8 trials would start at once"):
        check_budgets(space, settings, slots)


def test_options_that_a_resumed_search_cannot_change(tmp_path: Path) -> None:
    command = tune(tmp_path, "quick", "--resume", "s", "--seed", "3", "--trials", "9")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "wmlsearch: --resume: SPACE, --seed cannot be given with it, since a search keeps its settings; only budgets "
        "may change: --trials, --max-hours, --max-gpu-hours, --max-epochs-total, --target-dice, --max-checkpoint-gb, "
        "--trial-timeout\n"
    )


# --------------------------------------------------------------------------------------------- its parts, without Ray


def written(search: SearchDir, number: int, config: TrialConfig, values: list[float], state: str) -> RunDir:
    """Write a trial's folder as a search leaves it."""
    about = {"name": f"trial-{number:04d}", "kind": "trial", "config": config.model_dump()}
    run = RunDir.create(search.trial(number).path, run_record(about))
    for epoch, value in enumerate(values, start=1):
        ended = state if epoch == len(values) and state in ("completed", "early_stopped") else None
        run.append(
            epoch_row({"epoch": epoch, "time": number + epoch / 100, "ended": ended, "val_dice_patients_best": value})
        )
    run.set_status(state)
    return run


STATES = ("completed", "stopped", "early_stopped", "diverged", "out_of_memory", "lost", "failed", "stopped")


# 20 configurations train differently, so a sampler often proposes one again
DISCRETE = {
    "loss": {"choices": ["bce", "dice", "focal"]},
    "dice_over": {"choices": ["slice", "batch"]},
    "optimizer": {"choices": ["adam", "sgd"], "when": {"depth": [3, 4]}},
    "depth": {"low": 2, "high": 4},
    "warmup_fraction": {"low": 0.0, "high": 0.3},  # without effect
}


@pytest.mark.parametrize(("source", "trials"), [("quick", 20), (DISCRETE, 20), (DISCRETE, 17)])
@pytest.mark.parametrize("sampler", ["forest", "tpe", "gp", "random", "qmc", "cmaes"])
def test_a_rebuilt_study_is_equal_and_proposes_the_same(
    sampler: str, source: str | dict[str, Any], trials: int, tmp_path: Path
) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    space = SearchSpace.read(source) if isinstance(source, str) else SearchSpace.from_mapping(source)
    settings = RunSettings(sampler=sampler, trials=trials)
    tune = Study(search, space, settings)
    for number in range(16):
        config, state = tune.ask(number), STATES[number % len(STATES)]
        values = [0.1 + number / 50, 0.2 + number / 40][: 1 if state == "stopped" else 2]
        for epoch, value in enumerate(values, start=1):
            tune.report(number, epoch, value)
        if number == 15:
            state = "running"
        else:
            tune.tell(number, state, max(values))
        written(search, number, config, values, state)
    assert len(study_trials(search)) == 16
    copy = SearchDir(tmp_path / "copy" / "s")
    shutil.copytree(search.path, copy.path)
    anew = Study(copy, space, settings)
    assert [anew.ask(number) for number in (16, 17)] == [tune.ask(number) for number in (16, 17)]
    assert study_trials(copy) == study_trials(search)
    configurations = [run.record().config.model_dump() for run in search.trials()]
    assert len({identity(config) for config in configurations}) == 16, "none is tried again"
    for study in (tune, anew):
        study.tell(15, "completed", 0.9)
    assert study_trials(copy)[15][1] is optuna.trial.TrialState.COMPLETE
    assert study_trials(copy) == study_trials(search)


def test_a_search_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its journal has a line for each call, and a running trial of the forest whose values Optuna did not propose."""
    search, space = SearchDir.create(tmp_path / "s", search_record({"name": "s"})), SearchSpace.read("quick")
    whole = Study(search, space, RunSettings())
    for number, state in enumerate(["completed", "stopped", "running"]):
        written(search, number, whole.ask(number), [0.1, 0.2], state)
        if state != "running":
            whole.tell(number, state, 0.2)
    before = [trial[:4] for trial in study_trials(search)]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal) + ".old"))
    earlier = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for number, state, params, distributions in before:
        template = optuna.trial.create_trial(
            state=state,
            value=0.2 if state.is_finished() else None,
            params=params,
            distributions=distributions,
            user_attrs={"trial": number},
        )
        earlier.add_trial(template)
    Path(f"{search.journal}.old").replace(search.journal)
    resumed = Study(search, space, RunSettings())
    assert [trial[:4] for trial in study_trials(search)] == before
    resumed.tell(2, "completed", 0.2)
    assert resumed.ask(3)
    assert [trial[1].name for trial in study_trials(search)] == ["COMPLETE", "PRUNED", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize("kind", ["asha", "predictive", "hyperband", "median", "none"])
def test_a_scheduler_that_replays_the_past_decides_as_before(kind: str, tmp_path: Path) -> None:
    settings = RunSettings(scheduler=kind, epochs=9, grace_epochs=1, reduction_factor=2)
    search, space = SearchDir(tmp_path), SearchSpace.read("quick")
    curves = {n: [((n * 7) % 12) / 20 + epoch / 100 for epoch in range(9)] for n in range(24)}
    configs = {n: space.config(space.sample(np.random.default_rng(n))) for n in range(24)}

    def scheduler() -> Scheduler:
        return Scheduler(settings, space, configs.__getitem__)

    def live(scheduler: Scheduler, numbers: range) -> dict[int, int]:
        lasted = {}
        for number in numbers:
            for epoch, value in enumerate(curves[number], start=1):
                lasted[number] = epoch
                if scheduler.report(number, epoch, value, ended=epoch == 9):
                    break
        return lasted

    whole = live(scheduler(), range(24))
    assert (len(set(whole.values())) > 1) == (kind != "none")
    for number in range(12):
        values = curves[number][: whole[number]]
        state = "completed" if whole[number] == 9 else "running" if number == 11 else "stopped"
        written(search, number, configs[number], values, state)
    resumed = scheduler()
    replay_reports(search, settings, resumed)
    assert live(resumed, range(12, 24)) == {number: whole[number] for number in range(12, 24)}
    # trial 11 died between its last line and its status
    assert search.trial(11).status().state == ("completed" if whole[11] == 9 else "stopped")
    assert not resumed.report(3, 1, 0.0), "what was heard before changes nothing"


def test_reports_are_replayed_as_they_were_received(tmp_path: Path) -> None:
    """The clocks of two machines differ: by theirs, the worse trial came to the rung first, and was not stopped."""
    settings = RunSettings(scheduler="asha", epochs=9, grace_epochs=2, objective="val_dice_best")
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    for number, value, ahead_s, received in ((0, 0.9, 3600.0, 10.0), (1, 0.1, 0.0, 20.0)):
        trial = RunDir.create(search.trial(number).path, run_record())
        for epoch in (1, 2):
            row = {"epoch": epoch, "time": ahead_s + received + epoch, "received": received + epoch}
            trial.append(epoch_row({**row, "val_dice_best": value}))
    (stopped,) = replay_reports(search, settings, Scheduler(settings))
    assert (stopped.name, stopped.status().reason) == ("0001", "behind the best of its rung at epoch 2")
    assert search.trial(0).state == "running"


def test_rows_that_were_received_keep_their_time(tmp_path: Path) -> None:
    """A process of a trial died after its second epoch; the search had received the first one."""
    run = RunDir.create(tmp_path / "0000", run_record())
    rows = [epoch_row({"epoch": epoch, "time": float(epoch), "val_dice": epoch / 10}) for epoch in (1, 2, 3)]
    seen = set[Path]()
    write_result(run, TrialResult(replayed=[], report=rows[0]), seen, received=100.5)
    write_result(run, TrialResult(replayed=rows[:2]), seen, received=200.5)
    write_result(run, TrialResult(report=rows[2]), seen, received=300.5)
    assert run.rows() == rows
    assert [row.received for row in run.rows()] == [100.5, 200.5, 300.5]
    assert [row.order for row in rows] == [1.0, 2.0, 3.0], "as in older folders"


def about(**more: Any) -> Mapping[str, Any]:
    return {"data": {"fingerprint": "f"}, "settings": RunSettings().model_dump(), **more}


def test_warm_start_takes_trials_that_fit_and_counts_the_others(tmp_path: Path) -> None:
    space, settings = SearchSpace.read("quick"), RunSettings()
    inside = space.config({"learning_rate": 0.002, "schedule": "cosine", "warmup_fraction": 0.1})
    first = SearchDir.create(tmp_path / "first", search_record(about()))
    written(first, 0, inside, [0.3, 0.5], "completed")
    written(first, 1, inside, [0.2], "stopped")
    written(first, 2, inside, [0.2], "failed")
    written(first, 3, TrialConfig(depth=5), [0.2], "completed")
    other = SearchDir.create(tmp_path / "other", search_record({**about(), "data": {"fingerprint": "g"}}))
    written(other, 0, inside, [0.9], "completed")
    longer = SearchDir.create(tmp_path / "longer", search_record(about(settings=RunSettings(epochs=40).model_dump())))
    written(longer, 0, inside, [0.9], "completed")
    taken, left_out = select_earlier_trials([first, other, longer], space, settings, "f")
    assert [(trial.state, trial.values) for trial in taken] == [
        ("completed", {1: 0.3, 2: 0.5}),
        ("stopped", {1: 0.2}),
    ]
    assert left_out == {"failed": 1, "outside the space": 1, "other data": 1, "40 epochs instead of 18": 1}

    search = SearchDir.create(tmp_path / "new", search_record(about()))
    search.set_earlier(taken)
    Study(search, space, settings).ask(0)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name="new", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert trials[0].value == 0.5
    assert trials[0].params == space.active_values(inside)
    assert "warmup_fraction" in trials[0].params
    assert "warmup_fraction" not in trials[2].params, "the paper's schedule is plateau"


@pytest.mark.parametrize(
    "line",
    ["null", "[]", "7", "{}", '{"op_code": 99, "worker_id": "w"}', '{"op_code": 0, "worker_id": {}}', "[" * 100_000],
    ids=lambda line: line[:20],
)
def test_a_damaged_line_of_the_journal_is_ignored(line: str, tmp_path: Path) -> None:
    search, space = SearchDir.create(tmp_path / "new", search_record(about())), SearchSpace.read("quick")
    asked = Study(search, space, RunSettings()).ask(0)
    lines = search.journal.read_text().splitlines()
    search.journal.write_text("".join(f"{each}\n" for each in [lines[0], line, *lines[1:]]))
    assert Study(search, space, RunSettings()).ask(0) == asked


def test_a_search_resumes_with_its_own_data_only(prepared: Path, tmp_path: Path) -> None:
    shape = {"workers_per_trial": 1, "gpus_per_worker": None}
    record = search_record(about(), data_path=str(prepared), shape=shape)
    search = SearchDir.create(tmp_path / "s", record)
    with pytest.raises(
        InputError, match=rf"^{prepared}: is not the data set of s \(its fingerprint is \w+, not f\); give"
    ):
        tune_workflow.resume(search, ResumeRequest.of(search, search.record(), RunSettings()), default_uri(tmp_path))


def test_a_search_resumes_in_its_storage(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlsearch.cluster.connect.ray_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(tune_workflow, "run_search", lambda _search, plan, *_, **__: plan.placement.storage)
    monkeypatch.chdir(tmp_path)
    search, uri = SearchDir(tmp_path / "s"), default_uri(tmp_path)
    settings = RunSettings(trials=2, epochs=2, baseline=False, forecast=False)
    request = SearchRequest(SearchSpace.read("quick"), settings, prepared, Placement(storage="kept"))
    tune_workflow.tune(search, request, uri)
    assert search.record().storage == f"{tmp_path}/kept"
    monkeypatch.chdir("/")

    def resumed_storage(placement: Placement = LOCAL) -> object:
        request = ResumeRequest.of(search, search.record(), settings, placement=placement)
        return tune_workflow.resume(search, request, uri)

    assert resumed_storage() == f"{tmp_path}/kept"
    moved = Placement(storage=f"{tmp_path}/moved")
    assert resumed_storage(moved) == f"{tmp_path}/moved"
    assert resumed_storage() == f"{tmp_path}/moved", "a storage given once is kept"
