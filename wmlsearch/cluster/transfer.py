"""Prepared data sets in a storage: they reach a cluster without ssh there. And which files of a search are fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePath

from wmlsearch.cluster.storage import Storage, reason
from wmlsearch.data.manifest import MANIFEST
from wmlsearch.errors import InputError
from wmlsearch.runs.files import FULL, StorageError, read_json, retry_while_unavailable
from wmlsearch.runs.folders import FINAL_RUNS, LAST_CHECKPOINT, PROCESS_FILES
from wmlsearch.runs.redaction import without_password

DATA_FOLDER = ".data"  # in the storage, beside the folders of searches, whose names begin with a letter or a digit
FILES = "files.json"  # names the files of a data set in the storage; written last: a data set with it is complete
UPLOAD_PATIENCE_S = (
    30.0  # give up an upload when the storage has not answered for this long: a person waits at the terminal
)


def is_fetched(path: PurePath) -> bool:
    """Return whether a file, with a path relative to its search folder, is fetched from the cluster.

    All are but those of the search's process, the trials' checkpoints, and the last states of the final runs.
    """
    if path.name in PROCESS_FILES:
        return False
    return path.suffix != ".pt" or (path.parts[0] == FINAL_RUNS and path.name != LAST_CHECKPOINT)


def fingerprint_of(data: Path) -> str:
    """Return the fingerprint of a prepared data set. Raises InputError if it has none."""
    fingerprint = read_json(data / MANIFEST).get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint.isalnum():
        raise InputError(f"{data}: its manifest.json has no fingerprint; make it again with `wmlsearch prepare`")
    return fingerprint


def upload_data(storage: str, data: Path, fingerprint: str) -> bool:
    """Copy a prepared data set into the storage, and return whether it was not there yet.

    A copy with another manifest is replaced: data that were prepared again can have the fingerprint of before.

    Raises InputError if the storage cannot be used from this machine.
    """
    place = Storage(storage).below(DATA_FOLDER, fingerprint)
    manifest = (data / MANIFEST).read_bytes()

    def upload() -> bool:
        if place.read(FILES) is not None and place.read(MANIFEST) == manifest:
            return False
        Storage(storage).make()
        place.delete(FILES)
        names = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*")) if path.is_file()]
        for name in names:
            folder, _, file = name.rpartition("/")
            beside = place.below(folder) if folder else place
            beside.make(parents=True)
            beside.delete(file)  # of an upload that broke off
            with open(data / name, "rb") as content:
                beside.upload(content, file)
        place.write(FILES, json.dumps(names).encode())
        return True

    try:
        return retry_while_unavailable(upload, str(place), UPLOAD_PATIENCE_S)
    except StorageError as error:
        raise InputError(
            f"--storage {Storage(storage)}: the data cannot be copied there from this machine "
            f"({reason(error, storage)}); with the address of a dashboard, data and results go through the storage, so "
            "it must be an object store such as s3://bucket/path, or a folder that this machine and the cluster share"
        ) from None


def has_data(storage: str, fingerprint: str) -> bool:
    """Return whether a storage has a prepared data set. Raises InputError if that cannot be found out."""
    place = Storage(storage).below(DATA_FOLDER, fingerprint)
    try:
        return place.read(FILES) is not None
    except OSError as error:
        raise InputError(f"--storage: cannot read {place} ({reason(error, storage)})") from None


def fetch_data(storage: str, fingerprint: str, target: Path) -> None:
    """Copy a prepared data set from the storage to a folder.

    Raises InputError if it is not there or cannot be read, and StorageError if the disk is full.
    """
    place = Storage(storage).below(DATA_FOLDER, fingerprint)

    def fetch() -> bool:
        files = place.read(FILES)
        if files is None:
            return False
        shutil.rmtree(target, ignore_errors=True)
        for name in json.loads(files):
            folder, _, file = name.rpartition("/")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (place.below(folder) if folder else place).download(file, target / name)
        return True

    try:
        complete = retry_while_unavailable(fetch, str(place))
    except StorageError as error:
        if error.errno in FULL:
            raise
        why = without_password(str(error.strerror))
        raise InputError(f"--storage: {place} could not be read to its end ({why}); run this again later") from None
    if not complete:
        raise InputError(f"--storage {Storage(storage)}: has no prepared data set {fingerprint[:12]}; give --data")
