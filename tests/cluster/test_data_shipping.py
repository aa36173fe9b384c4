"""The copy of the data on a machine of a cluster, where its cache has no locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import filelock
import pytest

from wmlsearch.cluster import data_shipping
from wmlsearch.cluster.data_shipping import Shipment, receive_shipment
from wmlsearch.data.manifest import IMAGES, MANIFEST, MASKS, Manifest


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


def test_another_error_of_the_lock_is_told(shipment: Shipment, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="Input/output error"):
        receive_shipment(shipment)
