"""Which machines Ray's autoscaler may add, from each place that says it; and a search that begins without any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests
import yaml
from paths import REPOSITORY
from processes import wait_for
from ray._private.state import state
from ray.autoscaler._private.kuberay import node_provider
from ray.core.generated import autoscaler_pb2

from wmlsearch.cluster import autoscaler, ray_patches
from wmlsearch.cluster.autoscaler import NodeGroup, groups_of_config, machines_that_may_come
from wmlsearch.cluster.ray_patches import autoscaler_file_of_head, kuberay_config_of_head, reported_node_groups

GPU = {"CPU": 4, "GPU": 1}
KINDS = {
    "head": {"resources": {"CPU": 0}},
    "gpu": {"resources": GPU, "max_workers": 8},
    "cpu": {"resources": {"CPU": 2}},
}
CONFIG = {"provider": {"type": "aws"}, "max_workers": 9, "head_node_type": "head", "available_node_types": KINDS}


def test_the_groups_of_a_configuration() -> None:
    assert groups_of_config(CONFIG) == ([NodeGroup(GPU, 8), NodeGroup({"CPU": 2}, 9)], 9)
    assert groups_of_config({**CONFIG, "provider": {"type": "local"}}) == ([], 0), "they run, or they do not"
    assert groups_of_config(None) == ([], 0)
    assert groups_of_config({"available_node_types": None}) == ([], 0)


def test_machines_that_run_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaler, "_groups", lambda: ([NodeGroup(GPU, 2), NodeGroup({"CPU": 2}, 3)], 4))
    cpu = {"CPU": 2}
    assert machines_that_may_come([]) == [GPU, GPU, cpu, cpu]
    assert machines_that_may_come([{**GPU, "memory": 1e9}]) == [GPU, cpu, cpu]
    assert machines_that_may_come([cpu, cpu, cpu]) == [GPU], "the limit of all together"
    monkeypatch.setattr(autoscaler, "_groups", lambda: ([NodeGroup({"CPU": 2, "GPU": 0}, 3), NodeGroup(GPU, 2)], 4))
    assert machines_that_may_come([cpu]) == [GPU, GPU, {"CPU": 2, "GPU": 0}], "machines with GPUs come first"
    monkeypatch.setattr(autoscaler, "_groups", lambda: ([NodeGroup(GPU, 2), NodeGroup({"CPU": 2}, 3)], 4))
    assert machines_that_may_come([{"CPU": 16}]) == [GPU, GPU, cpu], "a machine that somebody else has added"


def test_groups_that_a_manager_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    config = autoscaler_pb2.ClusterConfig()
    config.node_group_configs.add(resources={"CPU": 8, "GPU": 2}, max_count=3)
    config.node_group_configs.add(resources={"CPU": 8}, max_count=-1)
    monkeypatch.setattr(state, "get_cluster_config", lambda: config)
    assert reported_node_groups() == [({"CPU": 8, "GPU": 2}, 3), ({"CPU": 8}, -1)]
    assert machines_that_may_come([])[:4] == [{"CPU": 8, "GPU": 2}] * 3 + [{"CPU": 8}]
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    assert reported_node_groups() == []


def test_the_file_of_the_autoscaler_is_named_by_its_command_line(tmp_path: Path) -> None:
    file = tmp_path / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    program = tmp_path / ray_patches.MONITORS[1]
    program.parent.mkdir(parents=True)
    program.write_text("import sys; sys.stdin.read()")
    words = [sys.executable, "-u", program, "--gcs-address=10.0.0.1:26379", f"--autoscaling-config={file}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        wait_for(lambda: autoscaler_file_of_head("127.0.0.1:26379") == CONFIG, 60)
        assert autoscaler_file_of_head("10.0.0.1:26380") is None, "that of another Ray"
        file.write_text("- no: [configuration")
        assert autoscaler_file_of_head("10.0.0.1:26379") is None
        process.communicate()
    assert autoscaler_file_of_head("10.0.0.1:26379") is None


def test_ray_starts_its_autoscaler_with_these_names() -> None:
    folder = Path(ray.__file__).parents[1]
    assert all((folder / program).is_file() for program in ray_patches.MONITORS)
    for program in ray_patches.MONITORS:
        text = (folder / program).read_text()
        assert "--gcs-address" in text
        assert "--autoscaling-config" in text
    assert '"--autoscaling-config=" + ' in (folder / "ray/_private/services.py").read_text()


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The head's pod of clusters/kuberay.yaml, with a Kubernetes that answers."""
    documents = yaml.safe_load_all((REPOSITORY / "clusters" / "kuberay.yaml").read_text())
    cluster = next(document for document in documents if document["kind"] == "RayCluster")
    cluster["metadata"]["namespace"] = "lab"
    asked: list[str] = []

    class Kubernetes:
        def __init__(self, namespace: str) -> None:
            asked.append(namespace)

        def get(self, path: str) -> Any:
            asked.append(path)
            if asked[0] == "none":
                raise requests.HTTPError("403")
            return cluster

    monkeypatch.setattr(node_provider, "KubernetesHttpApiClient", Kubernetes)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "wmlsearch")
    read, exists = Path.read_text, Path.exists
    account = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    made = SimpleNamespace(cluster=cluster, asked=asked, namespace="lab")
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == account or exists(self))
    monkeypatch.setattr(Path, "read_text", lambda self: f"{made.namespace}\n" if str(self) == account else read(self))
    return made


def test_kuberay_says_it_in_its_resource(pod: Any) -> None:
    groups, limit = groups_of_config(kuberay_config_of_head())
    assert pod.asked == ["lab", "rayclusters/wmlsearch"]
    assert limit == 8
    ((resources, count),) = groups
    assert count == 8
    assert {name: resources[name] for name in ("CPU", "GPU")} == GPU
    assert resources["memory"] > 2**30, "the processes beside the ranks wait for such a machine"
    pod.cluster["spec"]["enableInTreeAutoscaling"] = False
    assert kuberay_config_of_head() is None


def test_where_kubernetes_does_not_answer_no_machine_comes(pod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.namespace = "none"
    assert kuberay_config_of_head() is None
    monkeypatch.delenv("RAY_CLUSTER_NAME")
    assert kuberay_config_of_head() is None
