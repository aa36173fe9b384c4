"""The commands of docs/clusters.md on three hosts: ray up, tune, stop, resume, ui, failures, an address, ray down.

`make cluster-test` runs it (see hosts.py). The tests are steps of one session and depend on the earlier ones.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import REPOSITORY, SHARED, Host
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from processes import wait_for

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(420),
    pytest.mark.skipif("WMLSEARCH_CLUSTER_TEST" not in os.environ, reason="make cluster-test runs it"),
]

LAPTOP = Path("/tmp/laptop")  # noqa: S108 - private to the outermost namespace, see hosts.py
HEAD = "10.77.0.2"
WORKERS = ("10.77.0.3", "10.77.0.4")
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
RANK = "RayTrainWorker"  # part of the command line of Ray Train's worker processes
EPOCHS = 60  # of a trial that a host or the network leaves: more than a fast machine trains while the test looks
WHOLE = ("--no-baseline", "--scheduler", "none")  # trials that end with their last epoch
UI_PORT = 5055  # other than the server's port: the tunnel connects any port of the laptop with it


class Cluster:
    """The hosts, the cluster file made from clusters/on-prem.yaml, and the laptop's command line."""

    def __init__(self) -> None:
        LAPTOP.mkdir()
        key = LAPTOP / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        public = key.with_suffix(".pub").read_text()
        names = ("head", "worker-1", "worker-2")
        self.hosts = {ip: Host(name, ip, public) for name, ip in zip(names, (HEAD, *WORKERS), strict=True)}
        self.file = LAPTOP / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(cluster_file(key)))

    def command(self, *words: Any) -> list[str]:
        module = "ray.scripts.scripts" if words[0] == "ray" else words[0]
        return [sys.executable, "-m", module, *(str(word) for word in words[1:])]

    def run(self, *words: Any, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Run `ray ...` or `wmlsearch ...` on the laptop, and print its output."""
        began = time.monotonic()
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
            env=ENVIRONMENT,
        )
        print(f"$ {' '.join(str(word) for word in words)}\n{done.stdout}[{time.monotonic() - began:.0f} s]")
        return done

    def start(self, log: Path, *words: Any) -> subprocess.Popen[str]:
        """Start a command on the laptop in the background, which writes its output to `log`."""
        with open(log, "w") as file:
            return subprocess.Popen(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                env=ENVIRONMENT,
                # a shell that runs these tests in the background ignores SIGINT, and processes inherit that
                preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )

    def exec(self, command: str) -> str:
        """Run a command on the head with `ray exec`, and return its output."""
        return self.run("ray", "exec", self.file, command).stdout


def cluster_file(key: Path) -> dict[str, Any]:
    """Return clusters/on-prem.yaml with these machines and this Python environment instead of an installation."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "clusters" / "on-prem.yaml").read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": list(WORKERS)}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    assert [command.split()[0] for command in config["setup_commands"][2:]] == ["test", "~/wmlsearch-venv/bin/pip"]
    config["setup_commands"][2:] = [f"ln -sfn {sys.prefix} ~/wmlsearch-venv"]
    config["setup_commands"][0] = config["setup_commands"][0].replace("/mnt/wmlsearch", str(SHARED))
    for role in ("head", "worker"):  # one CPU each, so that two ranks need two hosts
        commands = config[f"{role}_start_ray_commands"]
        commands[1] += " --num-cpus=1 --object-store-memory=200000000"
    return config


