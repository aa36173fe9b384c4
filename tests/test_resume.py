"""A search that dies and goes on: the same decisions and the same leaderboard as one that never died."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from processes import descendants, own_cores, wait_for

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.runs import ENDED, RunDir, SearchDir
from wmlsearch.search.schedule import Scheduler
from wmlsearch.search.suggest import Study, known_earlier
from wmlsearch.search.trials import _recall
from wmlsearch.space import SearchSpace
from wmlsearch.tracking import default_uri

CLOCK = ("time", "epoch_s", "images_per_s", "peak_memory_mb")  # what no two runs have in common
SPACE = """
depth: 2
base_channels: {choices: [4, 8]}
batch_size: {choices: [4, 8]}
learning_rate: {low: 1e-4, high: 1e-2, log: true}
schedule: {choices: [plateau, cosine]}
warmup_fraction: {low: 0.0, high: 0.2, when: {schedule: cosine}}
"""
TRIALS, EPOCHS = 8, 4


# --------------------------------------------------------------------------------------- the whole search, as processes


def tune(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "wmlsearch", "tune", *words, "--out", str(out)]


def begin(out: Path, prepared: Path, trials: int = TRIALS) -> list[str]:
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", str(trials), "--epochs", str(EPOCHS), "--grace-epochs", "2", "--no-forecast"]
    sizes += ["--confirm-top", "1", "--confirm-seeds", "1"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", *sizes)


def start(command: list[str]) -> subprocess.Popen[str]:
    """On one core, so that one trial runs at a time."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own_cores(1)),
    )


def run(command: list[str]) -> str:
    output, _ = (process := start(command)).communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def kill_everything(process: subprocess.Popen[str]) -> None:
    """As when the power goes: the driver, Ray's head and all its workers."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=60)


def facts(search: SearchDir) -> list[dict[str, Any]]:
    """What a search decided and found, without clocks."""
    return [
        {
            "config": run.about()["config"],
            "state": run.status()["state"],
            "rows": [{key: value for key, value in row.items() if key not in CLOCK} for row in run.rows()],
        }
        for run in search.trials() + search.finals()
    ]


def told(search: SearchDir) -> list[tuple[Any, ...]]:
    """The study, without clocks."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name=search.name, storage=storage).trials
    return [
        (t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values, t.user_attrs["trial"])
        for t in trials
    ]


@pytest.fixture(scope="module")
def never_killed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    out = tmp_path_factory.mktemp("never-killed")
    run(begin(out, prepared))
    return SearchDir(out / "s")


@pytest.mark.timeout(1200)  # five searches one after another
def test_killed_and_resumed_is_as_never_killed(never_killed: SearchDir, prepared: Path, tmp_path: Path) -> None:
    """One search, killed in its first trial, midway and in its final runs: what a kill spoils stays spoilt."""
    search, command = SearchDir(tmp_path / "s"), begin(tmp_path, prepared)
    for begun, epochs in ((search.trials, 3), (search.trials, 10), (search.finals, 1)):
        process = start(command)
        wait_for(lambda: process.poll() is not None or sum(len(run.rows()) for run in begun()) >= epochs, 300)  # noqa: B023 - called in this turn
        assert process.poll() is None, process.communicate()[0]
        kill_everything(process)
        assert search.status()["state"] == "running", "nobody could say how it ended"
        with search.journal.open("a") as journal:  # a torn last line, which Optuna never gets over
            journal.write('{"op_code": 5, "wor')
        command = tune(tmp_path, "--resume", "s")
    output = run(command)
    assert "s goes on: 8 of 8 trials have ended\n" in output
    assert facts(search) == facts(never_killed)
    assert told(search) == told(never_killed)
    assert search.status()["state"] == "completed"
    client = MlflowClient(default_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])  # type: ignore[union-attr]  # it is there
    champion = search.test()["names"]["champion"]
    assert sorted(run.info.run_name or "" for run in runs) == sorted([
        "baseline (paper)", f"champion ({champion})", "paper-seed0", f"{champion}-seed0",
        "s",
        *(f"trial-{number:04d}" for number in range(TRIALS)),
    ])  # fmt: skip
    assert search.test()["opened_before"] == never_killed.test()["opened_before"] + 1, "opened once by each search"
    for what in ("names", "models", "verdict"):
        assert search.test()[what] == never_killed.test()[what]
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {run.info.run_name: run.info.run_id for run in runs}
    for trial in search.trials() + search.finals():
        history = client.get_metric_history(by_name[trial.about()["name"]], "train_loss")
        assert sorted(point.step for point in history) == [row["epoch"] for row in trial.rows()]


