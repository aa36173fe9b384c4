"""Final runs and `wmlsearch train`: one configuration trained through Ray Train, its epochs heard as they come."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmlsearch.search.cluster import Slots  # isort: skip - sets Ray's environment before Ray is imported

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import distributed

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.model.training import Diverged, load_checkpoint
from wmlsearch.runs import RunDir
from wmlsearch.search.slot import start

LOST_WORKER_RETRIES = 3  # how often a run whose worker died goes on from its checkpoint


class _Mailbox:
    """An actor without CPUs that carries messages from rank 0 to the driver while `TorchTrainer.fit()` blocks."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def put(self, message: dict[str, Any]) -> None:
        await self.messages.put(message)

    async def take(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None if none has come within `timeout_s` seconds."""
        try:
            return await asyncio.wait_for(self.messages.get(), timeout_s)
        except TimeoutError:
            return None


def train_run(
    run: RunDir,
    config: TrialConfig,
    settings: RunSettings,
    data: Path,
    slots: Slots,
    on_change: Callable[[RunDir], None],
    workers: int = 1,
) -> None:
    """Train `config` into `run` with Ray Train; its state says how it ended. Ctrl-C leaves it interrupted."""
    job = {
        "data": str(data.resolve()),
        "run": str(run.path.resolve()),
        "config": config.model_dump(),
        "settings": settings.model_dump(),
        "threads": slots.cpus,
    }
    mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
    scratch = tempfile.mkdtemp(prefix="wmlsearch-train-")  # Train wants a folder; our checkpoints are in the run folder
    trainer = TorchTrainer(
        _rank,
        train_loop_config={**job, "mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if slots.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(slots.gpus),
            resources_per_worker={k: v for k, v in slots.resources.items() if v},
        ),
        run_config=RunConfig(
            name=run.name, storage_path=scratch, failure_config=FailureConfig(max_failures=LOST_WORKER_RETRIES)
        ),
    )
    failure: list[str] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception:
            failure.append(traceback.format_exc())

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    end: dict[str, Any] = {}
    try:
        while not end:
            alive = thread.is_alive()
            message = ray.get(mailbox.take.remote(1.0))
            if message is None:
                if not alive:
                    end = {"ended": "failed", "reason": failure[0] if failure else "Ray Train ended without a word"}
                continue
            if "replayed" in message:
                run.reconcile(message["replayed"])
            if "report" in message:
                run.append(message["report"])
            if "ended" in message:
                end = message
            on_change(run)
        run.set_status(end["ended"], end.get("reason", ""))
        thread.join()
    except KeyboardInterrupt:
        run.set_status("interrupted", "stopped by Ctrl-C")
        raise
    finally:
        on_change(run)
        ray.kill(mailbox)
        shutil.rmtree(scratch, ignore_errors=True)


def _rank(job: dict[str, Any]) -> None:
    """One rank of the worker group: all train, rank 0 tells."""
    torch.set_num_threads(job["threads"])
    run, mailbox = RunDir(Path(job["run"])), job["mailbox"]

    def tell(**message: Any) -> None:
        if distributed.get_rank() == 0:
            ray.get(mailbox.put.remote(message))

    if run.last.exists():
        replayed = load_checkpoint(run.last)["reports"]
        tell(replayed=replayed)
        if replayed[-1]["ended"]:
            return tell(ended=replayed[-1]["ended"])
    try:
        for report in start(job, job["config"], run):
            tell(report=report.row(), **({"ended": report.ended} if report.ended else {}))
    except Diverged as error:
        tell(ended="diverged", reason=str(error))
    except InputError as error:
        tell(ended="failed", reason=str(error))
