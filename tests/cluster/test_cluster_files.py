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
from jsonschema import Draft202012Validator
from paths import REPOSITORY as ROOT
from ray.autoscaler import tags
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.providers import _NODE_PROVIDERS, _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from wmlsearch.cluster import head_mlflow

GOLDEN = Path(__file__).parent / "golden" / "aws_launch.json"
SCHEMAS = Path(__file__).parent / "schemas" / "kubernetes.yaml"
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
    assert variables["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{head_mlflow.DEFAULT_PORT}"
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


# ---------------------------------------------------------------------------------------------------------- Kubernetes


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong with an object of Kubernetes, by the schema of its kind."""
    schemas = yaml.safe_load(SCHEMAS.read_text())
    schema = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": schemas["$defs"]}
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(manifest)]


def kuberay() -> dict[str, dict[str, Any]]:
    """Return the objects of the manifest by their name, the RayCluster's as "cluster"."""
    objects = list(yaml.safe_load_all(KUBERAY.read_text()))
    named = {"cluster" if one["kind"] == "RayCluster" else one["metadata"]["name"]: one for one in objects}
    assert len(named) == len(objects)
    return named


@pytest.mark.parametrize("name", ["wmlsearch", "wmlsearch-mlflow", "cluster"])
def test_kuberay_manifest_has_the_form_of_the_schemas(name: str) -> None:
    assert schema_errors(kuberay()[name]) == []


@pytest.mark.parametrize(
    ("name", "path", "value", "error"),
    [
        ("wmlsearch", "spec/accessModes", ["ReadWriteTwice"], "'ReadWriteTwice' is not one of"),
        ("wmlsearch", "spec/resources/requests/storage", "100GiB", "'100GiB' is not valid"),
        ("wmlsearch", "spec/storageclassname", "nfs", "'storageclassname' was unexpected"),
        ("cluster", "spec/rayVersion", 2.6, "2.6 is not of type 'string'"),
        ("cluster", "spec/headGroupSpecs", {}, "'headGroupSpecs' was unexpected"),
        ("cluster", "spec/authOptions/mode", "password", "'password' is not one of"),
        ("cluster", "spec/headGroupSpec/rayStartParams/num-cpus", 0, "0 is not of type 'string'"),
        ("cluster", "spec/headGroupSpec/template/spec/containers", [], "[] should be non-empty"),
        ("cluster", "spec/headGroupSpec/template/spec/containers/0/environment", [], "'environment' was unexpected"),
        ("cluster", "spec/headGroupSpec/template/spec/containers/0/env/0/value", 6379, "6379 is not of type 'string'"),
        ("cluster", "spec/headGroupSpec/template/spec/containers/0/restartPolicy", "Always", "was unexpected"),
        ("cluster", "spec/headGroupSpec/template/spec/volumes/0/nfs", {}, "'nfs' was unexpected"),
        ("cluster", "spec/headGroupSpec/template/spec/restartPolicy", "Always", "'Never' was expected"),
        ("cluster", "spec/workerGroupSpecs/0/maxReplicas", "8", "'8' is not of type 'integer'"),
        ("cluster", "spec/workerGroupSpecs/0/minReplica", 0, "'minReplica' was unexpected"),
        ("cluster", "spec/workerGroupSpecs/0/groupName", None, "None is not of type 'string'"),
    ],
)
def test_the_schemas_refuse_what_is_wrong(name: str, path: str, value: object, error: str) -> None:
    manifest = kuberay()[name]
    *parents, last = path.split("/")
    place: Any = manifest
    for step in parents:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = value
    assert any(error in message for message in schema_errors(manifest)), schema_errors(manifest)


def test_kuberay_autoscaler_adds_workers_from_zero() -> None:
    """Ray's own code reads from the manifest what may come: GPU machines for trials, and nothing on the head."""
    cluster = kuberay()["cluster"]
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    config = _derive_autoscaling_config_from_ray_cr({**cluster, "metadata": {"name": "wmlsearch", "namespace": "lab"}})
    head = config["available_node_types"].pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0), head["max_workers"]) == (0, 0, 0)
    assert {
        name: (group["min_workers"], group["max_workers"]) for name, group in config["available_node_types"].items()
    } == {"gpu": (0, 8)}
    assert config["available_node_types"]["gpu"]["resources"] == {"CPU": 4, "GPU": 1, "memory": 16 * 2**30}
    assert config["max_workers"] == 8
    assert all(group["replicas"] == 0 for group in cluster["spec"]["workerGroupSpecs"])
    # The head reads the RayCluster with the service account that the operator makes for it.
    assert "serviceAccountName" not in cluster["spec"]["headGroupSpec"]["template"]["spec"]


