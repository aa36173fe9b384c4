"""What a job on the head does about the prepared data of a search."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from records import prepared_again, search_record

from wmlsearch.cluster import head_job
from wmlsearch.cluster.head_job import HeadRequest, report, tune
from wmlsearch.cluster.storage import Storage
from wmlsearch.cluster.transfer import fingerprint_of, upload_data
from wmlsearch.data.manifest import MASKS, manifest_sha256
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that the head is to run."""
    monkeypatch.setattr(head_job, "HOME", tmp_path / "head")
    for name in ("data", "runs"):
        (tmp_path / "head" / name).mkdir(parents=True)
    words: list[str] = []
    monkeypatch.setattr(head_job, "_run_wmlsearch", lambda argv, _: words.extend(map(str, argv)))
    return words


def test_data_of_a_job_that_died_while_it_fetched_them(
    started: list[str], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, fingerprint = str(tmp_path / "storage"), fingerprint_of(prepared)
    upload_data(storage, prepared, fingerprint)
    request = HeadRequest(verb="tune", name="one", space="quick", fingerprint=fingerprint, storage=storage)
    download = Storage.download

    def killed(self: Storage, name: str, path: Path) -> None:
        download(self, name, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Storage, "download", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(request, tmp_path)
    monkeypatch.setattr(Storage, "download", download)
    tune(request, tmp_path)
    data = tmp_path / "head" / "data" / fingerprint
    assert started == ["tune", "quick", "--data", str(data), "--name", "one", "--out", str(tmp_path / "head" / "runs")]
    assert {path.name for path in data.iterdir()} == {path.name for path in prepared.iterdir()}


def test_a_search_is_resumed_with_the_data_that_were_sent(started: list[str], prepared: Path, tmp_path: Path) -> None:
    """The head of before had them in another folder."""
    runs, fingerprint = tmp_path / "head" / "runs", fingerprint_of(prepared)
    SearchDir.create(runs / "one", search_record(name="one", data_path="/home/other/wmlsearch-head/data/f"))
    request = HeadRequest(verb="resume", name="one", fingerprint=fingerprint)
    with pytest.raises(InputError, match="the head has no prepared data set"):
        tune(request, tmp_path)
    shutil.copytree(prepared, tmp_path / "head" / "data" / f"{fingerprint}.part")
    tune(request, tmp_path)
    data = tmp_path / "head" / "data" / fingerprint
    assert started == ["tune", "--resume", "one", "--data", str(data), "--out", str(runs)]


def test_data_that_were_prepared_again_are_received_anew(started: list[str], prepared: Path, tmp_path: Path) -> None:
    """They have the fingerprint of before. The folder of before stays: another search may use it."""
    fingerprint, again = fingerprint_of(prepared), prepared_again(prepared, tmp_path / "again")
    older, checksum = tmp_path / "head" / "data" / fingerprint, manifest_sha256(again)
    request = HeadRequest(verb="tune", name="one", space="quick", fingerprint=fingerprint, manifest_sha256=checksum)
    shutil.copytree(prepared, older)
    assert report(request.model_copy(update={"manifest_sha256": manifest_sha256(prepared)})).has_data
    assert report(request.model_copy(update={"manifest_sha256": None})).has_data
    assert not report(request).has_data
    shutil.copytree(prepared, older.with_name(f"{fingerprint}.part"))
    with pytest.raises(InputError, match=r"\.part: has another manifest.json than the data that were asked for; run "):
        tune(request, tmp_path)
    # as rsync sends them again
    shutil.copytree(again, older.with_name(f"{fingerprint}.part"), dirs_exist_ok=True)
    tune(request, tmp_path)
    data = older.with_name(f"{fingerprint}-{checksum[:16]}")
    assert started[:4] == ["tune", "quick", "--data", str(data)]
    assert manifest_sha256(data) == checksum
    assert manifest_sha256(older) == manifest_sha256(prepared)
    assert report(request).has_data


@pytest.mark.parametrize("left", ["other data", "half of the data"])
def test_what_an_earlier_command_sent_does_not_stand_in_the_way_of_the_storage(
    left: str, started: list[str], prepared: Path, tmp_path: Path
) -> None:
    storage, fingerprint = str(tmp_path / "storage"), fingerprint_of(prepared)
    again = prepared_again(prepared, tmp_path / "again")
    checksum, sent = manifest_sha256(again), tmp_path / "head" / "data" / f"{fingerprint}.part"
    shutil.copytree(prepared if left == "other data" else again, sent)
    if left == "half of the data":
        (sent / MASKS).unlink()
    upload_data(storage, again, fingerprint)
    request = HeadRequest(
        verb="tune", name="one", space="quick", fingerprint=fingerprint, manifest_sha256=checksum, storage=storage
    )
    tune(request, tmp_path)
    data = sent.with_name(fingerprint)
    assert started[:4] == ["tune", "quick", "--data", str(data)]
    assert manifest_sha256(data) == checksum
    assert report(request).has_data


def test_a_new_head_gets_the_data_of_a_search_in_the_folder_that_it_names(
    started: list[str], prepared: Path, tmp_path: Path
) -> None:
    storage, fingerprint = str(tmp_path / "storage"), fingerprint_of(prepared)
    data = tmp_path / "head" / "data" / f"{fingerprint}-{manifest_sha256(prepared)[:16]}"
    upload_data(storage, prepared, fingerprint)
    SearchDir.create(tmp_path / "head" / "runs" / "one", search_record(name="one", data_path=str(data)))
    tune(HeadRequest(verb="resume", name="one", storage=storage), tmp_path)
    assert started[:3] == ["tune", "--resume", "one"]
    assert manifest_sha256(data) == manifest_sha256(prepared)
