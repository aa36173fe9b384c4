"""A real search with `--scheduler pbt`, one trial at a time: a child begins, and its schedule can be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from whole_search import CLOCK, population_command, run, study_trials

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.data.manifest import Manifest
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.final_training import RunRequest, RunTrainer
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession
from wmlsearch.tracking.uri import default_uri

pytestmark = pytest.mark.slow
SLOT = Slots(1, 1, 1, 0.0)


@pytest.fixture(scope="module")
def population(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    out = tmp_path_factory.mktemp("population")
    run(population_command(out, prepared))
    return SearchDir(out / "s")


def child(search: SearchDir) -> RunDir:
    """Return the first child."""
    return next(it for it in search.trials() if it.record().parent is not None)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCK}


def test_a_child_took_over(population: SearchDir) -> None:
    one = child(population)
    about = one.record()
    parent = population.trial(about.parent)
    assert about.config == parent.record().config
    assert one.rows()[: about.parent_epoch] == parent.rows()[: about.parent_epoch]
    assert one.trained_rows()
    assert population.trial(about.replaces).state == "stopped"
    assert not any(population.path.rglob("epoch-*"))
    fresh = [int(it.name) for it in population.trials()[1:] if it.record().parent is None]
    assert [trial[-1] for trial in study_trials(population)] == fresh, (
        "the baseline configuration lies outside this space"
    )
    client = MlflowClient(default_uri(population.path.parent))
    (held,) = client.search_runs(
        [client.get_experiment_by_name("wmlsearch").experiment_id],
        f"attributes.run_name = '{about.name}'",
    )
    assert held.data.tags["parent_trial"] == f"trial-{parent.name}"
    assert held.data.tags["parent_epoch"] == str(about.parent_epoch)
    assert json.loads(held.data.tags["rate_factors"]) == {str(epoch): it for epoch, it in about.rate_factors.items()}
    history = client.get_metric_history(held.info.run_id, "learning_rate")
    assert sorted((p.step, p.value) for p in history) == [
        (row.epoch, row.metrics["learning_rate"]) for row in one.rows()
    ]


def test_the_stored_schedule_trains_the_same_from_the_beginning(
    population: SearchDir, prepared: Path, tmp_path: Path
) -> None:
    one = child(population)
    about = one.record()
    settings = about.settings
    job = WorkerJob(make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False), settings, threads=1)
    here = str(tmp_path / "here")
    assignment = TrialAssignment(config=about.config, checkpoint_location=here, rate_factors=about.rate_factors)
    training = TrainingSession(job, assignment)
    rows = [plain(report.as_json()) for _ in one.rows() if (report := training.step().report)]
    assert rows == [plain(row.as_json()) for row in one.rows()]
    if one.best.exists():
        assert (
            load_checkpoint(one.best)["report"]["epoch"]
            == load_checkpoint(training.checkpoints.best)["report"]["epoch"]
        )
    training.close()
    # as a final run: two workers sum floats in another order, but the rates are the same
    final = RunDir.create(tmp_path / "final", about.model_copy(update={"name": "again-run0", "kind": "judgement run"}))
    with ray_session(None), RunTrainer(settings, job.shipment) as trainer:
        order = RunRequest(final, final.record(), str(final.path))
        trainer.train([order], SLOT, lambda part: part.name)
    assert final.state == "completed"
    shown = [row.metrics["learning_rate"] for row in final.rows()]
    assert shown[: len(rows)] == [row["learning_rate"] for row in rows]
    assert final.rows()[0].metrics["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=2e-3)
