"""Models of a search whose checkpoints are in a storage: while it runs, after it was killed, and of lower ranks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from object_store import s3_storage

from wmlsearch.cluster.storage import Storage
from wmlsearch.errors import InputError
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.report.examples import write_examples
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.locations import location_below
from wmlsearch.workflows.model_lookup import find_model
from wmlsearch.workflows.sealed_test import evaluate_run


def killed_search(searched: SearchDir, out: Path, storage: str) -> SearchDir:
    """Return a copy of a search without champion, whose trial has its weights in the storage."""
    search = SearchDir(shutil.copytree(searched.path, out / "s"))
    shutil.rmtree(search.path / "models")
    search.set_status("running")
    search.change_settings(search.record().settings, storage)
    folder = Storage(location_below(storage, "s", "trials", "0000"))
    folder.make(parents=True)
    folder.write("best.pt", search.trial(0).best.read_bytes())
    search.trial(0).best.unlink()
    return search


def names(model: Path, runs: Path) -> list[str]:
    return [member.name for member in find_model(str(model), runs, "").members]


def test_weights_in_a_folder(searched: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = tmp_path / "storage"
    search = killed_search(searched, tmp_path / "runs", str(storage))
    assert names(Path("s"), tmp_path / "runs") == ["trial-0000"], "the best trial"
    assert names(search.trial(0).path, tmp_path) == ["trial-0000"]
    monkeypatch.chdir(search.path)
    assert names(Path("trials/0000"), tmp_path) == ["trial-0000"]
    assert not search.trial(0).best.exists(), "a trial that runs may get other weights"
    loaded = find_model(str(search.path), tmp_path, "").members[0]
    in_folder = find_model(str(searched.trial(0).path), tmp_path, "").members[0]
    assert (loaded.threshold, loaded.preprocessing) == (in_folder.threshold, in_folder.preprocessing)
    (storage / "s" / "trials" / "0000" / "best.pt").unlink()
    with pytest.raises(InputError) as error:
        names(search.path, tmp_path)
    trial = search.trial(0).path
    assert str(error.value) == (
        f"{trial}: has no weights (best.pt), nor are there any in {storage}/s/trials/0000; only a search's best trials "
        "and its judgement runs keep theirs, choose one of them"
    )
    storage.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as error:
        names(search.path, tmp_path)
    assert str(error.value) == (
        f"{trial}: its weights are in {storage}/s/trials/0000, which this machine does not have; run the command on a "
        "machine that has it"
    )


def test_weights_in_an_object_store(searched: SearchDir, tmp_path: Path) -> None:
    with s3_storage() as storage:
        search = killed_search(searched, tmp_path / "runs", storage)
        assert names(search.path, tmp_path) == ["trial-0000"]
    with pytest.raises(InputError, match=r"its weights are in s3://.* which cannot be read .* when it can be reached"):
        names(search.path, tmp_path)


def test_a_storage_with_a_password(searched: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_storage() as storage:
        search = killed_search(searched, tmp_path / "runs", storage)
        given = storage.replace("s3://", "s3://test:test@")
        recorded = storage.replace("s3://", "s3://test:***@")
        search.change_settings(search.record().settings, recorded)
        with pytest.raises(InputError) as error:
            names(search.path, tmp_path)
        assert str(error.value) == (
            f"{search.trial(0).path}: its weights are in {recorded}, and the password is not stored; set "
            "WMLSEARCH_STORAGE to this storage with the password"
        )
        monkeypatch.setenv("WMLSEARCH_STORAGE", given)
        assert names(search.path, tmp_path) == ["trial-0000"]


def test_weights_in_the_run_folder_of_a_resumed_trial(searched: SearchDir, prepared: Path, tmp_path: Path) -> None:
    """A search that was stopped copies the best trial's weights; resumed, the trial trains on into the storage."""
    search = killed_search(searched, tmp_path / "runs", str(tmp_path / "storage"))
    trial, stored = search.trial(0), tmp_path / "storage/s/trials/0000/best.pt"
    shutil.copy(stored, trial.best)
    (search.file("record")).rename(tmp_path / "search.json")
    assert names(trial.path, tmp_path) == ["trial-0000"], "the weights in the run folder need no storage"
    (tmp_path / "search.json").rename(search.file("record"))
    rows = trial.rows()
    last = rows[-1]
    trial.append(replace(last, epoch=7, time=last.time + 1, metrics={**last.metrics, "val_dice_patients_best": 0.99}))
    state = load_checkpoint(stored)
    torch.save({**state, "threshold": 0.875, "report": trial.rows()[-1].as_json()}, stored)
    assert find_model(str(trial.path), tmp_path, "").members[0].threshold == 0.875, "those of epoch 7"
    shutil.rmtree(search.path / "final")
    assert write_examples(search, prepared) is None, "the report has no picture of old weights"
    stored.unlink()
    with pytest.raises(
        InputError, match=r"0000: its best\.pt is older than its best epoch, and there are no weights in"
    ):
        names(trial.path, tmp_path)
    trial.reconcile(rows)
    assert names(trial.path, tmp_path) == ["trial-0000"]
    assert write_examples(search, prepared) is not None


