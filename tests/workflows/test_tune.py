"""A whole search on real Ray, Optuna and MLflow: folder, study, MLflow and report must agree."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from processes import wait_for, watching_sockets

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.search.checkpoints import KEPT_BEST
from wmlsearch.search.optuna_study import Study
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.search_plan import SearchRequest
from wmlsearch.workflows.train import TrainRequest, train
from wmlsearch.workflows.tune import tune

SPACE = """
depth: {choices: [2, 3]}
base_channels: 8
batch_size: {choices: [2, 3]}
dropout: 0.0
loss: bce_dice
learning_rate: {low: 3e-3, high: 1e-2, log: true}
schedule: {choices: [plateau, cosine]}
warmup_fraction: {low: 0.0, high: 0.2, when: {schedule: cosine}}
"""
SMALL = TrialConfig(depth=2, base_channels=4)


@dataclass(frozen=True)
class Done:
    search: SearchDir
    settings: RunSettings
    outcome: Outcome
    sockets: set[tuple[str, str, int]]  # (process, address, port) on which its processes listened


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    path = tmp_path_factory.mktemp("space") / "small.yaml"
    path.write_text(SPACE)
    return SearchSpace.read(path)


@pytest.fixture(scope="module")
def done(one_ray: None, prepared: Path, space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A search of six trials with final runs, for all tests that only read its results.

    Its best trial learns more in three epochs than the baseline, so it is the champion. Nothing is stopped early: which
    trial that meets would depend on how fast the machine is.
    """
    out = tmp_path_factory.mktemp("runs")
    settings = RunSettings(
        epochs=3, seed=1, trials=6, scheduler="none", sampler="random", confirm_top=1, confirm_seeds=1, final_runs=2,
        forecast=False,
    )  # fmt: skip
    search = SearchDir(out / "s")
    with watching_sockets(os.getpid()) as sockets:
        outcome = tune(search, SearchRequest(space, settings, prepared), default_uri(out))
    return Done(search, settings, outcome, sockets)


def test_a_search_listens_on_this_machine_only(done: Done) -> None:
    names = {name for name, _, _ in done.sockets}
    assert {"gcs_server", "raylet"} <= names, "Ray's own"
    assert any("RayTrainWorker" in name for name in names), "the ranks of a final run, by gloo"
    assert [found for found in done.sockets if not ipaddress.ip_address(found[1]).is_loopback] == []


def test_the_embedded_ray_requires_its_token(done: Done) -> None:
    import ray  # after wmlsearch.cluster, which sets the addresses it listens on

    (address,) = {f"127.0.0.1:{port}" for name, _, port in done.sockets if name == "gcs_server"} & {
        ray.get_runtime_context().gcs_address
    }
    other = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    refused = subprocess.run(command, env=other, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stderr


def test_every_trial_is_in_its_folder(done: Done) -> None:
    assert (done.outcome.early_end, done.outcome.mlflow_problem) == (None, "")
    assert done.search.status().state == "completed"
    trials = done.search.trials()
    assert [run.name for run in trials] == [f"{number:04d}" for number in range(6)]
    for run in trials:
        rows = run.rows()
        assert [row.epoch for row in rows] == list(range(1, len(rows) + 1))
        assert run.status().state in ("completed", "stopped")
        assert (len(rows) == 3) == (run.status().state == "completed")
        assert not run.last.exists(), "an ended trial needs no state"
    kept = [run for run in trials if run.best.exists()]
    best_first = sorted(trials, key=lambda run: -max(row.metrics["val_dice_patients_best"] for row in run.rows()))
    assert len(kept) == KEPT_BEST
    assert {run.name for run in kept} == {run.name for run in best_first[:KEPT_BEST]}
    for run in kept:
        report = load_checkpoint(run.best)["report"]
        assert report["val_dice_patients_best"] == max(row.metrics["val_dice_patients_best"] for row in run.rows())


def test_the_first_trial_is_the_baseline_though_outside_this_space(done: Done, space: SearchSpace) -> None:
    assert space.mismatches(TrialConfig()) == [
        "depth=4 is not in [2, 3]",
        "base_channels is fixed at 8, not 16",
        "dropout is fixed at 0.0, not 0.1",
        "loss is fixed at bce_dice, not bce",
        "learning_rate=0.001 is not in 0.003 .. 0.01 (log)",
        "batch_size=5 is not in [2, 3]",
    ]
    assert done.search.trial(0).record().config == TrialConfig()


def test_the_study_has_the_states_and_values_of_all_trials(done: Done) -> None:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(done.search.journal)))
    in_study = {t.user_attrs["trial"]: t for t in optuna.load_study(study_name="s", storage=storage).trials}
    assert sorted(in_study) == [1, 2, 3, 4, 5]  # the baseline is outside the space
    for number, trial in in_study.items():
        run = done.search.trial(number)
        values = [row.metrics["val_dice_patients_best"] for row in run.rows()]
        assert list(trial.intermediate_values.values()) == pytest.approx(values)
        assert list(trial.intermediate_values) == list(range(1, len(values) + 1))
        state = optuna.trial.TrialState.COMPLETE if run.status().state == "completed" else "PRUNED"
        assert trial.state == (state if state != "PRUNED" else optuna.trial.TrialState.PRUNED)
        if state != "PRUNED":
            assert trial.value == pytest.approx(max(values))
        assert ("warmup_fraction" in trial.params) == (trial.params["schedule"] == "cosine")


