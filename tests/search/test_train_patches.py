"""What `train_patches` relies on in Ray Train: a new version that changes it fails here."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_config

from wmlsearch.search import train_patches
from wmlsearch.search.train_patches import FailureConfig, FileRendezvousConfig


def test_the_private_functions_take_what_they_are_given() -> None:
    group = inspect.signature(torch_config._setup_torch_process_group)
    assert {"backend", "world_rank", "world_size", "init_method", "timeout_s"} <= set(group.parameters)
    assert list(inspect.signature(torch_config._set_torch_distributed_env_vars).parameters) == []
    assert list(inspect.signature(torch_config._TorchBackend.on_start).parameters)[1:] == [
        "worker_group",
        "backend_config",
    ]
    assert "init_method=init_method" in inspect.getsource(torch_config._setup_torch_process_group)


def test_the_configuration_is_trains_own_with_a_folder() -> None:
    made = FileRendezvousConfig("gloo", folder="/tmp/x")  # noqa: S108 - nothing is written
    assert isinstance(made, TorchConfig)
    assert (made.backend, made.folder) == ("gloo", "/tmp/x")  # noqa: S108
    assert {field.name for field in dataclasses.fields(TorchConfig)} >= {"backend", "timeout_s"}
    assert issubclass(made.backend_cls, torch_config._TorchBackend)


def test_all_ranks_get_the_same_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Group:
        def __len__(self) -> int:
            return 3

        def execute(self, function: Any) -> None:
            assert function is torch_config._set_torch_distributed_env_vars

        def execute_single_async(self, rank: int, function: Any, **arguments: Any) -> int:
            assert function is torch_config._setup_torch_process_group
            calls.append({"rank": rank, **arguments})
            return rank

    monkeypatch.setattr(train_patches, "ray", SimpleNamespace(get=lambda refs: refs))
    made = FileRendezvousConfig("gloo", folder=str(tmp_path))
    for _ in range(2):
        made.backend_cls().on_start(Group(), made)
    assert [(call["rank"], call["world_rank"], call["world_size"]) for call in calls] == [
        (rank, rank, 3) for rank in (0, 1, 2)
    ] * 2
    files = [call["init_method"] for call in calls]
    assert len(set(files[:3])) == len(set(files[3:])) == 1
    assert files[0] != files[3]
    assert all(file.startswith(tmp_path.as_uri()) for file in files)


def test_failures_of_the_controller_have_a_limit() -> None:
    made = FailureConfig(max_failures=5, controller_failure_limit=2)
    assert (made.max_failures, made.controller_failure_limit) == (5, 2)
