"""The copy of the data on a machine of a cluster, where its cache has no locks."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import ray
from records import prepared_again

from wmlsearch.cluster import data_shipping
from wmlsearch.cluster.data_shipping import Shipment, make_shipment, receive_shipment
from wmlsearch.cluster.ray_patches import actor_id
from wmlsearch.data.manifest import IMAGES, MANIFEST, MASKS, Manifest, manifest_sha256


@pytest.fixture
def shipment(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shipment:
    """A shipment whose driver's folder is not on this machine."""
    monkeypatch.setenv("WMLSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_shipping.ray, "get", lambda part: part)
    files: Any = {name: [(prepared / name).read_bytes()] for name in (MANIFEST, IMAGES, MASKS)}
    return Shipment(Path("/not/here"), Manifest.read(prepared).fingerprint, files)


@pytest.mark.parametrize("number", [0, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_copy_is_made_once_with_or_without_locks(
    number: int, shipment: Shipment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    folder = receive_shipment(shipment)
    assert Manifest.read(folder).fingerprint == shipment.fingerprint
    written = (folder / IMAGES).stat().st_ino
    assert receive_shipment(shipment) == folder
    assert (folder / IMAGES).stat().st_ino == written
    assert not list(folder.parent.glob("*.part"))


def test_data_that_were_prepared_again_are_received_anew(shipment: Shipment, prepared: Path, tmp_path: Path) -> None:
    """They have the fingerprint of before. The copy of before stays: another search may use it."""
    older = receive_shipment(shipment)
    data = prepared_again(prepared, tmp_path / "again")
    files: Any = {**shipment.files, MANIFEST: [(data / MANIFEST).read_bytes()]}
    again = Shipment(prepared, shipment.fingerprint, files, manifest_sha256=manifest_sha256(data))
    folder = receive_shipment(again)
    assert folder not in (older, prepared)
    assert {volume.site for volume in Manifest.read(folder).volumes} == {"a new site"}
    assert receive_shipment(shipment) == older
    assert (older / MANIFEST).read_bytes() == (prepared / MANIFEST).read_bytes()
    assert receive_shipment(make_shipment(data, again.fingerprint, send=False)) == data


def test_a_copy_that_an_older_version_named_by_the_fingerprint_alone_is_used(
    shipment: Shipment, prepared: Path
) -> None:
    older = receive_shipment(shipment)
    assert older.name == shipment.fingerprint[:32]
    now = replace(shipment, manifest_sha256=manifest_sha256(prepared))
    assert now.checksum != shipment.checksum
    assert receive_shipment(now) == older
    assert [path for path in older.parent.iterdir() if path.is_dir()] == [older]


def test_another_error_of_the_lock_is_told(shipment: Shipment, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="Input/output error"):
        receive_shipment(shipment)


def test_the_driver_does_not_own_what_it_sends(one_ray: None, prepared: Path, tmp_path: Path) -> None:
    """Ray ends a process that owns objects when its raylet has ended, before it could record why."""
    sent = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=True)
    for name, parts in sent.files.items():
        assert b"".join(ray.get(list(parts))) == (prepared / name).read_bytes()
    assert list(sent.files) == [MANIFEST, IMAGES, MASKS]
    put_by = {part.task_id().actor_id().hex() for parts in sent.files.values() for part in parts}
    assert put_by == {actor_id(sent.owner)}
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        make_shipment(tmp_path / "none", "f", send=True)
