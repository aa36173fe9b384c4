"""MLflow equals the run folders after one sync, repeated syncs, a lost ledger, and in a second store."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from evaluations import evaluation_of, networks
from mlflow import MlflowClient
from processes import wait_for
from records import epoch_row, run_record, search_record

from wmlsearch.cli import main
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.runs.files import write_json
from wmlsearch.runs.folders import RunDir, SearchDir, mark_dead_runs
from wmlsearch.runs.helper_process import start_helper
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.runs.schema import MlflowLedger, SelectionRecord
from wmlsearch.tracking import sync as sync_module
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.mirror import Answer, Mirror, copy
from wmlsearch.tracking.sync import is_mirrored, push, sync
from wmlsearch.tracking.uri import default_uri
from wmlsearch.verdict.comparison import judge

SPACE = {"source": "here", "values": {"depth": {"choices": [2, 3]}, "dropout": {"low": 0.0, "high": 0.5}}}
DATA = {"name": "prepared", "fingerprint": "f00d", "split": "image", "optimistic": True}


def about(name: str, kind: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "config": TrialConfig().model_dump(),
        "settings": RunSettings().model_dump(),
        "data": DATA,
        "versions": {"wmlsearch": "0"},
    }


def row(epoch: int) -> dict[str, Any]:
    metrics = {
        "val_dice_patients_best": epoch / 10,
        "val_loss": 1 / epoch,
        "val_precision": None if epoch == 1 else 0.5,
    }
    return {"epoch": epoch, "time": 1_700_000_000.25 + epoch, "ended": None, **metrics}


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    made = SearchDir.create(tmp_path / "runs" / "s", search_record({**about("s", "search"), "space": SPACE}))
    for number, state in enumerate(("completed", "stopped", "diverged", "interrupted", "running")):
        run = RunDir.create(made.trial(number).path, run_record(about(f"trial-{number:04d}", "trial")))
        for epoch in range(1, 4):
            run.append(epoch_row(row(epoch)))
        if state != "running":
            run.set_status(state, f"because of {state}")
    final = RunDir.create(made.final("paper", 0).path, run_record(about("paper-seed0", "baseline run")))
    final.append(epoch_row(row(1)))
    final.set_status("completed")
    return made


def content(uri: str) -> list[Any]:
    """Return the content of MLflow, sorted: (key, status, tags, params, metric rows) of each run."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = []
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        history = sorted(
            (name, point.step, point.timestamp, point.value)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        )
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        runs.append((run.data.tags["wmlsearch.key"], run.info.status, tags, run.data.params, history))
    return sorted(runs, key=lambda item: item[0])


def rows_of(run: RunDir) -> list[tuple[str, int, int, float]]:
    """Return each metric of each epoch, and `best_dice`, since each epoch is better than the earlier ones."""
    return sorted(
        (name, line.epoch, int(line.time * 1000), value)
        for line in run.rows()
        for name, value in [*line.as_json().items(), ("best_dice", line.metrics["val_dice_patients_best"])]
        if name not in ("epoch", "time", "ended") and value is not None
    )


