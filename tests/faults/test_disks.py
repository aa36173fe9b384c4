"""Disks that are full, unavailable or read-only: the message names path and size, and the search can be resumed."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import kill
from search import Lines, Record, Running, check_whole, differences, sync, tune_arguments

from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.runs.folders import SearchDir

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
AWAY_S = 60
SLOT = ("ray::TrialWorker", "ray::ImplicitFunc", "Trainable")


class Disk:
    """A small file system in memory (tmpfs)."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path, self.ballast = path, path / "ballast"
        path.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs, which needs root: {done.stderr.strip()}")

    def fill(self) -> None:
        with open(self.ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        free = os.statvfs(self.path).f_bavail
        assert free == 0, f"{free} blocks are free"

    def empty(self) -> None:
        self.ballast.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Disk]]:
    made: dict[str, Disk] = {}
    try:
        for name, megabytes in (("runs", 16), ("storage", 160), ("mlflow", 16)):
            made[name] = Disk(tmp_path / name, megabytes)
        yield made
    finally:
        for disk in made.values():
            disk.close()


def check_files(search: SearchDir, storage: Path) -> None:
    """Check that every file is complete: JSON and lines parse, and checkpoints load."""
    for path in search.path.rglob("*.json"):
        json.loads(path.read_text())
    for run in search.trials():
        run.rows()
    for path in storage.rglob("*.pt"):
        if not path.name.startswith("."):
            load_checkpoint(path)


def test_full_and_unmounted_disks(
    prepared: Path, tmp_path: Path, disks: dict[str, Disk], chance: random.Random, record: Record
) -> None:
    out, storage = disks["runs"].path, disks["storage"].path / "checkpoints"
    uri = f"sqlite:///{disks['mlflow'].path}/mlflow.db"
    where = ["--storage", storage, "--mlflow-uri", uri]
    words = tune_arguments(out, prepared, *where, trials=2, epochs=60)
    lines = Lines(SearchDir(out / "s"))

    def some_epochs(running: Running) -> None:
        wanted = lines.count() + chance.randint(2, 6)
        running.until(lambda: lines.count() >= wanted)
        time.sleep(chance.uniform(0, 0.3))  # a random time within the next epoch

    with lines:
        for full, what in (("runs", "the run folder"), ("storage", "the checkpoints")):
            with Running(out, *words, cores=1) as running:
                some_epochs(running)
                disks[full].fill()
                assert running.end(240) == 1, running.text()
            error = re.search(rf"stopped, since .*No space left on device \(([\d,]+) bytes are needed, .* are free\): "
                             rf"'{disks[full].path}/[^']+'", running.text())  # fmt: skip
            assert error, running.text()
            assert "to resume: wmlsearch tune --resume s" in running.text()
            assert "Traceback" not in running.text()
            check_files(running.search, storage)
            lines.look()
            lost, doubled = lines.lost_and_doubled()
            record(f"disk full under {what}", 1, lost, doubled, f"{error[1]} bytes were needed")
            assert (lost, doubled) == (0, 0)
            disks[full].empty()
            words = ["--resume", "s", *where]

        with Running(out, *words, cores=1) as running:
            some_epochs(running)
            moved = storage.rename(storage.with_name("moved"))
            before = lines.count()
            time.sleep(AWAY_S / 2)  # the storage is away while the trial's process runs
            for slot in running.processes(*SLOT):  # its replacement finds no checkpoint
                kill(slot)
            time.sleep(AWAY_S / 2)  # the storage is away without the process
            assert not running.ended, running.text()
            assert lines.count() <= before + 1
            assert not storage.exists(), "the search must not create the storage folder again"
            moved.rename(storage)
            some_epochs(running)
            record(f"storage away for {AWAY_S} s, trial's process killed meanwhile", 1, *lines.lost_and_doubled())
            disks["mlflow"].fill()
            assert running.end(300) == 0, running.text()
        assert "MLflow does not have all results" in running.text(), running.text()
        lines.look()
    assert lines.lost_and_doubled() == (0, 0)
    check_whole(running.search, trials=2, epochs=60)
    disks["mlflow"].empty()
    done = sync(out, uri)
    assert done.returncode == 0, done.stderr
    missing, doubled, faults = differences(running.search, disks["mlflow"].path / "mlflow.db")
    record("disk full under MLflow's store, then `sync`", 1, missing, doubled, f"{len(faults)} other differences")
    assert (missing, doubled, faults) == (0, 0, [])

    disks["runs"].remount("ro")
    for command in (begin_words(out, prepared, tmp_path), ["--resume", "s", "--trials", "3", *where]):
        with Running(out, *command, log=tmp_path / "read-only.log") as running:
            assert running.end(120) == 2, running.text()
        assert running.text().startswith("wmlsearch: " + str(out)), running.text()
        assert "cannot be written" in running.text() or "Read-only file system" in running.text(), running.text()
        assert "trials run" not in running.text(), "refused before anything starts"
    record("run folder read-only", 2, observed="refused before the first trial")


def begin_words(out: Path, prepared: Path, tmp_path: Path) -> list[object]:
    return [out / "space.yaml", "--data", prepared, "--name", "new", "--mlflow-uri", f"sqlite:///{tmp_path}/other.db"]
