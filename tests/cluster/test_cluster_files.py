"""The cluster files, validated by Ray's code, and the AWS requests of cluster.yaml against moto's server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import REPOSITORY as ROOT
from ray.autoscaler import tags
from ray.autoscaler._private.providers import _NODE_PROVIDERS, _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from wmlsearch.cluster import head_mlflow

GOLDEN = Path(__file__).parent / "golden" / "aws_launch.json"
AWS, ON_PREM, KUBERAY = ROOT / "cluster.yaml", ROOT / "clusters" / "on-prem.yaml", ROOT / "clusters" / "kuberay.yaml"
PINNED = next(
    line.split("==")[1] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
)


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An EC2 client of moto's server on 127.0.0.1, which replaces AWS. HOME is a temporary folder for the key pair."""
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name in list(os.environ):
        if name.startswith(("AWS_", "HTTP", "http", "ALL_PROXY", "all_proxy")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    from ray.autoscaler._private.aws import utils

    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    iam = boto3.client("iam", "us-west-2")
    iam.create_instance_profile(InstanceProfileName="wmlsearch")
    yield boto3.client("ec2", "us-west-2")
    server.stop()
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


def bootstrapped(path: Path) -> dict[str, Any]:
    """Return the configuration that `ray up` makes from a cluster file before it launches a machine."""
    config = prepare_config(read(path))
    provider = _NODE_PROVIDERS[config["provider"]["type"]](config["provider"])
    config = provider.fillout_available_node_types_resources(config)
    validate_config(config)
    made: dict[str, Any] = provider.bootstrap_config(config)
    return made


def test_aws_launch_requests_match_the_golden_file(aws: Any) -> None:
    """Bootstrap (key pair, subnets, security group) and launch a head and two workers, and compare all requests."""
    config = bootstrapped(AWS)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    kinds = (tags.NODE_KIND_HEAD, "head", 1), (tags.NODE_KIND_WORKER, "gpu-spot", 2)
    try:
        for kind, node_type, count in kinds:
            labels = {
                tags.TAG_RAY_NODE_KIND: kind,
                tags.TAG_RAY_USER_NODE_TYPE: node_type,
                tags.TAG_RAY_NODE_NAME: f"ray-{kind}",
                tags.TAG_RAY_NODE_STATUS: tags.STATUS_UNINITIALIZED,
                tags.TAG_RAY_LAUNCH_CONFIG: "hash",
            }
            provider.create_node(dict(config["available_node_types"][node_type]["node_config"]), labels, count)
        machines = [machine for group in aws.describe_instances()["Reservations"] for machine in group["Instances"]]
        groups = aws.describe_security_groups(GroupNames=["ray-autoscaler-wmlsearch"])["SecurityGroups"]
    finally:
        provider.terminate_nodes(provider.non_terminated_nodes({}))
    launched = {
        "machines": sorted(
            f"{machine['InstanceType']} {machine.get('InstanceLifecycle', 'on demand')}" for machine in machines
        ),
        "open to the outside": [
            f"{rule['IpProtocol']} {rule['FromPort']}-{rule['ToPort']}"
            for rule in groups[0]["IpPermissions"]
            if rule["IpRanges"]
        ],
        "config": config,
    }
    text = json.dumps(launched, indent=1, sort_keys=True) + "\n"
    text = re.sub(r"(subnet|sg)-[0-9a-f]{17}", r"\1-ID", text).replace(os.environ["HOME"], "~")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), (
        "differs from the golden file; if it should: UPDATE_GOLDEN=1 and look at the diff"
    )


def test_on_prem_file_is_valid_and_uses_all_machines() -> None:
    config = bootstrapped(ON_PREM)
    workers = config["available_node_types"]["local.cluster.node"]
    assert (workers["min_workers"], workers["max_workers"]) == (2, 2)
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("path", [AWS, ON_PREM], ids=lambda path: path.name)
def test_file_mounts_exist(path: Path) -> None:
    """The mounted files are an installable source: everything that pyproject.toml refers to."""
    mounts = {key: place for key, place in read(path)["file_mounts"].items() if not place.startswith("~")}
    assert {key.removeprefix("~/wmlsearch-source/") for key in mounts} == set(mounts.values())
    assert all((ROOT / place).exists() for place in mounts.values())
    assert {"pyproject.toml", "constraints.txt", "wmlsearch", "search_spaces"} <= set(mounts.values())


