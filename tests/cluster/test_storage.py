"""Small files in a storage."""

from __future__ import annotations

import io
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import s3_storage

from wmlsearch.cluster.storage import Storage
from wmlsearch.runs.folders import SearchDir
from wmlsearch.workflows.placement import Placement


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "s3":
        with s3_storage() as location:
            yield Storage(location)
    else:
        yield Storage(str(tmp_path / "storage"))


def test_files_are_written_read_listed_and_deleted(storage: Storage, tmp_path: Path) -> None:
    place = storage.below("a", "b")
    assert place.names() == ([], [])
    assert place.read("x") is None
    place.make(parents=True)
    place.write("x", b"1")
    place.write("x", b"2")
    place.upload(io.BytesIO(b"3"), "y")
    assert (place.read("x"), place.names()) == (b"2", (["x", "y"], []))
    assert storage.below("a").names() == ([], ["b"])
    place.download("y", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"3"
    with pytest.raises(FileNotFoundError):
        place.download("z", tmp_path / "z")
    place.delete("x")
    place.delete("x")
    storage.below("a").delete_folder("b")
    storage.below("a").delete_folder("b")
    assert storage.below("a").names()[1] == []


def test_a_folder_is_not_made_in_place_of_one_that_is_unmounted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder above it does not exist"):
        Storage(str(tmp_path / "storage" / "s" / "run-folder")).make()
    assert not (tmp_path / "storage").exists()


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    """A limit of the size of files stands for the disk. Nothing is left of what could not be written."""
    place, limit = Storage(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    place.write("x", b"old")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            place.write("x", os.urandom(1 << 17))
        with pytest.raises(OSError, match="File too large"):
            place.upload(io.BytesIO(os.urandom(1 << 17)), "y")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert (place.read("x"), [path.name for path in tmp_path.iterdir()]) == (b"old", ["x"])


def test_a_question_mark_in_a_path_begins_no_options(tmp_path: Path) -> None:
    storage = str(tmp_path / "what?now")
    assert Storage(storage).below("s", "t").location == f"{storage}/s/t"
    placement = Placement(storage=storage)
    assert placement.checkpoint_location(SearchDir(tmp_path / "s").trial(3)) == f"{storage}/s/trials/0003"
    assert placement.compiled_networks(SearchDir(tmp_path / "s")) == f"{storage}/.compiled-networks"


def test_errors_of_a_location_show_no_password() -> None:
    storage = Storage("s3://user:secret@bucket/x?region=eu-west-1").below("s")
    assert storage.location == "s3://user:secret@bucket/x/s?region=eu-west-1"
    assert str(storage) == "s3://user:***@bucket/x/s?region=eu-west-1"
    with pytest.raises(OSError, match="Unrecognized filesystem type"):
        Storage("what://x").read("y")
    for location in ("what://user:secret@x", "s3://user:se cret@bucket/x"):
        with pytest.raises(OSError, match=r"://user:\*\*\*@") as caught:
            Storage(location).names()
        assert "cret" not in str(caught.value)
