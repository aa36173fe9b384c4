"""The prepared data on every machine of a cluster: each machine receives them once and keeps them by their checksum."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wmlsearch.data.manifest import IMAGES, MANIFEST, MASKS, Manifest, manifest_sha256
from wmlsearch.errors import InputError
from wmlsearch.runs.file_systems import NO_LOCKS

PART_BYTES = 64 * 2**20
CACHE = "~/.cache/wmlsearch/data"


@dataclass(frozen=True)
class Shipment:
    """A prepared data set on its way from the driver to the workers. It never holds the sealed test.

    Args:
        path: The folder of the data on the driver's machine; absolute.
        fingerprint: The checksum of the slices and their split, from the manifest.
        files: The contents of each file as parts in Ray's object store, in order. Empty where workers read `path`.
        owner: The actor that has put them there; they live as long as it.
        manifest_sha256: The checksum of the manifest. "": not known, so the fingerprint tells what is the same data.
    """

    path: Path
    fingerprint: str
    files: Mapping[str, Sequence[ray.ObjectRef[bytes]]] = field(default_factory=dict)
    owner: Any = None
    manifest_sha256: str = ""

    @property
    def checksum(self) -> str:
        """What tells this data set from others: the checksum of its manifest, or else its fingerprint."""
        return self.manifest_sha256 or self.fingerprint

    def is_in(self, folder: Path) -> bool:
        """Return whether `folder` holds the same data set."""
        try:
            is_same = Manifest.read(folder).fingerprint == self.fingerprint
        except InputError:
            return False
        return is_same and self.manifest_sha256 in ("", manifest_sha256(folder))


class _Owner:
    """An actor beside the driver that owns the parts of a data set in Ray's object store.

    When the raylet of this machine ends, as with SIGTERM to all processes of a batch job, Ray tries to recover the
    parts in the process that owns them. Without a raylet, Ray ends that process at once: the driver must not be it.
    """

    def put(self, data: Path) -> dict[str, list[ray.ObjectRef[bytes]]]:
        """Put the files of a data set into the store, and return their parts. Raises OSError."""
        files = {}
        for name in (MANIFEST, IMAGES, MASKS):
            with (data / name).open("rb") as file:
                files[name] = [ray.put(part) for part in iter(lambda: file.read(PART_BYTES), b"")]
        return files


def make_shipment(data: Path, fingerprint: str, send: bool) -> Shipment:
    """Return what a worker needs to open the prepared data set `data`; with `send`, put its files into Ray's store.

    Raises OSError if they cannot be read.
    """
    path = data.resolve()
    if not send:
        return Shipment(path, fingerprint, manifest_sha256=manifest_sha256(path))
    same_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Owner)
    owner = actor.options(scheduling_strategy=same_node).remote()
    return Shipment(path, fingerprint, ray.get(owner.put.remote(path)), owner, manifest_sha256(path))


def receive_shipment(shipment: Shipment) -> Path:
    """Return a folder of this machine that holds the data.

    It is the driver's own folder where this machine has the same data under the same path, else a copy in the cache
    (WMLSEARCH_CACHE), which the first worker of a machine makes.
    """
    if shipment.is_in(shipment.path) or not shipment.files:
        return shipment.path
    cache = Path(os.environ.get("WMLSEARCH_CACHE", CACHE)).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    if shipment.is_in(older := cache / shipment.fingerprint[:32]):  # of a version that kept data by their fingerprint
        return older
    folder = cache / shipment.checksum[:32]
    with _locked(cache / f"{folder.name}.lock") as locked:  # the workers of a machine start together: one fetches
        if not shipment.is_in(folder):
            _write_copy(shipment, folder, locked)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file; yields whether it is held. It is not on a file system without locks."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write_copy(shipment: Shipment, folder: Path, locked: bool) -> None:
    """Write the shipped files into `folder`, which appears when it is complete and its checksums are right.

    If this worker is not `locked`, others may write the same copy now: each has a folder of its own until then.
    """
    partial = folder.with_name(f"{folder.name}.part")
    if locked:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    else:
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    for name, parts in shipment.files.items():
        with (partial / name).open("wb") as file:
            for part in parts:
                file.write(ray.get(part))
    Manifest.read(partial).verify(partial)
    if shipment.is_in(folder):  # another worker was faster
        shutil.rmtree(partial)
        return
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
