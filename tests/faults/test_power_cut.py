"""Kill a process that writes the files of a search 500 times, and tear a last line after half of the kills.

The process uses the writers of a search: run folders, checkpoints and the study's journal. Ray is not needed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from records import epoch_row, run_record, search_record
from search import Record

from wmlsearch.config import RunSettings
from wmlsearch.model.checkpoint import load_checkpoint, save_atomically
from wmlsearch.runs.evaluation import Gallery
from wmlsearch.runs.files import read_lines
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import ENDED, RUNNING, UNFINISHED, EpochRow, MlflowLedger
from wmlsearch.search.optuna_study import Study
from wmlsearch.space import SearchSpace

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
KILLS, TRIALS, EPOCHS = 500, 10, 6
SPACE = SearchSpace.from_mapping(
    {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "depth": {"choices": [2, 4]}}
)
SETTINGS = RunSettings(epochs=EPOCHS, trials=TRIALS, sampler="random", baseline=False)
SLICES = np.arange(4096, dtype=np.uint8).reshape(1, 64, 64)
GALLERY = Gallery(("p0",), SLICES, SLICES, {"champion": SLICES})


def write(search: SearchDir) -> None:
    """Write the files of a search without training. Started trials continue from their checkpoints."""
    study = Study(search, SPACE, SETTINGS)
    for number in range(TRIALS):
        run = search.trial(number)
        if run.exists() and run.state not in UNFINISHED:
            continue
        if run.exists():
            run.set_status(RUNNING)
        else:
            about = {"name": f"trial-{number:04d}", "kind": "trial", "config": study.ask(number).model_dump()}
            RunDir.create(run.path, run_record({**about, "settings": SETTINGS.model_dump()}))
        rows = load_checkpoint(run.last)["reports"] if run.last.exists() else []
        run.reconcile([EpochRow.from_json(row) for row in rows])
        for epoch in range(len(rows) + 1, EPOCHS + 1):
            value = (number + epoch) / 100
            rows.append({"epoch": epoch, "time": time.time(), "ended": None, "val_dice_patients_best": value})
            save_atomically({"format": 1, "reports": rows, "weights": torch.zeros(20_000)}, run.last)
            run.append(EpochRow.from_json(rows[-1]))
            study.report(number, epoch, value)
            run.set_ledger(MlflowLedger(rows=epoch))
            search.update_usage(seconds=float(epoch))
        search.set_gallery(GALLERY)
        run.set_status("completed")
        study.tell(number, "completed", [rows[-1]["val_dice_patients_best"]])


def killed(search: SearchDir, after_s: float) -> bool:
    """Start a writer, kill it after `after_s` seconds, and return whether it was still writing."""
    child = os.fork()
    if child == 0:
        try:
            write(search)
        except BaseException as error:  # reported to the parent by the exit status 3
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(3)
        os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), "the writer failed"
    return code != 0


def tear(search: SearchDir, chance: random.Random) -> Path | None:
    """Append a part of a line to a random journal, as a power cut does. Return the journal, or None without one."""
    journals = [path for path in [search.journal, *search.path.glob("trials/*/metrics.jsonl")] if path.exists()]
    if not journals:
        return None
    path, line = chance.choice(journals), json.dumps({"op_code": 5, "worker_id": "x", "epoch": 7, "time": 1.5}).encode()
    with open(path, "ab") as file:
        file.write(line[: chance.randint(1, len(line))])
    return path


def check(search: SearchDir, seen: dict[tuple[str, int], EpochRow]) -> int:
    """Check that all files can be read. Return how many epochs in `seen` are missing or have changed; update `seen`."""
    lost = 0
    for run in search.trials():
        assert run.state in (RUNNING, *ENDED)
        assert run.record().key
        assert run.record().config
        run.ledger()
        reports = load_checkpoint(run.last)["reports"] if run.last.exists() else []
        checkpointed = [EpochRow.from_json(report) for report in reports]
        rows = run.rows()
        assert rows == checkpointed[: len(rows)], "metrics.jsonl is never ahead of the checkpoint"
        assert [row.epoch for row in checkpointed] == list(range(1, len(checkpointed) + 1))
        for row in checkpointed:
            lost += seen.setdefault((run.name, row.epoch), row) != row
        lost += sum(name == run.name and epoch > len(checkpointed) for name, epoch in seen)
    search.usage()
    gallery = search.gallery()
    assert gallery is None or gallery.to_arrays().keys() == GALLERY.to_arrays().keys()
    return lost


def test_five_hundred_power_cuts(tmp_path: Path, chance: random.Random, record: Record) -> None:
    injected, torn, lost, ended = 0, 0, 0, 0
    logging.getLogger("wmlsearch.runs.files").addHandler(handler := logging.FileHandler(tmp_path / "warnings.log"))
    search, seen = (
        SearchDir.create(tmp_path / "0", search_record({"name": "s"})),
        dict[tuple[str, int], EpochRow](),
    )
    while injected < KILLS:
        injected += killed(search, chance.uniform(0, 0.2))
        lost += check(search, seen)
        if chance.random() < 0.5 and (path := tear(search, chance)) is not None:
            torn += 1
            assert check(search, seen) == 0, f"a torn last line in {path} must not lose earlier lines"
        if sum(run.state == "completed" for run in search.trials()) == TRIALS:
            ended += 1
            assert all(len(run.rows()) == EPOCHS for run in search.trials())
            write(search)  # removes the last torn line
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
            states = [trial.state.name for trial in optuna.load_study(study_name=search.name, storage=storage).trials]
            assert states == ["COMPLETE"] * TRIALS
            shutil.rmtree(search.path)
            search, seen = SearchDir.create(tmp_path / str(ended), search_record({"name": "s"})), {}
    handler.close()
    logging.getLogger("wmlsearch.runs.files").removeHandler(handler)
    repaired = (tmp_path / "warnings.log").read_text().count("torn last line")
    record(
        "power cut: kill -9 of a writer", injected, lost, 0, f"{torn} torn last lines, {repaired} cut with a warning"
    )
    assert lost == 0
    assert repaired > 0
    assert ended > 0


def test_torn_last_line_is_cut_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    write(search)
    metrics = search.trial(0).file("metrics")
    for path in (search.journal, metrics):
        complete_lines = path.read_bytes()
        path.write_bytes(complete_lines + b'{"op_code": 5, "wor')
        caplog.clear()
        if path == metrics:
            search.trial(0).append(epoch_row({"epoch": EPOCHS + 1}))
            assert [row["epoch"] for row in read_lines(path)] == list(range(1, EPOCHS + 2))
        else:
            Study(search, SPACE, SETTINGS)
        warnings = [record.getMessage() for record in caplog.records]
        assert warnings == [f"{path}: removed the torn last line (19 bytes), which a killed process left"]