def environment(path: Path, head: bool) -> dict[str, str]:
    """Return the environment variables that a cluster file sets on the head or a worker."""
    config = read(path)
    if path == AWS:
        words = config["docker"]["run_options"] + (config["docker"]["head_run_options"] if head else [])
        pairs = [word.removeprefix("--env ") for word in words if word.startswith("--env ")]
    else:
        commands = config["setup_commands"] + (config["head_setup_commands"] if head else [])
        pairs = re.findall(r"'export (\w+=[^']*)'", " ".join(commands))
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.parametrize("path", [AWS, ON_PREM], ids=lambda path: path.name)
def test_head_and_workers_require_the_token(path: Path) -> None:
    config = read(path)
    for head in (True, False):
        assert environment(path, head)["RAY_AUTH_MODE"] == "token"
    if path == AWS:  # copied from the laptop
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105 - a file's name
    else:  # made on the head, before Ray starts there
        assert "~/.ray/auth_token" in config["cluster_synced_files"]
        assert any("ray get-auth-token --generate" in command for command in config["head_setup_commands"])


@pytest.mark.parametrize("path", [AWS, ON_PREM], ids=lambda path: path.name)
def test_environment_on_the_head_names_ray_and_mlflow(path: Path) -> None:
    variables = environment(path, head=True)
    assert variables["RAY_ADDRESS"] == head_mlflow.DEFAULT_RAY
    assert variables["MLFLOW_TRACKING_URI"] == head_mlflow.DEFAULT_URI
    assert "WMLSEARCH_STORAGE" in environment(path, head=False)
    commands = read(path)["head_start_ray_commands"]
    assert "--port=6379" in commands[1]
    assert commands[-1] == "python -m wmlsearch.cluster.head_mlflow"


@pytest.mark.parametrize("path", [AWS, ON_PREM], ids=lambda path: path.name)
def test_dashboards_listen_on_the_head_only(path: Path) -> None:
    assert "--dashboard-host=127.0.0.1" in read(path)["head_start_ray_commands"][1]
    assert "0.0.0.0" not in re.sub(r"#.*", "", path.read_text())  # noqa: S104 - asserts its absence


def test_all_cluster_files_pin_the_tested_ray() -> None:
    assert metadata.version("ray") == PINNED
    docker = read(AWS)["docker"]
    assert docker["head_image"].startswith(f"rayproject/ray:{PINNED}-py311")
    assert docker["worker_image"] == f"rayproject/ray:{PINNED}-py311-gpu"
    dockerfile = (ROOT / "clusters" / "Dockerfile").read_text()
    assert f"\nFROM rayproject/ray:{PINNED}-py311-gpu\n" in dockerfile
    for word in re.findall(r"^COPY --chown=\S+ (.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / place).exists() for place in word.split())


def test_kuberay_mlflow_requires_the_operators_token() -> None:
    _, cluster = yaml.safe_load_all(KUBERAY.read_text())
    ray, mlflow = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    token = {"secretKeyRef": {"name": cluster["metadata"]["name"], "key": "auth_token"}}
    client, server = ({item.pop("name"): item for item in container["env"]} for container in (ray, mlflow))
    assert server["MLFLOW_AUTH_ADMIN_USERNAME"] == client["MLFLOW_TRACKING_USERNAME"] == {"value": head_mlflow.USER}
    assert server["MLFLOW_AUTH_ADMIN_PASSWORD"] == client["MLFLOW_TRACKING_PASSWORD"] == {"valueFrom": token}
    assert mlflow["command"][:4] == ["mlflow", "server", "--host", "127.0.0.1"]
    assert {"--app-name=basic-auth", f"--allowed-hosts={head_mlflow.HOSTS}"} <= set(mlflow["args"])


def test_kuberay_manifest() -> None:
    claim, cluster = yaml.safe_load_all(KUBERAY.read_text())
    assert (claim["kind"], cluster["apiVersion"], cluster["kind"]) == (
        "PersistentVolumeClaim",
        "ray.io/v1",
        "RayCluster",
    )
    spec = cluster["spec"]
    assert spec["rayVersion"] == PINNED
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    names = set()
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the schema requires strings
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            assert container["name"] not in names
            names.add(container["name"])
            assert container["image"] == head["template"]["spec"]["containers"][0]["image"]
            assert set(container["resources"]["requests"]) == set(container["resources"]["limits"])
            assert all(isinstance(item["value"], str) for item in container.get("env", ()) if "value" in item)
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                volume["name"] for volume in pod["volumes"]
            }
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        ray = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
        assert ray["WMLSEARCH_STORAGE"].startswith(pod["containers"][0]["volumeMounts"][0]["mountPath"])
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    variables = {item["name"]: item.get("value") for item in head["template"]["spec"]["containers"][0]["env"]}
    assert variables["RAY_ADDRESS"] == head_mlflow.DEFAULT_RAY
    assert variables["MLFLOW_TRACKING_URI"] == head_mlflow.DEFAULT_URI
