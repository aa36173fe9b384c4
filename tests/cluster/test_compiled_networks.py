"""Where compiled networks are shared: whole files, of this user only, in a storage that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import s3_storage

from wmlsearch.cluster.compiled_networks import CompiledNetworks
from wmlsearch.model.kernels import VARIABLE
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.workflows import train
from wmlsearch.workflows.placement import LOCAL, Placement


@pytest.fixture(params=["folder", "file", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        with s3_storage() as uri:
            yield uri
    elif request.param == "file":
        yield f"file://{tmp_path}/with%20space"
    else:
        yield str(tmp_path / "networks")


def test_files_are_written_whole_and_read(location: str) -> None:
    networks = CompiledNetworks(location)
    assert list(networks.names("a")) == []
    assert networks.read("a", "5-images") is None
    networks.write("a", "5-images", b"one")
    networks.write("a", "5-images", b"two")
    networks.write("b", "7-images", b"three")
    networks.write("a", ".6-images.12ab", b"left by a killed process")
    assert networks.names("a") == ["5-images"]
    assert networks.read("a", "5-images") == b"two"


def test_a_storage_that_is_away_is_not_made_anew(tmp_path: Path) -> None:
    networks = CompiledNetworks(str(tmp_path / "away" / "networks"))
    with pytest.raises(FileNotFoundError):
        networks.write("a", "5-images", b"")
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = CompiledNetworks(str(tmp_path))
    networks.write("a", "5-images", b"code")
    owner = os.getuid()
    status = os.stat_result([0] * 4 + [owner + 1] + [0] * 5)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        networks.read("a", "5-images")


def test_searches_and_trainings_share_them(tmp_path: Path) -> None:
    search, run = SearchDir(tmp_path / "runs" / "s"), RunDir(tmp_path / "runs" / "r")
    assert LOCAL.compiled_networks(search) == LOCAL.compiled_networks(run) == f"{tmp_path}/runs/.compiled-networks"
    placement = Placement(storage="s3://bucket/wml?region=eu-west-1")
    assert placement.compiled_networks(search) == "s3://bucket/wml/.compiled-networks?region=eu-west-1"


def test_a_training_without_ray_keeps_them_where_they_are_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "runs" / "r")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert train._compiled_networks(run) is None
    monkeypatch.setenv(VARIABLE, "compile")
    kept = train._compiled_networks(run)
    assert isinstance(kept, CompiledNetworks)
    assert kept.storage.location == f"{tmp_path}/runs/.compiled-networks"
