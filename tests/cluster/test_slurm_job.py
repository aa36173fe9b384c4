"""The share of a machine that a Slurm job gives to Ray, and what a batch script does at its end, without Slurm.

tests/cluster/test_slurm.py runs the real Slurm (`make cluster-test`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import wait_for

from wmlsearch.cluster import slurm
from wmlsearch.cluster.slurm import (
    SlurmJob,
    default_interface,
    gpus_of_job,
    machine_variables,
    main,
    memory_of_job,
    ray_start,
)
from wmlsearch.errors import InputError


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, 0),  # what the machine has besides belongs to others
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"SLURM_GPUS_ON_NODE": "0", "CUDA_VISIBLE_DEVICES": "0"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-46381f23"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "7"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}, 1),
        ({"HIP_VISIBLE_DEVICES": "0,1,2"}, 3),
    ],
)
def test_gpus_are_those_of_the_job(environment: dict[str, str], gpus: int) -> None:
    assert gpus_of_job(environment) == gpus


def test_ray_gets_the_amd_gpus_of_each_machine() -> None:
    """Slurm selects them with a variable that Ray refuses alone."""
    assert machine_variables({"ROCR_VISIBLE_DEVICES": "4,6"})["HIP_VISIBLE_DEVICES"] == "0,1"
    assert "HIP_VISIBLE_DEVICES" not in machine_variables({"CUDA_VISIBLE_DEVICES": "4,6"})


def test_memory_is_that_of_the_job() -> None:
    assert memory_of_job({"SLURM_MEM_PER_NODE": "2000"}) == 2000 * 2**20
    assert memory_of_job({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "6"}) == 3000 * 2**20
    assert memory_of_job({"SLURM_MEM_PER_NODE": "0"}) > 2**60, "all that the machine has"
    assert memory_of_job({}) > 2**60


def test_the_first_machine_starts_the_head_and_the_others_join_it(tmp_path: Path) -> None:
    job = {"SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "1000"}
    head = ray_start("10.0.0.7:41234", tmp_path, {**job, "SLURM_PROCID": "0"})
    other = ray_start("10.0.0.7:41234", tmp_path, {**job, "SLURM_PROCID": "1"})
    assert {"--head", "--node-ip-address=10.0.0.7", "--port=41234", "--include-dashboard=false"} <= set(head)
    assert not any(word.startswith("--address") for word in head)
    assert "--address=10.0.0.7:41234" in other
    assert "--head" not in other
    for words in (head, other):
        assert "--num-gpus=2" in words
        assert f"--temp-dir={tmp_path}" in words
        memory = next(int(word.partition("=")[2]) for word in words if word.startswith("--memory="))
        assert memory < 1000 * 2**20, "the object store takes its part"
        # Ray's usual ports would collide with those of another job on the machine
        assert {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"} <= set(words)


def test_gloo_uses_the_interface_of_the_default_route(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
    routes.write_text(head + "ib0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\neth1\t00000000\t0101A8C0\t0003\t0\n")
    assert default_interface(routes) == "eth1"
    routes.write_text(head)
    assert default_interface(routes) == ""
    assert default_interface(tmp_path / "none") == ""


def test_outside_of_a_job_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["true"]) == 2
    errors = capsys.readouterr().err
    assert "is not in a Slurm job (SLURM_JOB_ID is not set)" in errors
    assert "`wmlsearch cluster-file slurm`" in errors
    assert main([]) == 2
    assert "give a command" in capsys.readouterr().err
    with pytest.raises(InputError):
        SlurmJob.of({"SLURM_JOB_ID": ""})


OF_TASKS = [
    "CPUS_PER_TASK", "TRES_PER_TASK", "GPUS_PER_TASK", "GPUS_PER_SOCKET", "CPUS_PER_GPU", "MEM_PER_GPU", "HINT",
    "NTASKS_PER_NODE", "NTASKS_PER_CORE", "NTASKS_PER_SOCKET", "NTASKS_PER_GPU", "NTASKS_PER_TRES", "NSOCKETS_PER_NODE",
    "NCORES_PER_SOCKET", "THREADS_PER_CORE", "DISTRIBUTION", "DIST_PLANESIZE", "CPU_BIND", "CPU_BIND_TYPE", "EXACT",
    "CPU_BIND_LIST", "MEM_BIND", "GPU_BIND", "TRES_BIND", "EXCLUSIVE", "OVERCOMMIT", "CORE_SPEC", "THREAD_SPEC", "GRES",
    "GRES_FLAGS", "STDINMODE", "WAIT",
]  # fmt: skip
OF_JOB = [
    "JOB_ID", "JOBID", "CONF", "CLUSTERS", "MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE", "GPUS", "GPUS_PER_NODE",
    "GPUS_ON_NODE", "TASKS_PER_NODE", "JOB_CPUS_PER_NODE", "JOB_NODELIST", "EXPORT_ENV",
]  # fmt: skip


def test_options_of_the_users_tasks_are_not_for_the_step_that_starts_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm would give Ray the CPUs or GPUs of one such task, or refuse the step."""
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/sh\nenv -0 > {tmp_path}/environment\necho "$@" > {tmp_path}/words\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    of_tasks = ["SRUN_CPUS_PER_TASK", *(f"SLURM_{name}" for name in OF_TASKS)]
    of_job = ["RAY_AUTH_TOKEN", *(f"SLURM_{name}" for name in OF_JOB)]
    given = {**os.environ, **dict.fromkeys([*of_tasks, *of_job], "1")}
    slurm._start_ray(SlurmJob("77", 3), "10.0.0.7:41234", given).communicate(timeout=60)
    lines = (tmp_path / "environment").read_text().split("\0")
    names = {line.partition("=")[0] for line in lines}
    assert names.intersection(of_tasks) == set()
    assert names.issuperset(of_job)
    words = (tmp_path / "words").read_text().split()
    assert words[:5] == ["--overlap", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    assert "--export=ALL" in words, "also after `sbatch --export=NONE`: the step needs the token"


# Ray starts at once and ends with its input; all else is the batch script's own.
SCRIPT = """
import subprocess, sys
from wmlsearch.cluster import slurm
slurm._start_ray = lambda *_: subprocess.Popen(["cat"], stdin=subprocess.PIPE)
slurm._wait_for_ray = lambda *_: None
sys.exit(slurm.main(sys.argv[1:]))
"""
# Prints the variables that it got, and exits as a search does that SIGTERM ends.
COMMAND = """
import os, signal, sys
def end(*_):
    print("ended cleanly", flush=True)
    sys.exit({status})
signal.signal(signal.SIGTERM, end)
print("address", os.environ["RAY_ADDRESS"], len(os.environ["RAY_AUTH_TOKEN"]), flush=True)
if {waits}:
    signal.pause()
print("done", flush=True)
"""


class Batch:
    """A batch script that runs, with a `scontrol` that notes how it is called."""

    def __init__(self, folder: Path, waits: bool, status: int = 143, scontrol_status: int = 0) -> None:
        self.calls, self.log = folder / "calls", folder / "log"
        (folder / "bin").mkdir()
        scontrol = folder / "bin" / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\necho "is disabled" >&2\nexit {scontrol_status}\n')
        scontrol.chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
        command = [sys.executable, "-c", COMMAND.format(waits=waits, status=status)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *command],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        wait_for(lambda: "address" in self.log.read_text(), 60, "the command has not started")

    def end(self) -> str:
        """Wait for the end, and return what `scontrol` was asked to do."""
        self.process.wait(60)
        return self.calls.read_text() if self.calls.exists() else ""


def test_a_command_that_ends_by_itself_is_not_requeued(tmp_path: Path) -> None:
    batch = Batch(tmp_path, waits=False)
    assert batch.end() == ""
    assert batch.process.returncode == 0
    assert batch.log.read_text().splitlines()[-1] == "done"
    assert batch.log.read_text().split()[-2] == "64", "a token of the job's own"


def test_before_the_time_limit_the_command_ends_cleanly_and_the_job_is_requeued(tmp_path: Path) -> None:
    batch = Batch(tmp_path, waits=True)
    batch.process.send_signal(signal.SIGUSR1)
    assert batch.end() == "requeue 77\n"
    assert batch.process.returncode == 143
    assert "ended cleanly\njob 77: requeues itself, since its time limit is near" in batch.log.read_text()


def test_a_search_that_ends_just_then_is_not_requeued(tmp_path: Path) -> None:
    batch = Batch(tmp_path, waits=True, status=0)
    batch.process.send_signal(signal.SIGUSR1)
    assert batch.end() == ""
    assert batch.process.returncode == 0


def test_a_cancelled_job_is_not_requeued(tmp_path: Path) -> None:
    batch = Batch(tmp_path, waits=True)
    batch.process.send_signal(signal.SIGTERM)
    assert batch.end() == ""
    assert batch.process.returncode == 143


def test_where_slurm_requeues_nothing_the_log_says_how_to_go_on(tmp_path: Path) -> None:
    batch = Batch(tmp_path, waits=True, scontrol_status=1)
    batch.process.send_signal(signal.SIGUSR1)
    assert batch.end() == "requeue 77\n"
    assert "Slurm did not requeue it (is disabled); to go on, submit the script again" in batch.log.read_text()
