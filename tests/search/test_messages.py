"""The records that cross Tune's border: plain on one side, the same and validated on the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.schema import EpochRow
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob

ROW = EpochRow(2, 10.0, None, {"val_dice_best": None, "val_loss": 0.5})


def test_a_job_crosses_the_border() -> None:
    job = WorkerJob(
        Shipment(Path("/data"), "f"),
        RunSettings(epochs=3),
        threads=2,
        slots=Slots(1, 2, 2, 0.5),
        elastic=True,
        snapshot_every=4,
    )
    plain = job.as_plain()
    assert json.loads(json.dumps({**plain, "shipment": None})) == {**plain, "shipment": None}
    assert WorkerJob.from_plain(plain) == job
    alone = WorkerJob(job.shipment, job.settings, threads=1)
    assert WorkerJob.from_plain(alone.as_plain()) == alone


def test_an_assignment_crosses_the_border() -> None:
    assignment = TrialAssignment(
        number=7,
        checkpoint_location="s3://bucket/7",
        reported_epochs=2,
        config=TrialConfig(depth=2),
        rate_factors={3: 0.8, 5: 0.96},
    )
    assert TrialAssignment.from_plain(json.loads(json.dumps(assignment.as_plain()))) == assignment
    with pytest.raises(ValidationError, match="reported_epoch\n"):
        TrialAssignment.from_plain({**assignment.as_plain(), "reported_epoch": 1})


def test_a_result_crosses_the_border_among_tunes_own_fields() -> None:
    result = TrialResult(replayed=[ROW], predicted_memory_mb=300.0, report=ROW).with_end("completed")
    plain = result.as_plain("val_dice_best")
    assert (plain["epoch"], plain["val_dice_best"]) == (2, 0.0), "what is no number ranks as the worst value"
    assert TrialResult.from_plain({**plain, "training_iteration": 1, "config": {}, "pid": 5}) == result
    assert (result.done, result.ended, result.epoch) == (True, "completed", 2)
    assert TrialResult().as_plain("val_dice_best") == {}
    with pytest.raises(ValidationError):
        TrialResult.from_plain({"reason": 5})
