"""The machines that Ray's autoscaler may add to the connected cluster: what a search may grow to.

Ray has no public way to ask. A cluster manager may report it to Ray's head. KubeRay's autoscaler reads it from the
RayCluster of Kubernetes. Any other autoscaler reads a file, which the command line of its process on the head names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray

from wmlsearch.cluster.ray_patches import (
    ON_HEAD,
    autoscaler_file_of_head,
    kuberay_config_of_head,
    reported_node_groups,
)

UNLIMITED = 4096  # machines of a group without a limit
HEAD_TIMEOUT_S = 60.0  # for an answer of the head


class NodeGroup(NamedTuple):
    """A kind of machine that the autoscaler may add."""

    resources: Mapping[str, float]  # of each, as Ray names them
    max_count: int  # of them, with those that run


def machines_that_may_come(running: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Return the resources of each machine that the autoscaler may still add; [] without an autoscaler.

    Those with GPUs come first: where not all may run at once, trials ask for them.

    Args:
        running: The resources of each machine that runs, without the head.
    """
    groups, limit = _groups()
    groups = sorted(groups, key=lambda group: -group.resources.get("GPU", 0))
    remaining = [group.max_count for group in groups]
    for machine in running:  # of the first group of such machines that has one left
        for index, group in enumerate(groups):
            if remaining[index] and all(
                machine.get(name, 0) == group.resources.get(name, 0) for name in ("CPU", "GPU")
            ):
                remaining[index] -= 1
                break
    machines = [group.resources for group, count in zip(groups, remaining, strict=True) for _ in range(count)]
    return machines[: max(0, limit - len(running))]


def _groups() -> tuple[list[NodeGroup], int]:
    """Return the groups of machines of the cluster, and how many machines it may have beside the head."""
    if reported := reported_node_groups():
        groups = [NodeGroup(resources, UNLIMITED if count < 0 else count) for resources, count in reported]
        return groups, sum(group.max_count for group in groups)
    return groups_of_config(_config())


def _config() -> Mapping[str, Any] | None:
    """Return the configuration of the autoscaler on the head, or None if there is none that adds machines."""
    own_node = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == own_node and ON_HEAD.keys() <= node["Resources"].keys() for node in ray.nodes()):
        return _config_of_head(ray.get_runtime_context().gcs_address)
    task: Any = ray.remote(num_cpus=0, resources=ON_HEAD)(_config_of_head)
    answer = task.remote(ray.get_runtime_context().gcs_address)
    try:
        config: Mapping[str, Any] | None = ray.get(answer, timeout=HEAD_TIMEOUT_S)
    except ray.exceptions.RayError:  # the head runs other code, or does not answer
        ray.cancel(answer)
        return None
    return config


def _config_of_head(address: str) -> Mapping[str, Any] | None:
    return kuberay_config_of_head() or autoscaler_file_of_head(address)


def groups_of_config(config: Mapping[str, Any] | None) -> tuple[list[NodeGroup], int]:
    """Return the groups of machines in an autoscaler's configuration, and their limit all together.

    A configuration of provider `local` names machines that cannot be added: they run, or they do not.
    """
    if not config or (config.get("provider") or {}).get("type") == "local":
        return [], 0
    types, head = config.get("available_node_types") or {}, config.get("head_node_type")
    limit = int(config.get("max_workers") or 0)
    return [
        NodeGroup(kind.get("resources") or {}, int(kind.get("max_workers", limit)))
        for name, kind in types.items()
        if name != head
    ], limit
