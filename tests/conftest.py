"""Fixtures that several test modules share: one tiny data set, one Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare

torch.set_num_threads(1)  # several threads on a busy machine are slower than one


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw BIDS data set of eight small synthetic patients."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "raw", patients=8, timepoints=1, shape=(48, 48, 12))


@pytest.fixture(scope="session")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared: slices of 32 x 32 pixels."""
    out = tmp_path_factory.mktemp("phantom") / "prepared"
    prepare(raw, out, PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1))
    return out


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """An embedded Ray that the searches of a module share: to start one takes longer than many a search."""
    from wmlsearch.search import cluster

    with cluster.ray_at(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_embedded", contextlib.nullcontext)
        yield
