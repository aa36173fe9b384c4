"""Contracts of Ray's private names that cluster/ray_patches.py uses: a test fails when Ray changes one of them."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.dashboard.modules.job.job_manager import JobManager
from ray.dashboard.modules.job.job_supervisor import JobSupervisor

from wmlsearch.cluster import ray_patches
from wmlsearch.cluster.connect import ray_session


def test_ray_module_accepts_the_commands_that_we_run() -> None:
    for verb, option in (("dashboard", "--remote-port"), ("rsync-up", "--log-style"), ("rsync-down", "--log-color")):
        done = subprocess.run([*ray_patches.RAY_COMMAND, verb, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert option in done.stdout


def test_embedded_ray_accepts_a_temporary_folder() -> None:
    assert "_temp_dir" in inspect.signature(ray.init).parameters or "kwargs" in inspect.signature(ray.init).parameters


def test_private_names_of_an_embedded_ray(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ray._private.worker
    original = worker.print_to_stdstream
    assert len(inspect.signature(original).parameters) >= 1
    with ray_session(None):
        assert worker.print_to_stdstream is not original
        with caplog.at_level(logging.DEBUG, "ray"):
            worker.print_to_stdstream({"lines": ["a raylet's line"]})
        assert "a raylet's line" in caplog.text
        assert ray_patches.ON_HEAD.keys() <= ray.cluster_resources().keys()
        assert ray_patches.dead_servers() == []
        processes = worker._global_node.all_processes
        assert {"gcs_server", "raylet"} <= processes.keys()
        ray.util.placement_group([{"CPU": 4096}], name="one-a")
        ray.util.placement_group([{"CPU": 4096}], name="two-b")
        placed = ray.util.placement_group([{"memory": 1000}, {"memory": 1000}], name="three-c")
        ray.get(placed.ready())
        ray_patches.release_placement_groups(["one-", "none"])
        states = {group["name"]: group["state"] for group in ray.util.placement_group_table().values()}
        assert states == {"one-a": "REMOVED", "two-b": "PENDING", "three-c": "CREATED"}
        assert ray_patches.placed_groups() == {"three-c": 2}
        ray_patches.release_placement_groups(["three-"])

        class Named:  # here, so that it is sent by value: its process does not find this file
            def identity(self) -> str:
                return str(ray.get_runtime_context().get_actor_id())

        (node,) = ray.nodes()
        assert ray_patches.free_resources()[node["NodeID"]]["CPU"] == node["Resources"]["CPU"]
        actor = ray.remote(num_cpus=0)(Named).remote()
        assert ray_patches.actor_id(actor) == ray.get(actor.identity.remote())
        with monkeypatch.context() as patch:
            patch.setattr(processes["raylet"][0].process, "poll", lambda: 1)
            assert ray_patches.dead_servers() == ["raylet"]
    assert worker.print_to_stdstream is original
    assert ray_patches.dead_servers() == []


def test_what_ray_does_with_a_job(tmp_path: Path) -> None:
    """Its own lines in the log of the job, and the time that a job has to end."""
    source = inspect.getsource(inspect.getmodule(JobSupervisor))
    assert 'f"Running entrypoint for job {self._job_id}: {self._entrypoint}\\n"' in source
    assert ray_patches.is_line_of_ray("Running entrypoint for job one: python -c 1")
    log = tmp_path / "job.log"
    manager = SimpleNamespace(_log_client=SimpleNamespace(get_log_file_path=lambda _: log))
    # critical: another test may have raised the level of Ray's loggers
    JobManager._get_job_driver_logger(manager, "one").critical("Runtime env is setting up.")
    assert ray_patches.is_line_of_ray(log.read_text().replace(Path(__file__).name, "job_manager.py"))
    assert not ray_patches.is_line_of_ray("Running 3 trials")
    assert f'"{ray_patches.JOB_STOP_VARIABLE}"' in source


def test_ray_is_imported_only_where_it_is_used() -> None:
    """What runs on the head starts quickly, and a cluster file that cannot be used is refused at once."""
    code = "import sys, wmlsearch.cluster.remote, wmlsearch.cluster.head_mlflow; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
