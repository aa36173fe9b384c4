"""A search on a Ray whose autoscaler (version 2, as of `ray up` and KubeRay) begins with a head without CPUs.

Machines are processes of this one, by the provider that Ray's own tests use. Run it inside a PID namespace, whose end
ends them all: python autoscaling.py FOLDER DATA WORDS...  It prints what it saw as JSON.

FOLDER gets the files of the search, DATA is a prepared data set, and WORDS follow `wmlsearch tune`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray
import yaml

HEAD_ID = "f" * 51 + "00000"  # as the provider expects it
MAX_MACHINES = 2
# In a process of its own: Ray reads whether there is a token when it is imported.
GROUPS = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(*(group["state"] for group in ray.util.placement_group_table().values()))
"""
SPACE = {
    "base_channels": 8,
    "depth": 2,
    "batch_size": 3,
    "loss": "bce_dice",
    "norm_momentum": 0.1,
    "early_stop_patience": 100,
    "learning_rate": {"low": 4e-3, "high": 6e-3, "log": True},
}


def config(address: str) -> dict[str, Any]:
    """Return the configuration of an autoscaler that may add two machines with a CPU each to the Ray at `address`."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": address,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "foreground_node_launch": True,
        "worker_liveness_check": False,
    }
    lists = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "autoscaling",
        "provider": provider,
        "max_workers": MAX_MACHINES,
        "idle_timeout_minutes": 0.2,  # longer than a worker takes to start
        "upscaling_speed": 1,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MAX_MACHINES},
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in lists},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


def machines() -> int:
    """Return how many machines run beside the head."""
    raylets = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            raylets += file.read_bytes().partition(b"\0")[0].endswith(b"raylet/raylet")
        except OSError:
            continue
    return raylets - 1


def start_head(folder: Path) -> str:
    """Start the head with its autoscaler, and return its address."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config(address)))
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=0"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000", f"--autoscaling-config={file}"]
    words += [f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"]
    of_head = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    subprocess.run(words, check=True, env={**os.environ, **of_head}, stdout=subprocess.DEVNULL)
    return address


def main(folder: Path, data: Path, words: list[str]) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "e" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    address = start_head(folder)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    tune = [sys.executable, "-m", "wmlsearch", "tune", str(folder / "space.yaml"), "--ray-address", address]
    tune += ["--data", str(data), "--out", str(folder / "runs"), "--storage", str(folder / "storage"), "--name", "s"]
    began_with, most = machines(), 0
    with (folder / "log.txt").open("w") as log:
        search = subprocess.Popen([*tune, *words], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    while search.poll() is None:
        most = max(most, machines())
        time.sleep(0.2)  # between two looks, until the search ends
    until = time.monotonic() + 60
    while machines() and time.monotonic() < until:
        time.sleep(0.2)  # between two looks, until the idle machines are stopped
    words = [sys.executable, "-c", GROUPS, address]
    groups = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    seen = {"status": search.returncode, "began_with": began_with, "most": most, "left": machines(), "groups": groups}
    print(json.dumps({**seen, "log": (folder / "log.txt").read_text()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
