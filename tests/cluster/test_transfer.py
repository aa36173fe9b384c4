"""Data sets in a storage: a folder, and an object store (moto)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest
from records import prepared_again

from wmlsearch.cluster.transfer import FILES, fetch_data, fingerprint_of, is_fetched, upload_data
from wmlsearch.data.manifest import MANIFEST, Manifest
from wmlsearch.errors import InputError


@pytest.fixture(params=["folder", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        (tmp_path / "storage").mkdir()
        yield str(tmp_path / "storage")
        return
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="data")
    yield f"s3://data/wml?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


def test_a_data_set_goes_through_the_storage_once(storage: str, prepared: Path, tmp_path: Path) -> None:
    fingerprint, target = fingerprint_of(prepared), tmp_path / "head" / "data"
    with pytest.raises(InputError, match=f"has no prepared data set {fingerprint[:12]}; give --data"):
        fetch_data(storage, fingerprint, target)
    assert upload_data(storage, prepared, fingerprint)
    assert not upload_data(storage, prepared, fingerprint)
    target.mkdir(parents=True)
    (target / "torn").touch()  # of a copy that broke off
    fetch_data(storage, fingerprint, target)
    Manifest.read(target).verify(target)
    files = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file()) == files
    assert all((target / file).read_bytes() == (prepared / file).read_bytes() for file in files)


def test_an_upload_that_broke_off_is_made_again(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / ".data" / fingerprint_of(prepared)
    assert upload_data(str(tmp_path), prepared, place.name)
    (place / FILES).unlink()
    (place / "masks.npy").write_bytes(b"torn")
    assert upload_data(str(tmp_path), prepared, place.name)
    assert (place / "masks.npy").read_bytes() == (prepared / "masks.npy").read_bytes()


def test_data_that_were_prepared_again_replace_the_copy(storage: str, prepared: Path, tmp_path: Path) -> None:
    """They have the fingerprint of before, and more in their manifest."""
    fingerprint, again = fingerprint_of(prepared), prepared_again(prepared, tmp_path / "again")
    storage = storage.replace("/wml?", "/again?")  # the tests of a process share the object store
    assert upload_data(storage, prepared, fingerprint)
    assert fingerprint_of(again) == fingerprint
    assert upload_data(storage, again, fingerprint)
    assert not upload_data(storage, again, fingerprint)
    fetch_data(storage, fingerprint, tmp_path / "fetched")
    assert (tmp_path / "fetched" / MANIFEST).read_bytes() == (again / MANIFEST).read_bytes()


def test_a_storage_that_this_machine_does_not_have(prepared: Path, tmp_path: Path) -> None:
    storage = tmp_path / "none" / "storage"
    with pytest.raises(InputError) as error:
        upload_data(str(storage), prepared, "f")
    assert str(error.value).startswith(f"--storage {storage}: the data cannot be copied there from this machine (")
    assert not storage.exists()


def test_data_without_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"fingerprint": "../up"}))
    with pytest.raises(InputError, match="has no fingerprint; make it again with `wmlsearch prepare`"):
        fingerprint_of(tmp_path)


@pytest.mark.parametrize(
    ("path", "fetched"),
    [
        ("search.json", True),
        ("trials/0000/metrics.jsonl", True),
        ("trials/0000/best.pt", False),
        ("final/paper-run0/best.pt", True),
        ("final/paper-run0/last.pt", False),
        ("models/champion/model.safetensors", True),
        ("owner", False),
        ("stop", False),
    ],
)
def test_files_of_a_search_that_are_fetched(path: str, fetched: bool) -> None:
    assert is_fetched(PurePath(path)) == fetched
