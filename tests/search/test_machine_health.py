"""Which errors are the machine's, what becomes of a machine that fails again, and what a session does about it."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.files import StorageError
from wmlsearch.search import machine_health, trial_worker
from wmlsearch.search.machine_health import (
    MachineError,
    MachineFailures,
    as_machine_error,
    check_gpu,
    is_gpu_error,
    product_is_right,
)
from wmlsearch.search.memory_kills import is_death
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.recorder import describe_failure
from wmlsearch.search.trial_worker import TrainingSession

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported asynchronously"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker on the machine 10.0.0.7."""
    context = SimpleNamespace(get_node_id=lambda: "node-7")
    monkeypatch.setattr(machine_health.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(machine_health.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    check_gpu.cache_clear()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError(ILLEGAL), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), False),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (ValueError("CUDA error is only quoted here"), False),
    ],
)
def test_errors_of_the_gpu_are_told_from_those_of_the_program(error: Exception, is_one: bool) -> None:
    assert is_gpu_error(error) is is_one


def test_an_error_names_its_machine_and_survives_pickling(here: None) -> None:
    error = as_machine_error(RuntimeError(ILLEGAL))
    assert error is not None
    text = "GPU 3 of 10.0.0.7 failed: CUDA error: an illegal memory access was encountered"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (str(copy), copy.node_id, copy.ip) == (text, "node-7", "10.0.0.7")
    assert is_death(copy), "the trial goes on in another process"
    assert describe_failure(copy, text)[:2] == ("lost", f"{text} 4 times without a new epoch")


def test_a_full_disk_is_the_machine_s_but_a_full_storage_is_not(here: None) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/ab.part/images.npy")
    assert str(as_machine_error(full)) == (
        "the disk of 10.0.0.7 failed: /cache/ab.part/images.npy cannot be written (No space left on device)"
    )
    assert as_machine_error(StorageError(errno.ENOSPC, "full")) is None
    assert as_machine_error(OSError(errno.ENOENT, "No such file")) is None


def test_a_gpu_slot_never_trains_on_the_cpu(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_gpu(0)
    with pytest.raises(MachineError, match=r"GPU 3 of 10\.0\.0\.7 failed: PyTorch finds no GPU"):
        check_gpu(1.0)


@pytest.mark.parametrize(
    ("count", "right", "message"),
    [
        (1, True, "Ray has given 2 GPUs to this process, but PyTorch finds 1"),
        (2, False, "it computes wrong numbers"),
    ],
)
def test_the_gpu_is_the_one_that_was_given_and_computes(
    count: int, right: bool, message: str, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(machine_health.ray, "get_gpu_ids", lambda: [0, 1])
    monkeypatch.setattr(machine_health, "product_is_right", lambda _device: right)
    with pytest.raises(MachineError, match=message):
        check_gpu(2.0)


def test_a_gpu_that_raises_in_the_check_has_failed(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_device: str) -> bool:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(machine_health.ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(machine_health, "product_is_right", broken)
    with pytest.raises(MachineError, match=r"failed: CUDA error: an illegal memory access was encountered$"):
        check_gpu(1.0)


def test_the_product_of_the_check_sees_a_wrong_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_is_right("cpu")
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda one, other: equal(one + torch.eye(64, dtype=one.dtype) * 1e-9, other))
    assert not product_is_right("cpu")


class Cluster:
    """Two machines with two GPUs each, and what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machines: int = 2) -> None:
        self.reserved: list[tuple[dict[str, float], str, str]] = []
        self.said: list[str] = []
        resources = {"CPU": 8.0, "GPU": 2.0}
        nodes = [{"NodeID": f"n{number}", "Alive": True, "Resources": resources} for number in range(machines)]
        monkeypatch.setattr(machine_health.ray, "nodes", lambda: nodes)
        monkeypatch.setattr(machine_health, "placement_group", self.reserve)
        self.failures = MachineFailures(self.said.append)

    def reserve(self, bundles: list[Any], name: str, bundle_label_selector: list[dict[str, str]]) -> Any:
        (bundle,), (where,) = bundles, bundle_label_selector
        self.reserved.append((bundle, name, where["ray.io/node-id"]))
        return object()

    def fail(self, machine: int) -> bool:
        error = MachineError("GPU 1 failed: Xid 79", f"n{machine}", f"10.0.0.{machine}")
        return self.failures.note(error, Slots(4, 1, 4, 1.0))


def test_a_machine_that_fails_twice_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    assert cluster.fail(0)
    assert cluster.fail(1)
    assert cluster.reserved == [], "each machine may fail once"
    assert cluster.fail(0)
    assert cluster.reserved == [({"CPU": 4, "GPU": 1.0}, "wmlsearch-put-aside", "n0")] * 2, "both of its slots"
    assert cluster.said == ["machine 10.0.0.0 gets no more trials, since it failed 2 times: GPU 1 failed: Xid 79"]
    assert cluster.fail(0), "a trial that still ran there"
    assert len(cluster.reserved) == 2


def test_the_last_machine_is_kept_as_long_as_epochs_come_between_its_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, machines=1)
    for _ in range(10):
        assert all(cluster.fail(0) for _ in range(4)), "four slots may fail at the same time"
        cluster.failures.epoch_trained()
    assert all(cluster.fail(0) for _ in range(4))
    assert not cluster.fail(0), "nothing is trained any more"
    assert cluster.reserved == []


def session(tmp_path: Path) -> TrainingSession:
    job = WorkerJob(Shipment(tmp_path / "none", "0" * 64), RunSettings(), threads=1)
    return TrainingSession(job, TrialAssignment(config=TrialConfig(), checkpoint_location=str(tmp_path)))


def test_damaged_data_are_told_by_the_first_step(tmp_path: Path) -> None:
    """An error in an actor's constructor would be reported as the death of its process, four times for each trial."""
    made = session(tmp_path)
    result = made.step()
    assert (result.done, result.ended) == (True, "failed")
    assert str(tmp_path / "none") in result.reason
    made.close()


def test_a_gpu_that_fails_in_an_epoch_ends_the_process(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(trial_worker, "open_data", failing)
    with pytest.raises(MachineError, match=r"GPU 3 of 10\.0\.0\.7 failed") as caught:
        session(tmp_path).step()
    assert caught.value.__cause__ is not caught.value


def test_a_gpu_that_fails_its_check_ends_the_process(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = WorkerJob(Shipment(tmp_path / "none", "0" * 64), RunSettings(), threads=1, slots=Slots(1, 1, 1, 1.0))
    made = TrainingSession(job, TrialAssignment(config=TrialConfig(), checkpoint_location=str(tmp_path)))
    with pytest.raises(MachineError, match="PyTorch finds no GPU") as caught:
        made.step()
    assert caught.value.__cause__ is None, "Ray cannot send an error that is its own cause"
