"""A search on a Ray that begins with a head without CPUs, on a host of its own, whose autoscaler adds machines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import REPOSITORY, SHARED, Host
from processes import wait_for

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif("WMLSEARCH_CLUSTER_TEST" not in os.environ, reason="make cluster-test runs it"),
]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host("autoscaling", "10.77.0.20", "")
    wait_for(made.is_up, 60, "the host has not started")
    yield made
    made.process.kill()
    made.process.wait()


def test_an_autoscaling_cluster_from_zero_workers(host: Host) -> None:
    """The search ends with a verdict, and all machines are stopped again."""
    folder = SHARED / "autoscaling"
    raw = write_phantom(folder / "raw", patients=8, timepoints=1, shape=(48, 48, 12), lesion_size=3)
    prepare(raw, folder / "data", PrepareOptions(size=32, fit="resize", jobs=1))
    words = ["--trials", 4, "--epochs", 30, "--scheduler", "none", "--no-forecast", "--seed", 1]
    words += ["--confirm-top", 1, "--confirm-seeds", 1, "--final-runs", 1]
    own = Path("/tmp/a")  # noqa: S108 - private to the host; the paths of Ray's sockets must be short
    environment = {"PYTHONPATH": str(REPOSITORY)}
    host.exec("mkdir", own)
    text = host.exec(
        sys.executable, REPOSITORY / "tests/cluster/autoscaling.py", own, folder / "data", *words,
        environment=environment,
    )  # fmt: skip
    seen = json.loads(text.splitlines()[-1])
    print(seen["log"])
    assert seen["status"] == 0
    assert (seen["began_with"], seen["left"]) == (0, 0)
    assert seen["most"] >= 2, "a machine that ends is listed until Ray has noticed it, beside the one in its place"
    assert set(seen["groups"]) == {"REMOVED"}
    assert "waiting for the cluster to start machines for a trial of 1 worker with 1 CPU each" in seen["log"]
    assert '"sentence"' in host.file(own / "runs/s/test.json").read_text()
