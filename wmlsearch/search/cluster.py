"""Where Ray is: an embedded one of our own, quiet, on 127.0.0.1 only, gone when the work is done."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

# Read by Ray when it is imported, so set before (this module is the first to import it).
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # an embedded Ray listens on 127.0.0.1 only
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints banners even when silent
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the run folder is our log
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a diverged trial ends without a metric
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is handled by trials.py
os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "3")  # a trial in mid-epoch is not waited for
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # nothing of Tune's is ever restored

import ray
import torch

MEMORY_PER_TRIAL_GB = 2.0  # of a trial's process on a CPU: the libraries, the model, its activations


@dataclass(frozen=True)
class Slots:
    """How many trials run at once, and what each of them gets."""

    count: int
    cpus: int
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus}

    def __str__(self) -> str:
        gpu = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.count} at a time, each on {self.cpus} CPU core{'s' if self.cpus > 1 else ''}{gpu}"


def local_slots(trials: int) -> Slots:
    """As many trials at once as this machine holds: one for each GPU, or else for each CPU core and its memory."""
    cores, gpus = available_cpus(), torch.cuda.device_count()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    fits = gpus or min(cores, int(memory_gb / MEMORY_PER_TRIAL_GB))
    count = max(1, min(trials, fits))
    return Slots(count, max(1, cores // count), 1.0 if gpus else 0.0)


def worker_slots(workers: int) -> Slots:
    """The share of this machine that each of `workers` ranks of one training gets."""
    gpus = torch.cuda.device_count()
    return Slots(1, max(1, available_cpus() // workers), 1.0 if gpus >= workers else 0.0)


def available_cpus() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def embedded() -> Iterator[None]:
    """A Ray of our own for the length of the block; others on this machine are neither joined nor disturbed."""
    folder = tempfile.mkdtemp(prefix="wmlsearch-ray-")  # short: it holds sockets, whose paths may have 107 characters
    try:
        ray.init(
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            # Ray may hold objects for us, but nothing that we send is big: a small store spares /dev/shm
            object_store_memory=200 * 2**20,
        )
        for name in ("ray.tune", "ray.train"):  # what fails there is told by the run folder, with its reason
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