def test_stop_from_another_terminal_and_go_on(prepared: Path, tmp_path: Path) -> None:
    process, search = start(begin(tmp_path, prepared, trials=100)), SearchDir(tmp_path / "s")
    wait_for(lambda: process.poll() is not None or len(search.trials()) >= 1)
    second = subprocess.run(tune(tmp_path, "--resume", "s"), capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"{search.path}: this search is running already (process {process.pid} on " in second.stderr
    stop = [sys.executable, "-m", "wmlsearch", "stop", "s", "--out", str(tmp_path)]
    done = subprocess.run(stop, capture_output=True, text=True, timeout=300, check=False)
    output, _ = process.communicate(timeout=300)
    assert (done.returncode, process.returncode) == (0, 130), done.stderr + output
    assert done.stdout == (
        "s is asked to stop; its trials end after seconds ...\n"
        "s: interrupted (stopped by `wmlsearch stop`)\n"
        f"to go on with it: wmlsearch tune --resume s --out {tmp_path}\n"
    )
    assert "ended early: stopped by `wmlsearch stop`" in output
    assert {run.status()["state"] for run in search.trials()} <= set(ENDED)
    assert search.finals() == []
    again = subprocess.run(stop, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 2
    assert again.stderr == "wmlsearch: s: is not running (state: interrupted), nothing to stop\n"
    # it goes on with other budgets than it began with, and ends by one of them
    had = sum(len(run.rows()) for run in search.trials())
    final = 2 * EPOCHS
    output = run(tune(tmp_path, "--resume", "s", "--max-epochs-total", str(had + 3 + final)))
    assert (
        f"ended early: --max-epochs-total {had + 3 + final} is reached, {final} of it are kept for the final runs"
        in output
    )
    assert sum(len(run.rows()) for run in search.trials()) == had + 3
    assert search.final("paper", 0).state == "completed"
    for trial in search.trials():
        assert [row["epoch"] for row in trial.rows()] == list(range(1, len(trial.rows()) + 1))
    assert search.about()["settings"]["max_epochs_total"] == had + 3 + final


def test_what_a_resumed_search_can_not_have_otherwise(tmp_path: Path) -> None:
    command = tune(tmp_path, "quick", "--resume", "s", "--seed", "3", "--trials", "9")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "wmlsearch: --resume: SPACE, --seed can't be given with it, since a search goes on as it began; what may be "
        "changed: --trials, --max-hours, --max-gpu-hours, --max-epochs-total, --target-dice, --max-checkpoint-gb, "
        "--trial-timeout\n"
    )


# ------------------------------------------------------------------------------------------------- the parts, by hand


def written(search: SearchDir, number: int, config: TrialConfig, values: list[float], state: str) -> RunDir:
    """A trial's folder as a search leaves it."""
    about = {"name": f"trial-{number:04d}", "kind": "trial", "config": config.model_dump()}
    run = RunDir.create(search.trial(number).path, about)
    for epoch, value in enumerate(values, start=1):
        ended = state if epoch == len(values) and state in ("completed", "early_stopped") else None
        run.append({"epoch": epoch, "time": number + epoch / 100, "ended": ended, "val_dice_best": value})
    run.set_status(state)
    return run


STATES = ("completed", "stopped", "early_stopped", "diverged", "out_of_memory", "lost", "failed", "stopped")


@pytest.mark.parametrize("sampler", ["forest", "tpe", "gp", "random", "qmc", "cmaes"])
def test_a_study_made_anew_is_the_same_and_proposes_the_same(sampler: str, tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    space, settings = SearchSpace.read("quick"), RunSettings(sampler=sampler)  # type: ignore[arg-type]
    study = Study(search, space, settings)
    for number in range(16):
        config, state = study.ask(number), STATES[number % len(STATES)]
        values = [0.1 + number / 50, 0.2 + number / 40][: 1 if state == "stopped" else 2]
        for epoch, value in enumerate(values, start=1):
            study.report(number, epoch, value)
        if number == 15:
            state = "running"
        else:
            study.tell(number, state, max(values))
        written(search, number, config, values, state)
    before = told(search)
    assert len(before) == 16
    copy = SearchDir(tmp_path / "copy" / "s")
    shutil.copytree(search.path, copy.path)
    anew = Study(copy, space, settings)
    assert told(copy) == before
    assert [anew.ask(number) for number in (16, 17)] == [study.ask(number) for number in (16, 17)]
    anew.tell(15, "completed", 0.9)
    assert told(copy)[15][1] is optuna.trial.TrialState.COMPLETE


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median", "none"])
def test_a_scheduler_that_hears_the_past_decides_as_before(kind: str, tmp_path: Path) -> None:
    settings = RunSettings(scheduler=kind, epochs=9, grace_epochs=1, reduction_factor=2)  # type: ignore[arg-type]
    search, space = SearchDir(tmp_path), SearchSpace.read("quick")
    curves = {n: [((n * 7) % 12) / 20 + epoch / 100 for epoch in range(9)] for n in range(24)}

    def live(scheduler: Scheduler, numbers: range) -> dict[int, int]:
        lasted = {}
        for number in numbers:
            for epoch, value in enumerate(curves[number], start=1):
                lasted[number] = epoch
                if scheduler.hear(number, epoch, value, ended=epoch == 9):
                    break
        return lasted

    whole = live(Scheduler(settings), range(24))
    assert (len(set(whole.values())) > 1) == (kind != "none")
    for number in range(12):
        values = curves[number][: whole[number]]
        state = "completed" if whole[number] == 9 else "running" if number == 11 else "stopped"
        written(search, number, space.config({}), values, state)
    scheduler = Scheduler(settings)
    _recall(search, settings, scheduler)
    assert live(scheduler, range(12, 24)) == {number: whole[number] for number in range(12, 24)}
    # number 11 died between its last line and the word how it ended
    assert search.trial(11).status()["state"] == ("completed" if whole[11] == 9 else "stopped")
    assert not scheduler.hear(3, 1, 0.0), "what was heard before changes nothing"


def about(**more: Any) -> Mapping[str, Any]:
    return {"data": {"fingerprint": "f"}, "settings": RunSettings().model_dump(), **more}


def test_warm_start_takes_what_fits_and_counts_the_rest(tmp_path: Path) -> None:
    space, settings = SearchSpace.read("quick"), RunSettings()
    inside = space.config({"learning_rate": 0.002, "schedule": "cosine", "warmup_fraction": 0.1})
    first = SearchDir.create(tmp_path / "first", about())
    written(first, 0, inside, [0.3, 0.5], "completed")
    written(first, 1, inside, [0.2], "stopped")
    written(first, 2, inside, [0.2], "failed")
    written(first, 3, TrialConfig(depth=5), [0.2], "completed")
    other = SearchDir.create(tmp_path / "other", {**about(), "data": {"fingerprint": "g"}})
    written(other, 0, inside, [0.9], "completed")
    longer = SearchDir.create(tmp_path / "longer", about(settings=RunSettings(epochs=40).model_dump()))
    written(longer, 0, inside, [0.9], "completed")
    taken, left_out = known_earlier([first, other, longer], space, settings, "f")
    assert [(trial["state"], trial["values"]) for trial in taken] == [
        ("completed", {"1": 0.3, "2": 0.5}),
        ("stopped", {"1": 0.2}),
    ]
    assert left_out == {"failed": 1, "outside the space": 1, "other data": 1, "40 epochs instead of 18": 1}

    search = SearchDir.create(tmp_path / "new", about())
    search.set_earlier(taken)
    Study(search, space, settings).ask(0)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name="new", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert trials[0].value == 0.5
    assert trials[0].params == space.values_of(inside)
    assert "warmup_fraction" in trials[0].params
    assert "warmup_fraction" not in trials[2].params, "the paper's schedule is plateau"


def test_a_search_goes_on_with_its_own_data_only(prepared: Path, tmp_path: Path) -> None:
    from wmlsearch import study

    search = SearchDir.create(
        tmp_path / "s", {**about(), "space": {"source": "x", "values": {}}, "data_path": str(prepared), "shape": {}}
    )
    with pytest.raises(InputError, match=rf"^{prepared}: is not the data of s \(fingerprint \w+ instead of f\); give"):
        study.resume(search, {}, None, default_uri(tmp_path), lambda run: run.name)
