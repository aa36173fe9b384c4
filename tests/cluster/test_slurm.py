"""Searches as Slurm jobs: on the machines of several at once, over a time limit, cancelled. `make cluster-test`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import REPOSITORY, SHARED, Host
from processes import wait_for
from slurm import DAEMONS, KILL_WAIT_S, Slurm

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif("WMLSEARCH_CLUSTER_TEST" not in os.environ, reason="make cluster-test runs it"),
]

NAMES = ("node-1", "node-2", "node-3")
SCRIPT = REPOSITORY / "clusters" / "slurm.sbatch"
RUNS = SHARED / "slurm-runs"
# One trial at a time, on three machines, so that each proposal follows from the trials before it.
OPTIONS = "--workers-per-trial 3 --trials 3 --epochs 6 --seed 1 --no-forecast --scheduler none"
VERDICT, NO_VERDICT = "--confirm-top 1 --confirm-seeds 1 --final-runs 1", "--no-baseline"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    hosts = {f"10.77.1.{number}": Host(name, f"10.77.1.{number}", "") for number, name in enumerate(NAMES, 2)}
    made = Slurm(hosts)
    yield made
    print(made.log())
    for host in hosts.values():
        host.process.kill()


@pytest.fixture(scope="module")
def data() -> Path:
    """A small phantom on the shared file system, and a space whose networks learn it."""
    raw = write_phantom(SHARED / "slurm-raw", patients=8, timepoints=1, shape=(48, 48, 12), lesion_size=3)
    prepare(raw, SHARED / "slurm-prepared", PrepareOptions(size=32, fit="resize", jobs=1))
    (SHARED / "slurm-space.yaml").write_text(
        "base_channels: 8\ndepth: 2\nbatch_size: 3\nloss: bce_dice\nnorm_momentum: 0.1\n"
        "learning_rate: {low: 4e-3, high: 6e-3, log: true}\n"
    )
    return SHARED / "slurm-prepared"


class Job:
    """A search that was submitted with clusters/slurm.sbatch."""

    def __init__(self, slurm: Slurm, data: Path, name: str, ending: str, *sbatch: Any) -> None:
        self.slurm, self.run, self.log = slurm, RUNS / name, SHARED / f"{name}.log"
        script = SHARED / f"{name}.sbatch"
        script.write_text(batch_script(data, name, ending))
        options = ("--nodes=3", "--cpus-per-task=1", "--mem=1500", f"--output={self.log}", *sbatch)
        self.number = slurm.run("sbatch", "--parsable", *options, script)

    def state(self) -> str:
        """The state of the search, as its folder has it; "" before it has begun."""
        file = self.run / "status.json"
        return str(json.loads(file.read_text())["state"]) if file.exists() else ""

    def epochs(self) -> int:
        return sum(len(file.read_text().splitlines()) for file in self.run.glob("trials/*/metrics.jsonl"))

    def wait(self, *states: str, limit_s: float = 420) -> str:
        """Wait until Slurm says one of these states of the job; return it with the number of restarts."""
        began = time.monotonic()
        wait_for(
            lambda: self.slurm.state(self.number).split()[0] in states, limit_s, f"{states}: {self.text()[-3000:]}"
        )
        print(f"{self.run.name}: {self.slurm.state(self.number)} [{time.monotonic() - began:.0f} s]")
        return self.slurm.state(self.number)

    def restarts(self) -> int:
        return int(self.slurm.state(self.number).split()[1])

    def minutes(self) -> int:
        """How long the job has run, in whole minutes."""
        return int(self.slurm.run("squeue", "--noheader", "--format=%M", "--jobs", self.number).split(":")[-2])

    def limit(self, minutes: int) -> None:
        """Change the time limit."""
        self.slurm.run("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def batch_script(data: Path, name: str, ending: str) -> str:
    """Return clusters/slurm.sbatch with this installation, these data and these options."""
    text = SCRIPT.read_text()
    changes = {
        r"^source .*$": f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={REPOSITORY}; cd {REPOSITORY}",
        r"^#SBATCH --gpus-per-node.*\n": "",
        r"^DATA=.*$": f"DATA={data}",
        r"^RUNS=.*$": f"RUNS={RUNS}",
        r"^NAME=.*$": f"NAME={name}",
        r"tune --continue": f"tune {SHARED}/slurm-space.yaml --continue {OPTIONS} {ending}",
        r' --seed "\$SEED"': "",
    }
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count == 1, f"{pattern} occurs {count} times in {SCRIPT.name}"
    return text


def leaderboard(job: Job) -> list[Any]:
    """Return the values of all trials, epoch by epoch."""
    runs = sorted(job.run.glob("trials/*/metrics.jsonl"))
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in runs]
    kept = ("epoch", "train_loss", "val_dice_patients_best")
    return [
        [run.parent.name, *[tuple(row.get(key) for key in kept) for row in lines]]
        for run, lines in zip(runs, rows, strict=True)
    ]


def test_a_search_over_a_time_limit_equals_an_undisturbed_one_on_the_same_machines(slurm: Slurm, data: Path) -> None:
    undisturbed = Job(slurm, data, "undisturbed", NO_VERDICT, "--time=30")
    limited = Job(slurm, data, "limited", VERDICT, "--time=30", "--signal=B:USR1@130")
    try:
        wait_for(lambda: limited.epochs() >= 3, 300, "no third epoch")
        limited.limit(minutes=limited.minutes() + 2)  # so the signal is due at once
        wait_for(lambda: limited.restarts() == 1, 120, "not requeued")
        limited.limit(minutes=30)
        assert limited.wait("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT").startswith("COMPLETED ")
        assert undisturbed.wait("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") == "COMPLETED 0"
    finally:
        print(limited.text())
        print(undisturbed.text())
    assert limited.restarts() == 1
    assert "requeues itself, since its time limit is near" in limited.text()
    assert leaderboard(limited) == leaderboard(undisturbed)
    assert (limited.state(), undisturbed.state()) == ("completed", "completed")
    assert (limited.run / "report" / "index.html").is_file()
    assert "verdict (a), the configurations: " in limited.text()


def test_a_cancelled_search_ends_cleanly_and_goes_on_with_the_next_job(slurm: Slurm, data: Path) -> None:
    job = Job(slurm, data, "cancelled", NO_VERDICT, "--time=30")
    wait_for(lambda: job.epochs() >= 3, 180, "no third epoch")
    began = time.monotonic()
    slurm.run("scancel", job.number)
    job.wait("CANCELLED")
    took_s = time.monotonic() - began
    print(job.text())
    assert job.state() == "interrupted"
    assert json.loads((job.run / "status.json").read_text())["reason"] == "stopped by SIGTERM"
    assert took_s < KILL_WAIT_S, "Slurm did not have to kill it"
    assert f"to resume: wmlsearch tune --resume cancelled --out {RUNS}\n" in job.text()


def test_nothing_is_left_behind(slurm: Slurm) -> None:
    wait_for(lambda: not [words for host in slurm.hosts for words in others(host)], 30, "processes are left")
    for host in slurm.hosts:
        assert [path.name for path in host.file("/tmp").iterdir() if path.name.startswith(("wmlsearch", "ray"))] == []  # noqa: S108


def others(host: Host) -> list[str]:
    """Return the processes of a host that are not Slurm's own."""
    return [words for words in host.processes() if not any(name in words.split(" ")[0] for name in DAEMONS)]
