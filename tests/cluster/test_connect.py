"""Connecting to an existing cluster with and without its token, its autoscaler's limits, and the watchdog."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from processes import wait_for

from wmlsearch.cluster import connect, resources
from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.watchdog import watchdog
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search.checkpoints import Checkpoints, check_writable
from wmlsearch.workflows.placement import Placement

TOKEN = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
HOLD = """
import ray, sys
dashboard = sys.argv[1] == "dashboard"
context = ray.init(address="local", num_cpus=2, include_dashboard=dashboard, dashboard_host="127.0.0.1",
                   log_to_driver=False)
print("address", context.address_info["gcs_address"], flush=True)
for line in sys.stdin:
    total, free = ray.cluster_resources(), ray.available_resources()
    print("free", {name: free.get(name, 0.0) / total[name] for name in ("CPU", "memory")}, flush=True)
"""


@dataclass
class Held:
    """A Ray that a subprocess runs, which reports the free share of its resources."""

    process: subprocess.Popen[str]
    address: str = ""

    def read(self, word: str) -> str:
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith(word):
            assert self.process.poll() is None
        return line.removeprefix(word).strip()

    def free(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return self.read("free")

    def assert_all_free(self) -> None:
        wait_for(lambda: self.free() == "{'CPU': 1.0, 'memory': 1.0}", 60)


@contextlib.contextmanager
def hold(dashboard: bool) -> Iterator[Held]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "dashboard" if dashboard else "none"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=TOKEN,
    )
    made = Held(process)
    made.address = made.read("address")
    yield made
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope="module")
def held() -> Iterator[Held]:
    with hold(dashboard=True) as made:
        yield made


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
@pytest.mark.parametrize(
    ("dashboard", "another"),
    [(False, False), (True, True), (False, True)],
    ids=["dashboard off", "another Ray", "dashboard off and another Ray"],
)
def test_twenty_two_worker_trials_release_the_cluster(
    dashboard: bool, another: bool, prepared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Plain Tune with Train hangs when ASHA stops a trial, since it never releases the resources of its group."""
    other = request.getfixturevalue("held") if another else None  # started here, so that the first case runs without
    with hold(dashboard) as connect:
        search_on(connect, prepared, tmp_path)
        connect.assert_all_free()
    if other is not None:  # the search has not joined the other Ray
        other.assert_all_free()


