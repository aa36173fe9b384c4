"""Final runs on Ray Train, one batch after another."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import run_record

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.folders import RunDir
from wmlsearch.search.final_training import RunTrainer, TrainingRequest


@pytest.mark.timeout(300)
def test_the_workers_are_kept_for_the_next_batch_of_equal_slots(tmp_path: Path) -> None:
    """Between selection and judgement no process is started: that takes as long as many small epochs."""
    write_phantom(tmp_path / "raw", patients=6, timepoints=1, shape=(32, 32, 8))
    data = tmp_path / "data"
    prepare(tmp_path / "raw", data, PrepareOptions(size=32, fit="resize", jobs=1))
    settings = RunSettings(epochs=1)

    def request(name: str) -> TrainingRequest:
        run = RunDir(tmp_path / name)
        record = run_record({"name": name, "config": {"depth": 1, "base_channels": 1}, "settings": settings})
        return TrainingRequest(run, record, str(run.path))

    one, two = Slots(1, 1, 1, 0.0), Slots(2, 1, 1, 0.0)
    changed: list[str] = []
    with ray_session(None):
        shipment = make_shipment(data, Manifest.read(data).fingerprint, send=False)
        with RunTrainer(settings, shipment) as trainer:
            trainer.train([request("first")], one, lambda run: changed.append(run.name))
            groups = list(trainer.idle)
            trainer.train([request("second")], one, lambda run: changed.append(run.name))
            assert trainer.idle == groups
            assert len(groups) == 1
            trainer.train([request("third")], two, lambda run: changed.append(run.name))
            assert len(trainer.idle) == 1
            assert trainer.idle != groups, "its threads follow from the slots"
            scratch = Path(trainer.scratch.name)
    assert not scratch.exists()
    assert [RunDir(tmp_path / name).state for name in ("first", "second", "third")] == ["completed"] * 3
    assert list(dict.fromkeys(changed)) == ["first", "second", "third"]