def show_logs(head: Host) -> None:
    """Print the ends of the head's logs, which pytest shows when a step fails."""
    files = [path for path in head.file("~/wmlsearch-head").rglob("*") if path.name in ("status.json", "server.log")]
    files += head.file("/tmp").glob("ray/session_2*/logs/job-driver-*.log")  # noqa: S108 - `session_latest` is an absolute link, of the host
    for path in sorted(files):
        print(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    show_logs(made.hosts[HEAD])
    for host in made.hosts.values():
        host.process.kill()


@pytest.fixture(scope="module")
def data() -> Path:
    """A small phantom, on the laptop only, in which the networks of `tune` learn sooner than the baseline's."""
    raw = write_phantom(LAPTOP / "raw", patients=8, timepoints=1, shape=(48, 48, 12), lesion_size=3)
    prepare(raw, LAPTOP / "prepared", PrepareOptions(size=32, fit="resize", jobs=1))
    return LAPTOP / "prepared"


def test_ray_up_starts_all_hosts(cluster: Cluster) -> None:
    up = cluster.run("ray", "up", "-y", cluster.file)
    assert up.returncode == 0
    alive = (
        'python -c \'import ray; ray.init(log_to_driver=False); print("alive", sum(n["Alive"] for n in ray.nodes()))\''
    )
    wait_for(lambda: "alive 3" in cluster.exec(alive), 120, "not all hosts have joined")


def test_only_ssh_and_ray_are_open_and_ray_asks_for_the_token(cluster: Cluster) -> None:
    for port in (5000, 8265):  # MLflow, dashboard
        with pytest.raises(OSError), socket.create_connection((HEAD, port), timeout=5):  # noqa: PT011 - any network error shows that the port is closed
            pass
    with socket.create_connection((HEAD, 6379), timeout=5):
        pass
    refused = subprocess.run(
        cluster.command("ray", "status", "--address", f"{HEAD}:6379"), capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stderr


def tune(cluster: Cluster, data: Path, name: str, *more: Any, workers: int = 2) -> list[Any]:
    """Return the command of a search whose trials have several ranks. Hosts have one CPU, so each has one rank."""
    (LAPTOP / "space.yaml").write_text(
        "base_channels: 8\ndepth: 2\nbatch_size: 3\nloss: bce_dice\nnorm_momentum: 0.1\nearly_stop_patience: 100\n"
        "learning_rate: {low: 4e-3, high: 6e-3, log: true}\n"
    )
    words = ["wmlsearch", "tune", LAPTOP / "space.yaml", "--cluster", cluster.file, "--data", data, "--name", name]
    words += ["--out", LAPTOP / "runs", "--workers-per-trial", workers, "--storage", SHARED, "--seed", 1]
    return [*words, "--no-forecast", "--confirm-top", 1, "--confirm-seeds", 1, "--final-runs", 1, *more]


def test_tune_continues_while_the_laptop_sleeps(cluster: Cluster, data: Path) -> None:
    log = LAPTOP / "first.log"
    laptop = cluster.start(log, *tune(cluster, data, "first", "--trials", 3, "--epochs", 10, "--scheduler", "none"))
    wait_for(lambda: "trial-0000" in log.read_text() or laptop.poll() is not None, 240, "no trial has ended")
    print(log.read_text())
    assert laptop.poll() is None
    assert "sending the prepared data set to the head" in log.read_text()
    laptop.send_signal(signal.SIGINT)
    assert laptop.wait(20) == 130
    text = log.read_text()
    assert "stopped following" in text
    assert "first continues on the cluster" in text


def test_stop_and_resume_from_the_laptop(cluster: Cluster, data: Path) -> None:
    run, of_laptop = LAPTOP / "runs" / "first", ["--cluster", cluster.file, "--out", LAPTOP / "runs"]

    def state() -> str:
        return str(json.loads((run / "status.json").read_text())["state"])

    stop = cluster.run("wmlsearch", "stop", "first", "--cluster", cluster.file)
    assert stop.returncode == 0
    assert "first: interrupted (stopped by `wmlsearch stop`)" in stop.stdout
    status = cluster.run("wmlsearch", "status", "first", *of_laptop)
    assert status.returncode == 0
    assert "fetched from the head" in status.stdout
    assert state() == "interrupted"
    again = cluster.run("wmlsearch", "tune", "--resume", "first", *of_laptop, timeout_s=300)
    assert again.returncode == 0
    assert "first is resumed: " in again.stdout
    assert "trials run 1 at a time" in again.stdout
    assert again.stdout.count("trial-0000 completed") == 0, "each job has a log of its own"
    assert state() == "completed"
    assert len(list(run.glob("trials/*/metrics.jsonl"))) == 3
    for trial in run.glob("trials/*/metrics.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in trial.read_text().splitlines()]
        assert epochs == list(range(1, len(epochs) + 1)), "each epoch once"
    assert not list(run.glob("trials/*/*.pt"))
    assert (run / "final" / "paper-run0" / "best.pt").is_file()
    assert json.loads((run / "test.json").read_text())["opened_before"] == 0
    assert len((data / "sealed" / "seal.jsonl").read_text().splitlines()) == 1, (
        "the ledger on the laptop is updated too"
    )
    assert (run / "report" / "index.html").is_file()
    last = cluster.run("wmlsearch", "status", *of_laptop)
    assert "is up to date" in last.stdout


def test_mlflow_through_the_tunnel(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LAPTOP / "ui.log"
    laptop = cluster.start(log, "wmlsearch", "ui", "--cluster", cluster.file, "--port", UI_PORT)
    wait_for(lambda: f"http://127.0.0.1:{UI_PORT}" in log.read_text() or laptop.poll() is not None, 90, "no tunnel")
    print(log.read_text())
    client = MlflowClient(f"http://127.0.0.1:{UI_PORT}")
    with pytest.raises(MlflowException, match="You are not authenticated"):
        client.get_experiment_by_name("wmlsearch")
    credentials = configparser.ConfigParser(interpolation=None)
    credentials.read(cluster.hosts[HEAD].file("~/.mlflow/credentials"))
    for name, value in credentials["mlflow"].items():
        monkeypatch.setenv(name.upper(), value)
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    champion = json.loads((LAPTOP / "runs" / "first" / "test.json").read_text())["names"]["champion"]
    assert sorted(run.info.run_name or "" for run in runs) == sorted([
        "baseline (paper)", f"champion ({champion})", "first", "paper-seed2", f"{champion}-seed2",
        "paper-run0", f"{champion}-run0",
        *(f"trial-000{n}" for n in range(3)),
    ])  # fmt: skip
    assert {run.info.status for run in runs} == {"FINISHED"}
    search = next(run for run in runs if run.info.run_name == "first")
    assert [file.path for file in client.list_artifacts(search.info.run_id)] == ["report", "split_certificate.json"]
    assert client.get_model_version_by_alias("wml-unet", "champion").run_id in {run.info.run_id for run in runs}
    assert list((SHARED / "mlflow-artifacts").rglob("*.png"))
    laptop.send_signal(signal.SIGINT)
    assert laptop.wait(20) == 0


def test_tune_on_the_head_itself(cluster: Cluster) -> None:
    """The head's environment names Ray, the MLflow server and the storage, so no option is needed."""
    data = next(path for path in cluster.hosts[HEAD].file("~/wmlsearch-head/data").iterdir())
    output = cluster.exec(
        f"wmlsearch tune quick --data ~/wmlsearch-head/data/{data.name} --trials 1 --epochs 2 --workers-per-trial 2"
        " --no-baseline --name on-the-head --out ~/mine"
    )
    assert "trials run 1 at a time, each 2 workers with 1 CPU each" in output
    assert "forecast: about " in output, "two ranks on two hosts were timed"
    assert "on-the-head: completed, 1 of 1 trial" in output
    run = cluster.hosts[HEAD].file("~/mine/on-the-head/trials/0000")
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    assert [path.name for path in run.glob("*.pt")] == ["best.pt"], "the best weights are copied from the storage"
    kept = [path.name for path in (SHARED / "on-the-head" / "trials" / "0000").iterdir()]
    assert kept == ["best.pt"], "checkpoints are in the storage; the last state of a finished trial is deleted"


def test_ten_second_network_cut_is_survived(cluster: Cluster, data: Path) -> None:
    """The ranks wait for each other and continue. No process is lost, and no epoch is trained again.

    In the second trial: the first, the baseline configuration, stops early here.
    """
    log = LAPTOP / "third.log"
    laptop = cluster.start(log, *tune(cluster, data, "third", "--trials", 2, "--epochs", EPOCHS, *WHOLE, workers=3))
    lines = cluster.hosts[HEAD].file("~/wmlsearch-head/runs/third/trials/0001/metrics.jsonl")

    def epochs() -> list[dict[str, Any]]:
        return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []

    wait_for(lambda: len(epochs()) >= 3 or laptop.poll() is not None, 300, "no third epoch")
    assert laptop.poll() is None, log.read_text()
    before = epochs()
    cluster.hosts[WORKERS[1]].cut(10)
    print(f"cut after epoch {len(before)}; when the network was back, {len(epochs())} epochs were there")
    wait_for(lambda: laptop.poll() is not None, 300, "the trial has not ended")
    assert laptop.poll() == 0, log.read_text()
    trial = LAPTOP / "runs" / "third" / "trials" / "0001"
    after = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in after] == list(range(1, EPOCHS + 1)), "each epoch once"
    assert after[: len(before)] == before
    assert json.loads((trial / "status.json").read_text())["state"] == "completed"


def test_trial_continues_with_fewer_ranks_after_a_host_dies(cluster: Cluster, data: Path) -> None:
    log = LAPTOP / "second.log"
    words = tune(cluster, data, "second", "--trials", 2, "--epochs", EPOCHS, *WHOLE, workers=3)
    laptop = cluster.start(log, *words)
    lines = cluster.hosts[HEAD].file("~/wmlsearch-head/runs/second/trials/0001/metrics.jsonl")

    def epochs() -> list[dict[str, Any]]:
        return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []

    wait_for(lambda: len(epochs()) >= 3 or laptop.poll() is not None, 300, "no third epoch")
    print(log.read_text())
    assert laptop.poll() is None
    assert "the head already has the prepared data set" in log.read_text()

    def ranks() -> list[int]:
        return [sum(RANK in words for words in host.processes()) for host in cluster.hosts.values()]

    assert ranks() == [1, 1, 1], "three ranks, on three hosts"
    victim = WORKERS[0]
    assert not cluster.hosts[victim].file(LAPTOP).exists()
    before = epochs()
    cluster.hosts[victim].unplug()
    died = time.time()
    print(f"{victim} died after epoch {len(before)}")
    wait_for(lambda: len(epochs()) > len(before) or laptop.poll() is not None, 300, "the trial has not gone on")
    assert ranks()[::2] == [1, 1], "the same trial, with the same global batch size, on the two remaining hosts"
    wait_for(lambda: laptop.poll() is not None, 300, "the trial has not ended")
    print(f"ended {time.time() - died:.0f} s later\n{log.read_text()}")
    assert laptop.poll() == 0
    run = LAPTOP / "runs" / "second" / "trials" / "0001"
    after = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    assert [row["epoch"] for row in after] == list(range(1, EPOCHS + 1)), "each epoch once"
    assert after[: len(before)] == before, "earlier epochs are kept: training resumed from the checkpoint"


def test_user_errors_are_one_message(cluster: Cluster, data: Path) -> None:
    existing = cluster.run(*tune(cluster, data, "first"))
    assert existing.returncode == 2
    assert "overwritten" in existing.stdout
    unknown = cluster.run("wmlsearch", "status", "nobody", "--cluster", cluster.file)
    assert (
        unknown.stdout
        == f"wmlsearch: nobody: no search of this name on the head of {cluster.file} (it has: first, third, second)\n"
    )


def test_cluster_found_by_the_address_of_its_dashboard(
    cluster: Cluster, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel is the user's own, as that of `kubectl port-forward`; data and results go through the storage."""
    tunnel = subprocess.Popen(
        [
            *("ssh", "-N", "-i", LAPTOP / "key", "-o", "StrictHostKeyChecking=no"),
            *("-L", "8265:127.0.0.1:8265", f"root@{HEAD}"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        address, out = "http://127.0.0.1:8265", LAPTOP / "by-address"
        refused = cluster.run("wmlsearch", "status", "--cluster", address)
        assert refused.returncode == 2
        assert "the cluster wants a token; copy ~/.ray/auth_token" in refused.stdout
        token = cluster.hosts[HEAD].file("~/.ray/auth_token").read_text().strip()
        monkeypatch.setitem(ENVIRONMENT, "RAY_AUTH_TOKEN", token)
        words = tune(cluster, data, "fourth", "--trials", 2, "--epochs", 6, "--scheduler", "none", workers=1)
        words[words.index(cluster.file)] = address
        words[words.index(LAPTOP / "runs")] = out
        done = cluster.run(*words, timeout_s=300)
        assert done.returncode == 0
        assert "copying the prepared data set to the storage" in done.stdout
        assert "fetched from the storage into" in done.stdout
        assert "verdict" in done.stdout.lower()
        run = out / "fourth"
        assert json.loads((run / "status.json").read_text())["state"] == "completed"
        assert json.loads((run / "test.json").read_text())["opened_before"] >= 1, "for the first search of these data"
        assert (run / "report" / "index.html").is_file()
        of_search = [words for host in cluster.hosts.values() for words in host.processes() if "head_job" in words]
        assert not of_search, "no process of the search is left"
        last = cluster.run("wmlsearch", "status", "--cluster", address, "--storage", SHARED, "--out", out)
        assert "is up to date" in last.stdout
    finally:
        tunnel.terminate()
        tunnel.wait()


def test_ray_down(cluster: Cluster) -> None:
    assert cluster.run("ray", "down", "-y", cluster.file).returncode == 0
    assert not [words for words in cluster.hosts[HEAD].processes() if "ray::" in words or "gcs_server" in words]
    stopped = cluster.run("wmlsearch", "status", "first", "--cluster", cluster.file)
    assert stopped.returncode == 2
    assert "this cluster is not running" in stopped.stdout
    lost = LAPTOP / "after-ray-down"
    fetched = cluster.run("wmlsearch", "status", "first", "--cluster", cluster.file, "--storage", SHARED, "--out", lost)
    assert fetched.returncode == 0
    assert "this cluster is not running" in fetched.stdout
    assert "fetched from the storage into" in fetched.stdout
    before = LAPTOP / "runs" / "first"
    for name in ("status.json", "test.json", "trials/0002/metrics.jsonl"):
        assert (lost / "first" / name).read_bytes() == (before / name).read_bytes()
    assert (lost / "first" / "report" / "index.html").is_file()
