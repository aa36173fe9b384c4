"""What a trial worker hands to its trainings."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.model import compiled
from wmlsearch.model.kernels import VARIABLE
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession


def test_compiled_networks_are_kept_where_the_job_says(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is a backend that makes no code, and pretends to have made some."""
    monkeypatch.setenv(VARIABLE, "compile")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled, "count_compilations", itertools.count().__next__)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", SimpleNamespace(artifacts={})))
    shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
    job = WorkerJob(shipment, RunSettings(epochs=1), 1, compiled_networks=str(tmp_path / "networks"))
    config = TrialConfig(depth=1, base_channels=2, batch_size=24)  # two batches of 24 slices
    session = TrainingSession(
        WorkerJob.from_plain(job.as_plain()), TrialAssignment(config=config, checkpoint_location=str(tmp_path / "run"))
    )
    assert session.step().ended == "completed"
    session.close()
    assert [path.name for path in tmp_path.glob("networks/*/*")] == ["24-images"]
    torch.compiler.reset()
