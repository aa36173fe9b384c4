"""What a job on the head does about the prepared data of a search."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from records import search_record

from wmlsearch.cluster import head_job
from wmlsearch.cluster.head_job import HeadRequest, tune
from wmlsearch.cluster.storage import Storage
from wmlsearch.cluster.transfer import fingerprint_of, upload_data
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