def test_mlflow_equals_the_run_folders(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    assert sync(search, uri) == 7
    held = {key: rest for key, *rest in content(uri)}
    statuses = {"completed": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "interrupted": "KILLED"}
    for run in search.trials() + search.finals():
        status, tags, params, history = held[run.record().key]
        assert history == rows_of(run)
        assert status == statuses.get(run.status().state, "RUNNING")
        assert tags["state"] == run.status().state
        assert tags["warning"] == "image-level split: optimistic"
        assert params["batch_size"] == "5"
        assert params["seed"] == "0"
    assert len(held) == 7
    parent = search.ledger().run_id
    children = MlflowClient(uri).search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {child.info.run_name for child in children} == {
        *(f"trial-{number:04d}" for number in range(5)),
        "paper-seed0",
    }


def test_the_search_says_which_configuration_is_the_champion_and_why(search: SearchDir) -> None:
    """Without an opened test there is no verdict. A resumed search can have another champion."""
    uri = default_uri(search.path.parent)

    def tags() -> dict[str, str]:
        sync(search, uri)
        held: dict[str, str] = MlflowClient(uri).get_run(search.ledger().run_id).data.tags
        return {name: value for name, value in held.items() if name in ("champion", "mlflow.note.content", "verdict")}

    assert tags() == {}
    search.set_selection(SelectionRecord(champion="paper", sentence="Nothing is better.", seeds=[1], means={}))
    assert tags() == {"champion": "paper", "mlflow.note.content": "Nothing is better."}
    search.set_selection(SelectionRecord(champion="trial-0001", sentence="It is better.", seeds=[1], means={}))
    assert tags() == {"champion": "trial-0001", "mlflow.note.content": "It is better."}


def test_a_withdrawn_verdict_is_marked(search: SearchDir) -> None:
    """MLflow keeps its metrics. What was sent before is not known to a `sync` that sends everything."""
    uri = default_uri(search.path.parent)

    def run() -> Any:
        sync(search, uri)
        return MlflowClient(uri).get_run(search.ledger().run_id).data

    dices = {BASELINE: [[0.5, 0.6], [0.4, 0.5]], CHAMPION: [[0.6, 0.7], [0.5, 0.7]]}
    evaluation = evaluation_of({role: networks(scores) for role, scores in dices.items()})
    verdict = judge(evaluation, BASELINE, CHAMPION, "trial-0001", seed=0)
    names = {BASELINE: "paper", CHAMPION: "trial-0001"}
    evaluation = evaluation.model_copy(update={"names": names, "verdict": verdict})
    search.set_selection(SelectionRecord(champion="trial-0001", sentence="It is better.", seeds=[1], means={}))
    search.set_evaluation(evaluation)
    judged = run()
    assert verdict.models is not None
    assert (judged.tags["verdict"], judged.tags["verdict.models"]) == (verdict.outcome, verdict.models.outcome)
    search.set_aside_evaluation(evaluation)
    search.set_selection(SelectionRecord(champion="trial-0002", sentence="It is better.", seeds=[1], means={}))
    withdrawn = run()
    assert withdrawn.metrics["test_difference"] == judged.metrics["test_difference"]
    assert {name: withdrawn.tags[name] for name in ("champion", "verdict", "verdict.models")} == {
        "champion": "trial-0002", "verdict": "withdrawn", "verdict.models": "withdrawn",
    }  # fmt: skip
    assert withdrawn.tags["mlflow.note.content"].startswith(
        "It is better.\n\nThe verdict on trial-0001 was withdrawn, because the search was resumed and has other models"
    )
    search.set_evaluation(evaluation)
    assert run().tags["verdict"] == verdict.outcome


def test_final_runs_have_their_configuration_and_fold(search: SearchDir) -> None:
    record = run_record(about("trial-0001-run2", "judgement run"), model="trial-0001", purpose="judgement", fold=2)
    run = RunDir.create(search.judgement_run("trial-0001", 2).path, record)
    uri = default_uri(search.path.parent)
    sync(search, uri)
    data = MlflowClient(uri).get_run(run.ledger().run_id).data
    assert (data.tags["kind"], data.tags["configuration"], data.params["fold"]) == ("judgement run", "trial-0001", "2")
    trial = MlflowClient(uri).get_run(search.trial(0).ledger().run_id).data
    assert "configuration" not in trial.tags
    assert "fold" not in trial.params


def test_sync_is_idempotent(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    sync(search, uri)
    once = content(uri)
    sync(search, uri)
    assert content(uri) == once
    for run in [search, *search.trials()]:
        (run.path / "mlflow.json").unlink()  # as after a kill between the call and the ledger
    sync(search, uri)
    assert content(uri) == once


def test_the_folders_know_whether_mlflow_has_everything(search: SearchDir, tmp_path: Path) -> None:
    uri = default_uri(search.path.parent)
    assert not is_mirrored(search, uri)
    sync(search, uri)
    assert is_mirrored(search, uri)
    selection = SelectionRecord(champion="paper", sentence="Nothing is better.", seeds=[1], means={})
    trial = search.trial(4)
    for name, change in {
        "an epoch": lambda: trial.append(epoch_row(row(4))),
        "the end of a trial": lambda: trial.set_status("completed"),
        "a champion": lambda: search.set_selection(selection),
        "a Pareto front": lambda: search.set_status("completed", front=["trial-0004"]),
        "a report": search.report.mkdir,
        "another run": lambda: RunDir.create(search.final("paper", 1).path, run_record(about("p", "selection run"))),
        "a lost ledger": (trial.path / "mlflow.json").unlink,
    }.items():
        change()
        assert not is_mirrored(search, uri), name
        assert copy(uri, search, [search, *search.all_runs()]) == Answer([], "", again=False), name
        assert is_mirrored(search, uri), name
    assert not is_mirrored(search, "http://127.0.0.1:1"), "another store"
    (search.path.parent / "mlflow.db").unlink()
    assert not is_mirrored(search, uri)


def test_batch_missing_from_the_ledger_is_not_logged_twice(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    sync(search, uri)
    once = content(uri)
    run = search.trial(0)
    run.set_ledger(run.ledger().model_copy(update={"rows": 1}))
    push(connect(uri), uri, run, search)
    assert content(uri) == once
    assert run.ledger().rows == 3


def test_mlflow_run_missing_from_the_ledger_is_found_by_its_key(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    client, run = connect(uri), search.trial(0)
    push(client, uri, search, search)
    push(client, uri, run, search)
    once, noted = content(uri), run.ledger()
    run.set_ledger(MlflowLedger(uri=uri, run_id=None, rows=0))
    push(client, uri, run, search)
    assert content(uri) == once
    assert run.ledger() == noted


def test_duplicate_run_of_a_slow_server_is_deleted(search: SearchDir) -> None:
    """A request timed out, its repetition created the run, and then the server served the first request."""
    uri = default_uri(search.path.parent)
    sync(search, uri)
    once, client, run = content(uri), connect(uri), search.trial(0)
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    late = client.create_run(experiment.experiment_id, tags={"wmlsearch.key": run.record().key}, run_name="trial-0000")
    assert len(content(uri)) == len(once) + 1
    sync(search, uri)
    assert content(uri) == once
    assert run.ledger().run_id != late.info.run_id


def test_run_deleted_in_mlflow_is_created_again(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    client = connect(uri)
    sync(search, uri)
    once = content(uri)
    for run in (search.trial(0), search):
        client.delete_run(run.ledger().run_id)
    (run := search.trial(0)).set_ledger(run.ledger().model_copy(update={"rows": 1}))
    assert copy(uri, search, [run, search.trial(1)]) == Answer([], "", again=False)
    assert [key for key, *_ in content(uri)] == [key for key, *_ in once if key != search.record().key]
    client.delete_run(run.ledger().run_id)
    assert sync(search, uri) == 7
    assert content(uri) == once
    parent = search.ledger().run_id
    assert len(client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")) == 6


def test_deleted_experiment_stays_deleted(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    client = connect(uri)
    sync(search, uri)
    once = content(uri)
    client.delete_experiment("1")
    message = (
        f"{uri}: the experiment 'wmlsearch' was deleted there and accepts no runs; restore it (`MLFLOW_TRACKING_URI="
        f"{uri} mlflow experiments restore -x 1`), or copy the runs into another one (`wmlsearch sync s --out "
        f"{search.path.parent} --experiment NAME --mlflow-uri {uri}`)"
    )
    with pytest.raises(InputError) as refused:
        sync(search, uri)
    assert str(refused.value) == message
    run = search.trial(0)
    run.append(epoch_row(row(4)))
    new = RunDir.create(search.trial(5).path, run_record(about("trial-0005", "trial")))
    for one in (run, new):
        assert copy(uri, search, [one]) == Answer([str(one.path)], message, again=False)
    client.restore_experiment("1")
    assert copy(uri, search, [run, new]) == Answer([], "", again=False)
    assert len(content(uri)) == len(once) + 1


def test_refused_run_does_not_block_the_others(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    client, bad, good = connect(uri), search.trial(0), search.trial(1)
    assert copy(uri, search, [search]) == Answer([], "", again=False)
    conflicting = client.create_run("1", tags={"wmlsearch.key": bad.record().key}, run_name="trial-0000")
    client.log_param(conflicting.info.run_id, "seed", "another")
    for run in (bad, good):
        run.set_ledger(MlflowLedger(uri=uri, run_id=None, rows=0))  # as after a crash: runs are looked up by key
    answer = copy(uri, search, [bad, good])
    assert (answer.incomplete, answer.again) == ([str(bad.path)], False)
    assert "Changing param values is not allowed" in answer.problem
    assert rows_of(good) in [history for *_, history in content(uri)]
    with pytest.raises(InputError, match=r"the other runs, but does not take trial-0000 \(.*; delete these runs"):
        sync(search, uri)
    assert len(content(uri)) == 7
    client.delete_run(conflicting.info.run_id)
    assert sync(search, uri) == 7


def test_texts_that_are_not_valid_reach_mlflow(search: SearchDir) -> None:
    """A name of a file in another encoding, as Python has it, and a NUL, which PostgreSQL does not take."""
    uri, odd = default_uri(search.path.parent), search.trial(0)
    name = os.fsdecode(b"M\xe4dchen\0")
    odd.set_status("failed", f"FileNotFoundError: {name}", f"Traceback: {name * 1000}")
    record = odd.record()
    write_json(odd.file("record"), {**record.as_json(), "data": {**record.as_json()["data"], "name": name}})
    assert sync(search, uri) == 7
    (tags,) = (tags for key, _, tags, *_ in content(uri) if key == record.key)
    assert tags["data.name"] == "M\\udce4dchen"
    assert tags["reason"] == "FileNotFoundError: M\\udce4dchen"
    assert (len(tags["traceback"]), tags["traceback"][-12:]) == (4000, "M\\udce4dchen")
    assert copy(uri, search, [odd]) == Answer([], "", again=False)


def test_run_that_mlflow_fails_on_does_not_block_the_others(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, bad, damaged = default_uri(search.path.parent), search.trial(0), search.trial(1)
    keys = {run.record().key for run in (search, *search.all_runs())} - {bad.record().key, damaged.record().key}
    damaged.file("record").write_text("{}")
    real = MlflowClient.create_run

    def create_run(client: MlflowClient, *arguments: Any) -> Any:
        if arguments[-1] == "trial-0000":
            raise OSError("broken")
        return real(client, *arguments)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    with pytest.raises(InputError) as raised:
        sync(search, uri)
    assert raised.value.headline == (
        f"{uri}: MLflow lacks 2 of 7 runs (nothing is lost); correct this, then run `wmlsearch sync` again"
    )
    assert raised.value.faults[0] == f"{bad.path}: OSError: broken"
    assert raised.value.faults[1].startswith(f"{damaged.file('record')}: is damaged")
    assert {key for key, *_ in content(uri)} == keys
    monkeypatch.setattr(sync_module, "MAX_ERRORS", 0)
    with pytest.raises(InputError, match=r"MLflow does not take the runs \(OSError: broken\)"):
        sync(search, uri)


def test_invalid_record_does_not_block_the_others(search: SearchDir) -> None:
    uri, bad, good = default_uri(search.path.parent), search.trial(0), search.trial(1)
    bad.file("record").write_text("{}")
    answer = copy(uri, search, [search, bad, good])
    assert (answer.incomplete, answer.again) == ([str(bad.path)], False)
    assert answer.problem.startswith(f"{bad.file('record')}: is damaged; restore it from a copy")
    assert rows_of(good) in [history for *_, history in content(uri)]


def test_run_that_breaks_off_is_last_at_the_next_attempt(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one at which a server fails each time: the others are not behind it for ever."""
    uri, bad, good = default_uri(search.path.parent), search.trial(0), search.trial(1)
    assert copy(uri, search, [search]) == Answer([], "", again=False)
    real = MlflowClient.create_run

    def create_run(client: MlflowClient, *arguments: Any) -> Any:
        if arguments[-1] == bad.record().name:
            raise OSError("broken")
        return real(client, *arguments)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    answer = copy(uri, search, [bad, good])
    assert answer == Answer([str(good.path), str(bad.path)], "OSError: broken", again=True)
    assert copy(uri, search, [good, bad]) == Answer([str(bad.path)], "OSError: broken", again=True)


def test_unsyncable_run_does_not_block_the_others(tmp_path: Path) -> None:
    out, uri = tmp_path / "runs", default_uri(tmp_path)
    a, b, c, d = (RunDir.create(out / name, run_record(about(name, "train"))) for name in "abcd")
    for run in (a, b, c, d):
        run.append(epoch_row(row(1)))
        run.set_status("completed")
    a.file("record").write_text(
        json.dumps({name: value for name, value in a.record().as_json().items() if name != "key"})
    )
    sync(b, uri)
    client = connect(uri)
    conflicting = client.create_run("1", tags={"wmlsearch.key": c.record().key}, run_name="c")
    client.log_param(conflicting.info.run_id, "seed", "another")
    words = ["sync", "--out", str(out), "--mlflow-uri", uri]
    result = CliRunner().invoke(main, words)
    damaged = f"{out}/a/config.json: is damaged; restore it from a copy, or move the run away"
    assert result.exit_code == 2
    assert f"{uri} has all of b, d (2 MLflow runs)\n" in result.stdout
    assert result.stderr.startswith(
        f"wmlsearch: {uri}: 2 of 4 searches and runs could not be copied completely; correct this, then "
        "run `wmlsearch sync` again\n"
        f"  - a: {damaged}\n      - key is missing\n"
        f"  - c: {uri}: MLflow has the other runs, but does not take c ("
    )
    client.delete_run(conflicting.info.run_id)
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stderr) == (2, f"wmlsearch: {damaged}\n  - key is missing\n")
    held = {key: rest for key, *rest in content(uri)}
    assert {key: rest[-1] for key, rest in held.items()} == {run.record().key: rows_of(run) for run in (b, c, d)}


def test_an_older_copy_of_a_search_is_not_sent_over_the_newer_one(search: SearchDir) -> None:
    """As `tune --resume` sets one aside; the files of a backup are newer than those that they are copies of."""
    out, uri = search.path.parent, default_uri(search.path.parent)
    aside = SearchDir(out / f"{search.name}-before-20261129-120000")
    shutil.copytree(search.path, aside.path)
    search.trial(0).append(epoch_row({**row(4), "time": 2e9}))
    search.set_status("completed")
    shutil.copytree(search.path, out / "backup")
    mark_dead_runs(aside)
    sync(aside, uri)  # as versions did that sent all folders
    result = CliRunner().invoke(main, ["sync", "--out", str(out)])
    assert (result.exit_code, result.stderr) == (0, "")
    notes = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {other} is not sent: it is a copy of {search.name}, and has nothing newer"
        for other in ("backup", aside.name)
    ]
    before = content(uri)
    held = {key: rest for key, *rest in before}
    assert held[search.record().key][1]["state"] == "completed"
    assert held[search.trial(0).record().key][1]["search"] == search.name
    assert held[search.trial(0).record().key][-1] == rows_of(search.trial(0))
    result = CliRunner().invoke(main, ["sync", aside.name, "--out", str(out)])
    assert (result.exit_code, result.stderr) == (
        2,
        f"wmlsearch: {aside.path}: is a copy of {search.path} and has nothing newer, and MLflow has one run of both; "
        f"sync that one (`wmlsearch sync {search.name} --out {out}`), or move it away\n",
    )
    assert content(uri) == before


def test_second_store_receives_everything(search: SearchDir, tmp_path: Path) -> None:
    first, second = default_uri(search.path.parent), f"sqlite:///{tmp_path}/other.db"
    sync(search, first)
    sync(search, second)
    assert content(second) == content(first)


def test_deleted_store_is_filled_again(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    sync(search, uri)
    once = content(uri)
    (search.path.parent / "mlflow.db").rename(search.path.parent / "gone.db")
    other = f"sqlite:///{search.path.parent}/new.db"
    for run in [search, *search.trials(), *search.finals()]:
        run.set_ledger(run.ledger().model_copy(update={"uri": other}))
    sync(search, other)
    assert content(other) == once


@pytest.mark.parametrize("first", ["trial", "search"])
def test_store_that_is_emptied_during_a_search_is_filled_again(first: str, search: SearchDir, empty: Path) -> None:
    """Such as that of a server in a container, which was started anew. Whichever run is sent first notices it."""
    uri, other = default_uri(search.path.parent), f"sqlite:///{search.path.parent}/other.db"
    assert copy(uri, search, [search, *search.all_runs()]) == Answer([], "", again=False)
    once = content(uri)
    shutil.copy(empty, search.path.parent / "other.db")
    for run in [search, *search.all_runs()]:
        run.set_ledger(run.ledger().model_copy(update={"uri": other}))
    changed = search.trial(0) if first == "trial" else search
    changed.set_ledger(changed.ledger().model_copy(update={"state": None}))
    assert copy(other, search, [changed, *search.all_runs(), search]) == Answer([], "", again=False)
    assert content(other) == once


def test_mirror_follows_a_search_and_ends_complete(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    mirror = Mirror(search, uri)
    for run in search.trials() + search.finals():
        mirror.notify(run)
    run = search.trial(4)
    run.append(epoch_row(row(4)))
    run.set_status("early_stopped")
    mirror.notify(run)
    search.set_status("completed")
    assert mirror.close() == ""
    held = {key: rest for key, *rest in content(uri)}
    assert held[run.record().key][0] == "FINISHED"
    assert held[run.record().key][3] == rows_of(run)
    assert [status for status, *_ in held.values()].count("RUNNING") == 0


def test_mirror_restarts_its_lost_process(search: SearchDir) -> None:
    uri = default_uri(search.path.parent)
    mirror = Mirror(search, uri)
    wait_for(lambda: mirror._process is not None)
    assert mirror._process is not None
    mirror._process.kill()
    wait_for(lambda: mirror.problem != "")
    assert "the mirror's process has ended" in mirror.problem
    assert mirror.close() == ""
    assert [run[1] for run in content(uri)] == ["RUNNING"]


def test_unresponsive_store_blocks_nothing(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the wait for the mirror, and the result names what MLflow lacks."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections and never answers
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        mirror = Mirror(search, uri)
        wait_for(lambda: mirror._process is not None)
        process = mirror._process
        assert process is not None

        def interrupted(_timeout_s: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(mirror._thread, "join", interrupted)
        assert mirror.close() == f"{uri} did not receive everything before Ctrl-C"
    assert process.poll() is not None


def test_sync_contacts_an_unreachable_store_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, uri = tmp_path / "runs", "http://127.0.0.1:1"
    for name in "ab":
        RunDir.create(out / name, run_record(about(name, "train")))
    contacted: list[str] = []

    def counted(run: RunDir, at: str, experiment: str | None) -> int:
        contacted.append(run.name)
        return sync(run, at, experiment)

    monkeypatch.setattr("wmlsearch.tracking.sync.sync", counted)
    result = CliRunner().invoke(main, ["sync", "--out", str(out), "--mlflow-uri", uri])
    assert (result.exit_code, contacted) == (2, ["a"])
    assert result.stderr.startswith(f"wmlsearch: {uri}: MLflow does not take the runs (")


def test_mirror_process_ends_with_its_parent(search: SearchDir) -> None:
    process = start_helper("wmlsearch.tracking.mirror")
    assert process.poll() is None
    process.communicate(timeout=60)  # closes its standard input, as the end of the parent does
    assert process.returncode == 0


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500, "on strike")

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_refusing_server_is_reported_and_synced_later(search: SearchDir, refusing_server: str) -> None:
    mirror = Mirror(search, refusing_server)
    problem = mirror.close(timeout_s=60)
    assert "500" in problem
    with pytest.raises(
        InputError, match=r"MLflow does not take the runs .* nothing is lost; run `wmlsearch sync` later"
    ):
        sync(search, refusing_server)
    uri = default_uri(search.path.parent)
    sync(search, uri)
    assert len(content(uri)) == 7


def test_ledgers_hold_no_metrics(search: SearchDir) -> None:
    sync(search, default_uri(search.path.parent))
    assert set(json.loads((search.trial(0).path / "mlflow.json").read_text())) == {
        "uri", "run_id", "rows", "params", "state",
    }  # fmt: skip


def test_unwritable_artifact_store_does_not_block_metrics(search: SearchDir, tmp_path: Path) -> None:
    """A server may store its artifacts in a folder that only its machine has."""
    uri = default_uri(search.path.parent)
    wrong = tmp_path / "no-folder"
    wrong.write_text("a file where the artifacts should go")
    connect(uri).create_experiment("wmlsearch", (wrong / "artifacts").as_uri())
    certificate = {"level": "patient", "note": None}
    (search.path / "search.json").write_text(json.dumps({**search.record().as_json(), "certificate": certificate}))
    with pytest.raises(InputError, match="MLflow has all metrics, but does not take files"):
        sync(search, uri)
    held = {key: rest for key, *rest in content(uri)}
    for run in search.trials() + search.finals():
        assert held[run.record().key][3] == rows_of(run)
    mirror = Mirror(search, uri)
    for run in search.all_runs():
        mirror.notify(run)
    assert "FileExistsError" in (problem := mirror.close()) or "NotADirectoryError" in problem
    assert "MLFLOW_DEFAULT_ARTIFACT_ROOT to a folder or bucket that all machines reach" in problem
    wrong.unlink()
    assert sync(search, uri) == 7
    client = connect(uri)
    for run in search.all_runs():
        assert [entry.path for entry in client.list_artifacts(run.ledger().run_id)] == ["split_certificate.json"]


def test_a_death_while_a_store_is_made_leaves_none(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    code = f"from wmlsearch.tracking.client import connect; connect({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(
            lambda: process.poll() is not None or any(entry.stat().st_size for entry in tmp_path.glob(".*/*.db")), 120
        )
        assert process.poll() is None, "the store is still being created"
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert [entry.name for entry in connect(uri).search_experiments()] == ["Default"]
