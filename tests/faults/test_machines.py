"""A machine whose GPU fails or whose disk is full: simulated in each process there. A Ray has two machines' servers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from search import Record, Running, check_whole, tune_arguments

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
INJECT = Path(__file__).parent / "inject"
# Two raylets, each with a CPU. In the processes of the second one each trial fails. Those of the first one wait
# for a file: else the first one may train all trials while a new process starts on the second one.
CLUSTER = """
import sys
import wmlsearch.cluster
from ray.cluster_utils import Cluster
fault, go_on = sys.argv[1:]
head = {"num_cpus": 1, "include_dashboard": False, "env_vars": {"WMLSEARCH_FAULT_WAIT": go_on}}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1, env_vars={fault: "1"})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster(tmp_path: Path, fault: str, go_on: Path) -> Iterator[str]:
    """Run a Ray of two machines' servers; yields its address.

    On one of them each trial fails, on the other one each waits until the file `go_on` exists.
    """
    paths = [str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(tmp_path / "cluster.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, fault, str(go_on)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("address"):
        assert process.poll() is None, (tmp_path / "cluster.log").read_text()
    try:
        yield line.split()[1]
    finally:
        process.communicate()  # ends its standard input
        process.wait(60)


@pytest.mark.parametrize(
    ("fault", "what", "said"),
    [
        (
            "WMLSEARCH_FAULT_CUDA",
            "a CUDA error in each training",
            "failed: CUDA error: an illegal memory access was encountered",
        ),
        (
            "WMLSEARCH_FAULT_DISK",
            "a full disk when a trial begins",
            "failed: /cache/images.npy cannot be written (No space left on device)",
        ),
    ],
)
def test_a_machine_that_fails_gets_no_more_trials(
    fault: str, what: str, said: str, prepared: Path, out: Path, tmp_path: Path, record: Record
) -> None:
    go_on = tmp_path / "go-on"
    with cluster(tmp_path, fault, go_on) as address:
        words = tune_arguments(
            out, prepared, "--ray-address", address, "--storage", tmp_path / "storage", trials=6, epochs=6
        )
        with Running(out, *words) as running:
            running.until(lambda: "gets no more trials" in running.text())
            status = json.loads((running.search.path / "status.json").read_text())
            assert status["state"] == "running"
            assert "gets no more trials, since it failed 2 times: " in status["reason"]
            go_on.touch()
            assert running.end() == 0, running.text()
    record(f"{what} on one of two machines", 2, 0, 0, "it is put aside after the second")
    check_whole(running.search, trials=6, epochs=6)
    assert "Traceback" not in running.text()
    assert said in running.text()


def test_a_search_ends_if_the_gpu_of_its_only_machine_fails(prepared: Path, out: Path, record: Record) -> None:
    paths = [str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "WMLSEARCH_FAULT_CUDA": "1"}
    words = tune_arguments(out, prepared, trials=6, epochs=6)
    with Running(out, *words, cores=1, env=environment) as running:
        assert running.end() == 1, running.text()
    status = running.search.status()
    assert status.state == "failed"
    assert "CUDA error: an illegal memory access was encountered, and no other machine" in status.reason
    record("a CUDA error in each training of the only machine", 3, 0, 0, "the search ends and says so")
