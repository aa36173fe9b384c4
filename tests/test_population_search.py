"""A real search with `--scheduler pbt`, one trial at a time: it ends alike if killed, and its schedules replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from processes import wait_for
from test_resume import CLOCK, SPACE, facts, kill_everything, run, start, told, tune

from wmlsearch.config import RunSettings
from wmlsearch.model.training import load_checkpoint
from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.search.cluster import Slots, ray_at
from wmlsearch.search.confirm import Order, train_runs
from wmlsearch.search.nodes import parcel
from wmlsearch.search.slot import Training
from wmlsearch.tracking import default_uri

TRIALS, EPOCHS = 6, 3
SLOT = Slots(1, 1, 1, 0.0)


def begin(out: Path, prepared: Path) -> list[str]:
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", str(TRIALS), "--epochs", str(EPOCHS), "--grace-epochs", "1", "--sampler", "tpe"]
    sizes += ["--scheduler", "pbt"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", "--no-baseline", *sizes)


def lineages(search: SearchDir) -> list[Any]:
    names = ("parent", "parent_epoch", "replaces", "rate_factors")
    return [({name: it.about().get(name) for name in names}, it.status()["reason"]) for it in search.trials()]


@pytest.fixture(scope="module")
def never_killed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    out = tmp_path_factory.mktemp("never-killed")
    run(begin(out, prepared))
    return SearchDir(out / "s")


def child(search: SearchDir) -> RunDir:
    """The first one."""
    return next(it for it in search.trials() if "parent" in it.about())


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCK}


def test_a_child_took_over(never_killed: SearchDir) -> None:
    one = child(never_killed)
    about = one.about()
    parent = never_killed.trial(about["parent"])
    assert about["config"] == parent.about()["config"]
    assert one.rows()[: about["parent_epoch"]] == parent.rows()[: about["parent_epoch"]]
    assert one.own_rows()
    assert never_killed.trial(about["replaces"]).state == "stopped"
    assert not any(never_killed.path.rglob("epoch-*"))
    fresh = [int(it.name) for it in never_killed.trials()[1:] if "parent" not in it.about()]
    assert [trial[-1] for trial in told(never_killed)] == fresh, "the paper's point lies outside this space"
    client = MlflowClient(default_uri(never_killed.path.parent))
    (held,) = client.search_runs(
        [client.get_experiment_by_name("wmlsearch").experiment_id],  # type: ignore[union-attr]
        f"attributes.run_name = '{about['name']}'",
    )
    assert held.data.tags["parent_trial"] == f"trial-{parent.name}"
    assert held.data.tags["parent_epoch"] == str(about["parent_epoch"])
    assert json.loads(held.data.tags["rate_factors"]) == about["rate_factors"]
    history = client.get_metric_history(held.info.run_id, "learning_rate")
    assert sorted((p.step, p.value) for p in history) == [(row["epoch"], row["learning_rate"]) for row in one.rows()]


def test_killed_and_resumed_is_as_never_killed(never_killed: SearchDir, prepared: Path, tmp_path: Path) -> None:
    process, search = start(begin(tmp_path, prepared)), SearchDir(tmp_path / "s")
    wait_for(lambda: process.poll() is not None or any("parent" in it.about() for it in search.trials()))
    assert process.poll() is None
    kill_everything(process)
    assert search.status()["state"] == "running", "nobody could say how it ended"
    run(tune(tmp_path, "--resume", "s"))
    assert facts(search) == facts(never_killed)
    assert lineages(search) == lineages(never_killed)
    assert told(search) == told(never_killed)
    assert not any(search.path.rglob("epoch-*"))


def test_the_stored_schedule_trains_the_same_from_the_beginning(
    never_killed: SearchDir, prepared: Path, tmp_path: Path
) -> None:
    one = child(never_killed)
    about = one.about()
    settings = RunSettings(**about["settings"])
    job = {"data": parcel(prepared, send=False), "settings": about["settings"], "threads": 1}
    trial = {"config": about["config"], "place": str(tmp_path / "here"), "rate_factors": about["rate_factors"]}
    training = Training(job, trial)
    rows = [plain(training.step()["report"]) for _ in one.rows()]
    assert rows == [plain(row) for row in one.rows()]
    if one.best.exists():
        assert (
            load_checkpoint(one.best)["report"]["epoch"]
            == load_checkpoint(training.checkpoints.best)["report"]["epoch"]
        )
    training.close()
    # as a final run, which Ray Train's wrapper makes another sum of floats: its rates are the same
    final = RunDir.create(tmp_path / "final", {**about, "name": "again-seed0", "kind": "confirmation"})
    with ray_at(None):
        order = Order(final, final.about(), settings.seed, str(final.path))
        train_runs([order], settings, job["data"], SLOT, lambda part: part.name)
    assert final.state == "completed"
    shown = [row["learning_rate"] for row in final.rows()]
    assert shown[: len(rows)] == [row["learning_rate"] for row in rows]
    assert final.rows()[0]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=2e-3)
