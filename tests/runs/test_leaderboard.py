"""The leaderboard of a search that runs: equal to the one that is read from all folders, without reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RecordDir, RunDir, SearchDir
from wmlsearch.runs.leaderboard import LiveLeaderboard, leaderboard
from wmlsearch.runs.names import trial_name
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.from_mapping({"batch_size": {"choices": [4, 8]}}, "here")
TRIALS = 12


def new_search(folder: Path, objectives: Sequence[str] = ()) -> SearchDir:
    settings = RunSettings(trials=TRIALS, objectives=list(objectives)).model_dump()
    about = {"name": "s", "settings": settings, "space": {"source": "here", "values": SPACE.to_mapping()}}
    return SearchDir.create(folder / "s", search_record(about))


def begin(search: SearchDir, number: int) -> RunDir:
    config = TrialConfig(batch_size=4 + 4 * (number % 2)).model_dump()
    about = {"name": trial_name(number), "kind": "trial", "config": config}
    return RunDir.create(search.trial(number).path, run_record({**about, "settings": search.record().settings}))


@pytest.mark.parametrize("objectives", [[], ["val_dice_patients_best", "images_per_s"]], ids=["one", "two"])
def test_it_is_the_leaderboard_of_the_folders_after_each_change(objectives: list[str], tmp_path: Path) -> None:
    search, rng = new_search(tmp_path, objectives), np.random.default_rng(1)
    settings = search.record().settings
    live = LiveLeaderboard(search, SPACE, settings)
    running: list[RunDir] = []
    begun = 0
    while begun < TRIALS or running:
        if begun < TRIALS and (len(running) < 4):
            run = begin(search, begun)
            running.append(run)
            begun += 1
        else:
            run = running[rng.integers(len(running))]
            epoch = len(run.rows()) + 1
            metrics = {
                "val_dice_patients_best": float(rng.integers(1, 6)) / 10,
                "images_per_s": float(rng.integers(1, 5)),
            }
            run.append(epoch_row({"epoch": epoch, "epoch_s": rng.random(), **metrics}))
            if rng.random() < 0.4:
                run.set_status(str(rng.choice(["completed", "stopped", "failed"])))
                running.remove(run)
        live.update(run, run.status())
        board = leaderboard(search)
        for shown in (live, LiveLeaderboard(search, SPACE, settings)):  # kept up to date, and that of a resumed search
            assert shown.top(100) == board
        top = live.top(3)
        assert top.trials == board.trials[:3]
        assert top.left_out == max(0, begun - 3)
        assert {entry.name for entry in live.running} == {run.record().name for run in running}
        assert (live.begun, live.ended) == (begun, begun - len(running))
        timed = [entry.best.metrics["epoch_s"] or 0.0 for entry in board.trials if entry.best]
        assert live.epoch_s == pytest.approx(sum(timed) / max(len(timed), 1))


def test_unfinished_trials_wait_until_they_are_continued(tmp_path: Path) -> None:
    search = new_search(tmp_path)
    for number, state in enumerate(("completed", "interrupted", "running")):
        begin(search, number).set_status(state)
    live = LiveLeaderboard(search, SPACE, search.record().settings)
    assert (live.begun, live.ended, live.running) == (1, 1, [])
    run = search.trial(2)
    live.update(run, run.status())
    assert (live.begun, live.ended, [entry.name for entry in live.running]) == (2, 1, ["trial-0002"])
    search.trial(1).set_status("interrupted")
    live.update(search.trial(1), search.trial(1).status())
    assert (live.begun, live.ended) == (3, 2)


def test_an_interrupted_trial_that_goes_on_is_in_the_front_once(tmp_path: Path) -> None:
    search = new_search(tmp_path, ["val_dice_patients_best", "images_per_s"])

    def train(run: RunDir, epoch: int, dice: float, speed: float) -> None:
        run.append(epoch_row({"epoch": epoch, "val_dice_patients_best": dice, "images_per_s": speed}))

    other, run = begin(search, 0), begin(search, 1)
    train(other, 1, 0.4, 4)
    other.set_status("completed")
    train(run, 1, 0.5, 5)  # it beats the other one, at first
    run.set_status("interrupted")
    live = LiveLeaderboard(search, SPACE, search.record().settings)
    assert live.top(10) == leaderboard(search)
    run.set_status("running")
    live.update(run, run.status())
    assert live.top(10) == leaderboard(search)
    train(run, 2, 0.6, 3)
    live.update(run, run.status())
    assert [entry.name for entry in live.top(10).front] == ["trial-0001", "trial-0000"]
    assert live.top(10) == leaderboard(search)


def test_a_change_reads_one_folder_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = new_search(tmp_path)
    for number in range(TRIALS):
        begin(search, number)
    live = LiveLeaderboard(search, SPACE, search.record().settings)
    read: Counter[Path] = Counter()
    file = RecordDir.file

    def counted(folder: RecordDir, what: str) -> Path:
        read[folder.path] += 1
        return file(folder, what)

    monkeypatch.setattr(RecordDir, "file", counted)
    run = search.trial(5)
    live.update(run, run.status())
    live.top(10)
    assert set(read) == {run.path}
    assert read[run.path] <= 3