def test_the_baseline_is_trained_through_ray_train(done: Done) -> None:
    judged = [done.search.judgement_run("paper", number) for number in (0, 1)]
    for final in (done.search.final("paper", 2), *judged):
        assert final.record().config == TrialConfig()
        assert final.status().state == "completed"
        assert [row.epoch for row in final.rows()] == [1, 2, 3]
        assert not final.last.exists(), "an ended training needs no state"


def test_mlflow_holds_one_parent_and_all_children(done: Done) -> None:
    client = MlflowClient(default_uri(done.search.path.parent))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["s"]
    # the search, its trials, of two configurations a selection run and two judgement runs, the models
    assert len(runs) == 1 + 6 + 2 * 3 + 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_key = {run.data.tags["wmlsearch.key"]: run for run in runs}
    certificate = done.search.record().certificate
    assert certificate is not None
    for run in done.search.trials() + done.search.finals():
        held = by_key[run.record().key]
        for name in ("val_dice_patients_best", "train_loss", "val_precision", "learning_rate"):
            wanted = [(row.epoch, row.metrics[name]) for row in run.rows() if row.metrics[name] is not None]
            history = [(point.step, point.value) for point in client.get_metric_history(held.info.run_id, name)]
            assert sorted(history) == wanted
    for run in runs:
        assert "split_certificate.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
    path = client.download_artifacts(by_key[done.search.trial(0).record().key].info.run_id, "split_certificate.json")
    assert json.loads(Path(path).read_text()) == certificate.as_json()


def test_baseline_and_champion_are_registered_with_their_test_scores(done: Done) -> None:
    client, search = MlflowClient(default_uri(done.search.path.parent)), done.search
    evaluation = search.evaluation()
    assert evaluation is not None
    assert evaluation.verdict is not None
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    by_key = {run.data.tags["wmlsearch.key"]: run for run in runs}
    for role in ("baseline", "champion"):
        model = search.model(role)
        held = by_key[model.record().key]
        assert held.info.run_name == f"{role} ({evaluation.names[role]})"
        tested = model.evaluation_metrics()
        assert tested is not None
        assert {name: held.data.metrics[name] for name in tested.metrics} == tested.metrics
        version = client.get_model_version_by_alias("wml-unet", role)
        assert version.run_id == held.info.run_id
        files = {Path(file.path).name for file in client.list_artifacts(held.info.run_id, "model")}
        assert files == {"model.json", "member-0.safetensors", "member-1.safetensors"}
    parent = by_key[search.record().key].data.tags
    assert parent["verdict"] == evaluation.verdict.outcome
    selection = search.selection()
    assert selection is not None
    assert evaluation.verdict.models is not None
    assert parent["champion"] == selection.champion == evaluation.names["champion"]
    headline, *sentences = parent["mlflow.note.content"].split("\n\n")
    assert headline.startswith("**Champion minus baseline, mean Dice per test patient: (a) configurations: ")
    assert sentences[:3] == [
        selection.sentence,
        f"(a) The configurations: {evaluation.verdict.sentence}",
        f"(b) The models: {evaluation.verdict.models.sentence}",
    ]


