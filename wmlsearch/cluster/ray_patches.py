"""Private names of Ray core, and what depends on Ray's internals. No other module outside search/ uses any.

tests/cluster/test_ray_patches.py fails when one of them changes. Ray is imported by the functions, since the commands
that only drive a cluster do without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

# The module behind the command `ray`, run by this interpreter: a `ray` on the PATH may be another installation.
RAY_COMMAND = (sys.executable, "-m", "ray.scripts.scripts")

# A resource that only the head node has. Drivers of worker groups stay on the head, which outlives other nodes.
ON_HEAD = {"node:__internal_head__": 0.0001}

# The programs of the older and the newer autoscaler.
MONITORS = ("ray/autoscaler/_private/monitor.py", "ray/autoscaler/v2/monitor.py")

# The lines that Ray itself writes into the log of a job. The last one may come after the first line of the job.
_LINE_OF_RAY = re.compile(r"Running entrypoint for job |\d{4}-\d\d-\d\d [\d:,]+\t[A-Z]+ job_manager\.py:\d+ -- ")

# Seconds that Ray waits for the clean end of a job that it stops, in the environment of the job; its default is 3.
JOB_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"

# What Ray's client writes to the error stream when the cluster rejects its token. It raises no exception then.
AUTHENTICATION_REFUSED = "InvalidAuthToken"


def is_line_of_ray(line: str) -> bool:
    """Return whether Ray itself wrote this line of a job's log."""
    return _LINE_OF_RAY.match(line) is not None


@contextlib.contextmanager
def quiet_raylets() -> Iterator[None]:
    """Send to the log what raylets and Ray's other servers print: Ray writes it to stdout despite `log_to_driver`.

    Run folders tell what became of a training that lost its process; the watchdog tells what waits for resources.
    """
    import ray

    worker: Any = ray._private.worker
    original = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, *_, **__: logging.getLogger("ray").debug("%s", data)
    try:
        yield
    finally:
        worker.print_to_stdstream = original


def dead_servers() -> list[str]:
    """Return those of `gcs_server` and `raylet` that have died, of the embedded Ray that this process started.

    Ray has no public way to ask: calls to a dead GCS block for a minute, then end the process.
    """
    import ray

    node: Any = ray._private.worker._global_node  # None in a process that has only connected to a cluster
    if node is None or not ray.is_initialized():
        return []
    dead = {name for name, _ in node.dead_processes()}
    return [name for name in ("gcs_server", "raylet") if name in dead]


def free_resources() -> dict[str, dict[str, float]]:
    """Return the resources of each node that nobody has reserved, by the node's id. Ray publishes only their sum."""
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def actor_id(actor: Any) -> str:
    """Return the id of an actor, as `ray.get_runtime_context().get_actor_id()` returns it in the actor itself."""
    identity: str = actor._actor_id.hex()
    return identity


def release_placement_groups(prefixes: Collection[str]) -> None:
    """Remove the placement groups whose names begin with one of the prefixes.

    Ray Train keeps no handle of its groups; a group whose controller was killed is found by its name only.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and group["name"].startswith(tuple(prefixes)):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))


def placed_groups() -> dict[str, int]:
    """Return the number of bundles of each placement group that has its resources, by its name."""
    from ray.util.placement_group import placement_group_table

    groups = placement_group_table().values()
    return {group["name"]: len(group["bundles"]) for group in groups if group["state"] == "CREATED"}


def reported_node_groups() -> list[tuple[dict[str, float], int]]:
    """Return resources and largest number (-1: no limit) of each group of machines that a manager reports to Ray."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return [(dict(group.resources), group.max_count) for group in config.node_group_configs] if config else []


def kuberay_config_of_head() -> dict[str, Any] | None:
    """Return KubeRay's configuration of the autoscaler of the pod that this process runs in.

    None outside of a RayCluster with an autoscaler, and where Kubernetes does not answer: only the head's pod may ask.
    """
    cluster = os.environ.get("RAY_CLUSTER_NAME")
    namespace = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if not cluster or not namespace.exists():
        return None
    import requests
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        resource = KubernetesHttpApiClient(namespace.read_text().strip()).get(f"rayclusters/{cluster}")
    except (requests.RequestException, OSError) as error:
        logging.getLogger("ray").debug("RayCluster %s: %s", cluster, error)
        return None
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return config


def autoscaler_file_of_head(address: str) -> dict[str, Any] | None:
    """Return the configuration file of the autoscaler of the Ray at `address` ("HOST:PORT"), whose head this is.

    The command line of its process, Ray's monitor, names the file. None without one, or if it cannot be read. Only the
    ports are compared: a machine has several addresses.
    """
    port = address.rpartition(":")[2]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().decode(errors="replace").split("\0")
            options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
            is_monitor = any(word.endswith(MONITORS) for word in words[:4])
            same_port = options.get("--gcs-address", "").rpartition(":")[2] == port
            if is_monitor and same_port and "--autoscaling-config" in options:
                return _read_yaml(Path(options["--autoscaling-config"]).expanduser())
    return None


def _read_yaml(path: Path) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return None
    return config if isinstance(config, dict) else None
