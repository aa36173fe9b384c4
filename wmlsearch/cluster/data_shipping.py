"""The prepared data on every machine of a cluster: each gets them once, known by their checksum."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import ray

from wmlsearch.config import InputError
from wmlsearch.data.manifest import IMAGES, MANIFEST, MASKS, Manifest

PART_BYTES = 64 * 2**20
CACHE = "~/.cache/wmlsearch/data"


def make_shipment(data: Path, send: bool) -> dict[str, Any]:
    """What a worker needs to find the data, or with `send` to get them from here. The sealed test is never sent."""
    manifest = Manifest.read(data)
    made: dict[str, Any] = {"path": str(data.resolve()), "fingerprint": manifest.fingerprint, "files": {}}
    for name in (MANIFEST, IMAGES, MASKS) if send else ():
        with (data / name).open("rb") as file:
            made["files"][name] = [ray.put(part) for part in iter(lambda: file.read(PART_BYTES), b"")]
    return made


def receive_shipment(sent: dict[str, Any]) -> Path:
    """The data on this machine: where the driver has them, if that is the same here, or else a copy in the cache."""
    here = Path(sent["path"])
    if _is(here, sent["fingerprint"]) or not sent["files"]:
        return here
    cache = Path(os.environ.get("WMLSEARCH_CACHE", CACHE)).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / sent["fingerprint"][:32]
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of a machine start together: one fetches
        if not _is(folder, sent["fingerprint"]):
            aside = cache / f"{folder.name}.part"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name, parts in sent["files"].items():
                with (aside / name).open("wb") as file:
                    for part in parts:
                        file.write(ray.get(part))
            Manifest.read(aside).verify(aside)
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    return folder


def _is(folder: Path, fingerprint: str) -> bool:
    try:
        return Manifest.read(folder).fingerprint == fingerprint
    except InputError:
        return False