def search_on(held: Held, prepared: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("depth: 2\nbase_channels: 4\nbatch_size: 4\nlearning_rate: {low: 1e-4, high: 1e-2, log: true}\n")
    command = [sys.executable, "-m", "wmlsearch", "tune", str(space), "--data", str(prepared), "--name", "s"]
    command += ["--out", str(tmp_path / "runs"), "--trials", "20", "--epochs", "2", "--grace-epochs", "1"]
    command += ["--workers-per-trial", "2", "--no-baseline", "--no-forecast", "--ray-address", held.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials run 1 at a time, each 2 workers with 1 CPU each" in done.stdout
    trials = SearchDir(tmp_path / "runs" / "s").trials()
    assert len(trials) == 20
    assert {run.status().state for run in trials} == {"completed", "stopped"}


def quick_search(prepared: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "wmlsearch", "tune", "quick", "--data", str(prepared), "--out", str(out)]


def test_impossible_request_is_refused_after_connecting(held: Held, prepared: Path, tmp_path: Path) -> None:
    command = [*quick_search(prepared, tmp_path / "r"), "--ray-address", held.address]
    command += ["--workers-per-trial", "3", "--gpus-per-worker", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=TOKEN)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == (
        "wmlsearch: a trial of 3 workers with 1 CPU and 1 GPU each does not fit on the machines (2 CPUs and 0 GPUs); "
        "the nearest that fits: 2 workers with 1 CPU each\n"
    )
    assert not (tmp_path / "r").exists()


def test_missing_token_error_names_the_next_step(held: Held, prepared: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*quick_search(prepared, tmp_path / "r"), "--ray-address", held.address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**TOKEN, "RAY_AUTH_TOKEN": "f" * 64},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == (
        f"wmlsearch: {held.address}: the cluster requires a token, and this machine has none or a different one; copy "
        "~/.ray/auth_token from the head, or set RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token\n"
    )
    assert not (tmp_path / "r").exists()


def test_what_others_have_reserved_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "NodeID": "a", "Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 1e9}},
        {"Alive": True, "NodeID": "b", "Resources": {"CPU": 8.0}},
        {"Alive": False, "NodeID": "c", "Resources": {"CPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources, "RELEASE_SETTLE_S", 0.5)
    # Of a node without anything free, Ray lists no CPU at all. What we held ourselves becomes free a moment later.
    looks = iter([{"a": {"CPU": 2.0}, "b": {"CPU": 6.0}}, {"a": {"CPU": 2.0, "GPU": 1.0}, "b": {"CPU": 5.0}}])
    last = {"a": {"CPU": 1.0}, "b": {"CPU": 7.0}}
    monkeypatch.setattr(resources, "free_resources", lambda: next(looks, last))
    reserved = resources.reserved_by_others()
    assert reserved == {"a": {"CPU": 6.0, "GPU": 3.0}, "b": {"CPU": 1.0}}
    # Whoever holds something later may be this search itself, whose workers wait for the next runs.
    monkeypatch.setattr(resources, "free_resources", dict)
    monkeypatch.setattr(resources, "machines_that_may_come", lambda _: [])
    assert resources.cluster_nodes(reserved) == [{"CPU": 2.0, "GPU": 1.0, "memory": 1e9}, {"CPU": 7.0}]
    with pytest.raises(InputError, match=r"add a machine, or wait until others have ended: they have reserved a part"):
        Placement("h:1", "/s", workers_per_trial=12).slots(1, {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}})


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("10.1.2.3:6379", True),
        ("127.0.0.1:6379", True),
        ("localhost:6379", True),
        ("127.0.1.1:6379", True),
        ("[::1]:6379", True),
        ("node:6379", True),
        ("elsewhere:6379", False),
        ("unknown:6379", False),
        ("10.1.2.4:6379", False),
        ("127.0.0.1:6380", False),
    ],
)
def test_names_of_the_server_that_this_process_is_connected_to(
    address: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine is node, 10.1.2.3. Where RAY_ADDRESS is 127.0.0.1:6379, Ray connects to 10.1.2.3:6379."""
    names = {"localhost": "127.0.0.1", "node": "127.0.1.1", "elsewhere": "10.9.9.9"}

    def look_up(host: str, port: None) -> list[tuple[Any, ...]]:
        if host == "unknown":
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (names.get(host, host), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.setattr(connect, "own_address", lambda: "10.1.2.3:6379")
    assert connect.same_server(address, "10.1.2.3:6379") is same
    assert connect.same_server("10.1.2.3:6379", address) is same
    refused = contextlib.nullcontext() if same else pytest.raises(InputError, match="connected to another Ray, at 10")
    with refused, ray_session(address):
        pass


def test_ray_that_fails_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The start is tried twice, then reported, and leaves nothing behind. tests/faults covers a real restart."""
    folders: list[Path] = []

    def init(_temp_dir: str, **_: Any) -> None:
        folders.append(Path(_temp_dir))
        raise Exception("The current node\n timed out")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    before = dict(os.environ)
    message = r"^Ray's servers did not start on this machine \(The current node timed out\); "
    with pytest.raises(ConnectionError, match=message), ray_session(None):
        pytest.fail("ray_session must raise")
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)
    assert dict(os.environ) == before


def test_watchdog_names_the_waiting_request() -> None:
    messages: list[str] = []
    with ray_session(None), watchdog(messages.append, lambda: "trial-0007", limit_s=0.5, every_s=0.1):
        ray.util.placement_group([{"CPU": 4096}])
        wait_for(lambda: bool(messages), 30)
    (text,) = messages
    assert text.startswith("trial-0007 has waited ")
    assert "s for [4096 CPU]; free in the cluster: " in text


def test_checkpoints_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="wml-bucket")
    placement = Placement(storage=f"s3://wml-bucket/wml?scheme=http&endpoint_override={host}:{port}&region=us-east-1")
    check_writable(str(placement.storage))
    run = SearchDir(tmp_path / "s").trial(3)
    assert placement.checkpoint_location(run).startswith("s3://wml-bucket/wml/s/trials/0003?scheme=http")
    first = Checkpoints(placement.checkpoint_location(run))
    first.fetch()
    assert not first.last.exists()
    first.last.write_bytes(b"state")
    first.best.write_bytes(b"weights")
    first.push()
    first.close()
    assert not first.last.exists()
    second = Checkpoints(placement.checkpoint_location(run))
    second.fetch()
    assert (second.last.read_bytes(), second.best.read_bytes()) == (b"state", b"weights")
    second.close()
    server.stop()