def test_leaderboard_and_pictures(done: Done) -> None:
    board = leaderboard(done.search)
    values = [entry.value for entry in board.trials]
    assert values == sorted(values, reverse=True)
    assert board.best is not None
    assert board.best.value == max(
        row.metrics["val_dice_patients_best"] for run in done.search.trials() for row in run.rows()
    )
    evaluation = done.search.evaluation()
    assert evaluation is not None
    champion = evaluation.names["champion"]
    assert {entry.name for entry in board.finals} == {
        f"{name}-{run}" for name in ("paper", champion) for run in ("seed2", "run0", "run1")
    }
    assert all(("warmup_fraction" in e.config) == (e.config["schedule"] == "cosine") for e in board.trials)
    assert [path.name for path in done.outcome.pictures] == ["index.html", "examples.png"]
    assert "s: completed" not in (page := done.outcome.pictures[0].read_text()), "no text of the terminal"
    assert ": completed</p>" in page, "the page says how the search ended, although its folder says so only later"


def test_a_finished_search_is_not_overwritten(done: Done, space: SearchSpace, prepared: Path) -> None:
    before = sorted(done.search.path.rglob("*"))
    with pytest.raises(
        InputError, match=r"there is a run of this name already \(state: completed\), and nothing is over"
    ):
        tune(done.search, SearchRequest(space, done.settings, prepared), "sqlite:///unused.db")
    assert sorted(done.search.path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_train_by_any_number_of_workers(workers: int, one_ray: None, prepared: Path, tmp_path: Path) -> None:
    if workers > len(os.sched_getaffinity(0)):
        pytest.skip(f"needs {workers} CPU cores")
    config = SMALL.model_copy(update={"norm": "instance", "dropout": 0.0})
    settings = RunSettings(epochs=2, precision="float32")
    run, alone = RunDir(tmp_path / "r"), RunDir(tmp_path / "alone")
    seen: list[int] = []
    uri = default_uri(tmp_path)
    observer = Observer(on_change=lambda _: seen.append(len(run.rows())))
    outcome = train(run, TrainRequest(config, settings, prepared, workers), uri, observer)
    assert outcome.run.status().state == "completed"
    assert seen[-1] == 2
    assert 1 in seen
    train(alone, TrainRequest(config, settings, prepared, workers=0), uri)
    for name in ("train_loss", "val_loss"):  # two ranks add the same numbers in another order
        assert [row.metrics[name] for row in run.rows()] == pytest.approx(
            [row.metrics[name] for row in alone.rows()], rel=2e-3
        )


def test_a_diverged_or_failed_trial_is_not_complete_in_the_study(tmp_path: Path, space: SearchSpace) -> None:
    search = SearchDir(tmp_path)
    study = Study(search, SearchSpace.read("quick"), RunSettings())
    states = ("completed", "stopped", "diverged", "failed", "interrupted", "out_of_memory", "lost")
    for number, state in enumerate(states):
        study.ask(number)
        study.report(number, 1, 0.5)
        study.tell(number, state, 0.5)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name=search.name, storage=storage).trials
    assert [trial.state.name for trial in trials] == [
        *("COMPLETE", "PRUNED", "PRUNED", "FAIL", "PRUNED", "PRUNED", "FAIL")
    ]
    violated = [any("constraint" in name for name in trial.system_attrs) for trial in trials]
    assert violated == [False, False, True, False, False, True, False]


def test_proposals_depend_on_seed_and_number_alone(tmp_path: Path) -> None:
    def proposals(name: str, seed: int) -> list[TrialConfig]:
        study = Study(SearchDir(tmp_path / name), SearchSpace.read("unet"), RunSettings(seed=seed))
        (tmp_path / name).mkdir(exist_ok=True)
        configs = []
        for number in range(14):
            configs.append(study.ask(number))
            study.report(number, 1, number / 20)
            study.tell(number, "completed", number / 20)
        return configs

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    first = proposals("a", 1)
    assert first[0] == TrialConfig()
    assert proposals("b", 1) == first
    assert proposals("c", 2)[1:] != first[1:]


@pytest.fixture
def start(prepared: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `wmlsearch tune` in a process and session of its own, as a terminal does."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    begun: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "wmlsearch", "tune", str(space), "--data", str(prepared), "--name", "s"]
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "runs"), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("--trials", "200", "--epochs", "3", "--no-forecast")
    search = SearchDir(tmp_path / "runs" / "s")
    wait_for(lambda: any(run.state == "completed" for run in search.trials()))
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ended early: stopped by Ctrl-C" in output
    assert f"results: {search.path}" in output
    assert "Traceback" not in output
    states = {run.status().state for run in search.trials()}
    assert "completed" in states
    assert "running" not in states
    assert search.status().state == "interrupted"
    client = MlflowClient(default_uri(tmp_path / "runs"))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    assert len(runs) == 1 + len(search.trials())
    assert "RUNNING" not in {run.info.status for run in runs}
