"""Inject faults into the processes of a search. Every Python process with this folder on its path runs this module.

WMLSEARCH_FAULT_TRIALS: JSON object from trial number to fault; the fault happens in or after the second epoch.
WMLSEARCH_FAULT_CUDA: if set, each training in this process gets a CUDA error in its second epoch.
WMLSEARCH_FAULT_CUDA_ONCE: path of a file; the first training of all processes that reaches its second epoch makes it,
    and gets a CUDA error: on a GPU a real one, a failed assertion on the device, after which each CUDA call fails.
WMLSEARCH_FAULT_DISK: if set, the disk is full when a trial begins in this process.
WMLSEARCH_FAULT_WAIT: path of a file; each training in this process waits before its second epoch until it exists.
WMLSEARCH_FAULT_CLOCK: path of a file; as soon as it exists, the clock is set back by an hour.
"""

import errno
import importlib.abc
import importlib.util
import json
import os
import sys
import time

TRIALS = json.loads(os.environ.get("WMLSEARCH_FAULT_TRIALS", "{}"))
CUDA = os.environ.get("WMLSEARCH_FAULT_CUDA")
CUDA_ONCE = os.environ.get("WMLSEARCH_FAULT_CUDA_ONCE")
DISK = os.environ.get("WMLSEARCH_FAULT_DISK")
WAIT = os.environ.get("WMLSEARCH_FAULT_WAIT")
CLOCK = os.environ.get("WMLSEARCH_FAULT_CLOCK")
DIVERGES = {"optimizer": "sgd", "norm": "instance", "learning_rate": 10.0, "weight_decay": 10.0}
TOO_LARGE = {"depth": 4, "base_channels": 512}  # 8 GB of weights


def faulty(epochs):
    """Return a replacement of `training.epochs` that injects the fault of the trial."""

    def run(config, *args, **more):
        fault = TRIALS.get(more["last"].parent.name)
        if fault == "diverge":
            config = config.model_copy(update=DIVERGES)
        if fault == "memory":
            config = config.model_copy(update=TOO_LARGE)
        reports, done = epochs(config, *args, **more), 0
        if more["last"].exists():
            done = 2
        while True:
            while done >= 1 and WAIT and not os.access(WAIT, os.F_OK):
                time.sleep(0.1)  # between two looks for the file
            if done >= 1 and (CUDA or is_first(CUDA_ONCE)):
                if CUDA_ONCE:
                    fail_on_device()
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if done >= 2 and fault == "raise":
                raise ZeroDivisionError("injected")
            while done >= 2 and fault == "hang":
                time.sleep(1)  # the fault: no further report
            try:
                yield next(reports)
            except StopIteration:
                return
            done += 1

    return run


def is_first(path):
    """Return whether this is the first call with the path of all processes."""
    try:
        with open(path or "", "x"):
            return True
    except OSError:
        return False


def fail_on_device():
    """Read past the end of a tensor on the GPU, if there is one: the assertion of the kernel fails."""
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")[torch.tensor([1], device="cuda")]
        torch.cuda.synchronize()


def full_disk(*_):
    """Replace `open_data`, which copies the prepared data to the worker's machine."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/images.npy")


class Finder(importlib.abc.MetaPathFinder):
    """Import hook that replaces `epochs` or `open_data` in the trial worker's module as soon as it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != "wmlsearch.search.trial_worker":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.epochs = faulty(module.epochs)
            if DISK:
                module.open_data = full_disk

        spec.loader.exec_module = exec_module
        return spec


if TRIALS or CUDA or CUDA_ONCE or DISK or WAIT:
    sys.meta_path.insert(0, Finder())
if CLOCK:
    now = time.time
    time.time = lambda: now() - 3600 * os.access(CLOCK, os.F_OK)
