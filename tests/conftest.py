"""Fixtures that several test modules share: a tiny data set, a finished search, an embedded Ray."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wmlsearch.search  # noqa: F401 - before any test imports Ray, which then listens on this machine only
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import epochs
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import SearchRecord, SelectionRecord, SpaceRecord
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.final_models import keep_models
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.provenance import certificate_record, data_record, run_record

torch.set_num_threads(1)  # several threads on a busy machine are slower than one


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw BIDS data set of eight small synthetic patients."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "raw", patients=8, timepoints=1, shape=(48, 48, 12))


@pytest.fixture(scope="session")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data set of `raw`: slices of 32 x 32 pixels."""
    out = tmp_path_factory.mktemp("phantom") / "prepared"
    prepare(raw, out, PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1))
    return out


@pytest.fixture(scope="module")
def data(prepared: Path) -> PreparedData:
    """The opened training and validation slices of `prepared`."""
    return PreparedData.open(prepared)


@pytest.fixture(scope="session")
def searched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    """A finished search: one trial, and two judgement runs of it as champion, trained just enough to find lesions."""
    data, space = PreparedData.open(prepared), SearchSpace.from_mapping({"depth": {"choices": [2, 3]}}, "quick.yaml")
    config = TrialConfig(depth=2, base_channels=4, learning_rate=1e-2, dropout=0.0, norm="instance", loss="bce_dice")
    about = SearchRecord(
        name="s",
        kind="search",
        space=SpaceRecord(source="quick.yaml", values=space.to_mapping()),
        settings=RunSettings(final_runs=2),
        data=data_record(prepared, data),
        data_path=str(prepared),
        certificate=certificate_record(data.manifest),
    )
    search = SearchDir.create(tmp_path_factory.mktemp("searched") / "runs" / "s", about)
    for run, name, seed in (
        (search.trial(0), "trial-0000", 0),
        (search.judgement_run("trial-0000", 0), "trial-0000-run0", 0),
        (search.judgement_run("trial-0000", 1), "trial-0000-run1", 1),
    ):
        settings = RunSettings(epochs=6, seed=seed)
        record = run_record(name, "trial", config, settings, about.data)
        if run.path.parent.name == "final":
            record = record.model_copy(update={"model": "trial-0000", "purpose": "judgement"})
        RunDir.create(run.path, record)
        for report in epochs(config, data, max_epochs=6, seed=seed, best=run.best):
            run.append(report)
        run.set_status("completed")
    search.set_selection(SelectionRecord(champion="trial-0000", sentence="It is the champion.", seeds=[], means={}))
    keep_models(search, RunSettings(), prepared, Observer())
    search.set_status("completed")
    return search


@pytest.fixture(scope="module", autouse=True)
def _no_ray_is_left() -> Iterator[None]:
    """End a Ray that a module leaves, as a test that fails in the middle does: the Python API would search on it."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """An embedded Ray that the searches of a module share, because it takes longer to start than a short search."""
    from wmlsearch.cluster import connect

    with connect.ray_session(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "_embedded", contextlib.nullcontext)
        yield