def test_kuberay_mlflow_requires_the_operators_token() -> None:
    cluster = kuberay()["cluster"]
    pod = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    (ray,), (mlflow,) = pod["containers"], pod["initContainers"]
    token = {"secretKeyRef": {"name": cluster["metadata"]["name"], "key": "auth_token"}}
    client, server = ({item.pop("name"): item for item in container["env"]} for container in (ray, mlflow))
    assert server["MLFLOW_AUTH_ADMIN_USERNAME"] == client["MLFLOW_TRACKING_USERNAME"] == {"value": head_mlflow.USER}
    assert server["MLFLOW_AUTH_ADMIN_PASSWORD"] == client["MLFLOW_TRACKING_PASSWORD"] == {"valueFrom": token}
    assert mlflow["command"][:4] == ["mlflow", "server", "--host", "127.0.0.1"]
    assert {"--app-name=basic-auth", f"--allowed-hosts={head_mlflow.HOSTS}"} <= set(mlflow["args"])


def test_kuberay_mlflow_has_a_database_of_one_writer() -> None:
    """SQLite needs locks, which network file systems do not keep."""
    objects = kuberay()
    spec = objects["cluster"]["spec"]
    pod = spec["headGroupSpec"]["template"]["spec"]
    (mlflow,) = pod["initContainers"]
    assert mlflow["restartPolicy"] == "Always"  # KubeRay starts the containers of this pod once
    (uri,) = (word for word in mlflow["args"] if word.startswith("--backend-store-uri=sqlite:////"))
    folder = Path("/", uri.split("////")[1]).parent
    (volume,) = (mount["name"] for mount in mlflow["volumeMounts"] if mount["mountPath"] == str(folder))
    (claim,) = (one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if one["name"] == volume)
    assert objects[claim]["spec"]["accessModes"] == ["ReadWriteOnce"]
    for group in spec["workerGroupSpecs"]:
        assert claim not in json.dumps(group)


def test_kuberay_manifest_fits_together() -> None:
    objects = kuberay()
    cluster = objects.pop("cluster")
    spec = cluster["spec"]
    assert spec["rayVersion"] == PINNED
    assert spec["authOptions"] == {"mode": "token"}
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    images = set()
    for group in (head, *workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["fsGroup"] == 100  # the group `users` of the image's user `ray`
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            images.add(container["image"])
            assert set(container["resources"]["requests"]) == set(container["resources"]["limits"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= {one["name"] for one in pod["volumes"]}
        assert {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"]} <= set(objects)
        ray = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
        assert ray["WMLSEARCH_STORAGE"].startswith(pod["containers"][0]["volumeMounts"][0]["mountPath"])
    assert len(images) == 1
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    variables = {item["name"]: item.get("value") for item in head["template"]["spec"]["containers"][0]["env"]}
    assert variables["RAY_ADDRESS"] == head_mlflow.DEFAULT_RAY
    assert variables["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{head_mlflow.DEFAULT_PORT}"


def test_the_source_in_the_image_is_where_ray_up_puts_it() -> None:
    """KubeRay starts Ray as the image's user `ray`, whose home is /home/ray."""
    dockerfile = (ROOT / "clusters" / "Dockerfile").read_text()
    copied = {}
    for words, target in re.findall(r"^COPY --chown=ray:users (.*) (\S+)$", dockerfile, re.MULTILINE):
        for word in words.split():
            copied["~" + (target + word if target.endswith("/") else target).removeprefix("/home/ray")] = word
    mounts = {key: place for key, place in read(AWS)["file_mounts"].items() if not place.startswith("~")}
    assert copied == mounts
    assert not re.search(r"^(USER|ENTRYPOINT|CMD)\b", dockerfile, re.MULTILINE)