def test_weights_of_an_epoch_that_the_run_folder_has_not(searched: SearchDir, tmp_path: Path) -> None:
    """The search was killed between the checkpoint of the epoch and its line in the metrics."""
    search = killed_search(searched, tmp_path / "runs", str(tmp_path / "storage"))
    trial, stored = search.trial(0), tmp_path / "storage/s/trials/0000/best.pt"
    shutil.copy(stored, trial.best)
    stored.unlink()
    trial.reconcile(trial.rows()[:1])
    assert names(trial.path, tmp_path) == ["trial-0000"]


def test_links_to_a_search_and_to_a_trial(searched: SearchDir, tmp_path: Path) -> None:
    search = killed_search(searched, tmp_path / "runs", str(tmp_path / "storage"))
    latest, best = tmp_path / "runs" / "latest", tmp_path / "best"
    latest.symlink_to("s")
    best.symlink_to(search.trial(0).path)
    assert names(latest, tmp_path) == ["trial-0000"]
    assert names(latest / "trials" / "0000", tmp_path) == ["trial-0000"]
    assert names(best, tmp_path) == ["trial-0000"]
    elsewhere = tmp_path / "big" / "folder"
    elsewhere.parent.mkdir()
    search.path.rename(elsewhere)
    search.path.symlink_to(elsewhere)
    assert names(search.path / "trials" / "0000", tmp_path) == ["trial-0000"], "a search that was created by the link"


def test_damaged_weights_in_the_storage(searched: SearchDir, tmp_path: Path) -> None:
    search = killed_search(searched, tmp_path / "runs", str(tmp_path / "storage"))
    stored = tmp_path / "storage/s/trials/0000/best.pt"
    state = load_checkpoint(stored)
    for content, problem in (
        (b"x", "not a readable checkpoint"),
        ({**state, "format": 99}, "not a checkpoint of wmlsearch"),
        ({**state, "seed": "x"}, "not a checkpoint of wmlsearch"),
        ({**state, "threshold": 7.0}, "threshold"),
        ({**state, "model": {}}, ""),
    ):
        stored.write_bytes(content) if isinstance(content, bytes) else torch.save(content, stored)
        with pytest.raises(InputError) as error:
            names(search.path, tmp_path)
        assert str(error.value).startswith(f"{stored}: {problem}")


def test_the_sealed_test_stays_closed_without_weights(searched: SearchDir, tmp_path: Path) -> None:
    said = list[str]()
    search = killed_search(searched, tmp_path / "runs", str(tmp_path / "storage"))
    (tmp_path / "storage/s/trials/0000/best.pt").unlink()
    with pytest.raises(InputError, match="has no weights"):
        evaluate_run(search.trial(0), None, lambda *_: None, said.append)
    assert said == []
