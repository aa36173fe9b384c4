"""What all jobs of the command line share: where they run, on what data, and what their folders say of them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wmlsearch.config import InputError
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.redaction import without_password

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Node, Request, Slots

Progress = Callable[[str, int, int], None]
MOST_WORKERS = 4096  # of a trial
MOST_ON_A_GPU = 64  # trials; more would have less of it each than a process takes for itself


@dataclass(frozen=True)
class Placement:
    """On what Ray a run is to be: the cluster at `ray_address`, or an embedded one; and how its trials are shaped."""

    ray_address: str | None = None
    storage: str | None = None  # a place for checkpoints that all machines reach; None: the run folders
    workers_per_trial: int = 1
    gpus_per_worker: float | None = None  # None: one, where there are GPUs
    trials_per_gpu: int | Literal["auto"] = 1  # auto: as many as search/packing.py finds best, one until it has

    def __post_init__(self) -> None:
        """A folder gets its whole path: Ray's processes have working folders of their own."""
        if self.storage and ("://" not in self.storage or self.storage.startswith("file:///")):
            object.__setattr__(self, "storage", str(Path(self.storage.removeprefix("file://")).absolute()))

    def check_before_ray(self, trials: int) -> None:
        """Refuse what can't run, before Ray starts. Raises InputError."""
        faults = []
        if not 1 <= self.workers_per_trial <= MOST_WORKERS:
            faults.append(
                f"--workers-per-trial must be a whole number from 1 to {MOST_WORKERS}, but got {self.workers_per_trial}"
            )
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker < math.inf:
            faults.append(f"--gpus-per-worker must be 0 or a number above, but got {self.gpus_per_worker}")
        if self.trials_per_gpu not in ("auto", *range(1, MOST_ON_A_GPU + 1)):
            faults.append(
                f"--trials-per-gpu must be auto or a whole number from 1 to {MOST_ON_A_GPU}, but got "
                f"{self.trials_per_gpu}"
            )
        elif self.trials_per_gpu != 1:
            wish = f"--trials-per-gpu {self.trials_per_gpu}"
            if self.gpus_per_worker is not None:
                faults.append(
                    f"{wish}: --gpus-per-worker {self.gpus_per_worker:g} says already what a trial gets; leave out "
                    "either"
                )
            if self.workers_per_trial != 1:
                faults.append(
                    f"{wish}: --workers-per-trial {self.workers_per_trial} gives each trial several GPUs, so there is "
                    "none to share; leave out either"
                )
        if self.ray_address and not re.fullmatch(r"auto|(ray://)?[^/\s]+:[0-9]{1,5}", self.ray_address):
            faults.append(f"--ray-address must be HOST:PORT, ray://HOST:PORT or auto, but got {self.ray_address!r}")
        if faults:
            raise InputError("these options can't be used", faults)
        if self.storage:
            from wmlsearch.search.checkpoints import check_writable

            check_writable(self.storage)
        if self.ray_address:
            from wmlsearch.cluster.connect import check_reachable

            check_reachable(self.ray_address)
        else:
            self.slots(trials)

    def slots(self, trials: int) -> Slots:
        """How many trials of this shape run at once. Raises InputError where none fits."""
        from wmlsearch.cluster.resources import cluster_nodes, free_memory_gb, plan_slots, this_machine

        if not self.ray_address:
            nodes = this_machine()
            return plan_slots(nodes, self._request(nodes), trials, free_memory_gb())
        nodes = cluster_nodes()
        if len(nodes) > 1 and not self.storage:
            raise InputError(
                f"the cluster has {len(nodes)} machines, so checkpoints need a place that all of them reach: "
                "give --storage (a shared folder, or a URI such as s3://bucket/wmlsearch)"
            )
        return plan_slots(nodes, self._request(nodes), trials)

    def _request(self, nodes: Sequence[Node]) -> Request:
        """Raises InputError where there are no GPUs for trials to share."""
        from wmlsearch.cluster.resources import Request, share_of_gpu

        gpus, shared = self.gpus_per_worker, self.trials_per_gpu
        if shared != 1:
            if not any(node.get("GPU") for node in nodes):
                raise InputError(
                    f"--trials-per-gpu {shared}: no GPU is there, so there is nothing to share; leave it out"
                )
            gpus = None if shared == "auto" else share_of_gpu(shared)
        return Request(self.workers_per_trial, None, gpus)

    def as_begun(self, about: Mapping[str, Any]) -> Placement:
        """For a search that goes on: its trials keep their shape and, unless another one is given, their storage.

        Raises InputError where that can't be read from what the search says of itself.
        """
        storage = self.storage or about.get("storage")
        if storage and "***" in storage:
            raise InputError(
                f"{about['name']}: its checkpoints are in {storage}, whose password is kept nowhere; give --storage "
                "(or WMLSEARCH_STORAGE) with it"
            )
        return replace(self, **about["shape"], storage=storage)

    @property
    def storage_to_keep(self) -> str | None:
        """The storage as a search's folder may hold it."""
        return without_password(self.storage) if self.storage else None

    def check_unused(self, run: RunDir) -> None:
        """Refuse a new run whose place in the storage holds checkpoints of another one. Raises InputError."""
        if self.storage:
            from wmlsearch.search.checkpoints import check_unused

            check_unused(self.place(run))

    def make_place(self, search: RunDir) -> None:
        """Make the folder of a search in the storage: workers make those of its trainings below it.

        So a storage that is gone while it runs is waited for, and not made anew where it should be. Raises OSError.
        """
        if self.storage and "://" not in self.storage:
            Path(self.place(search)).mkdir(parents=True, exist_ok=True)

    def place(self, run: RunDir) -> str:
        """Where a run's checkpoints go: its folder, or its place in the storage."""
        if not self.storage:
            return str(run.path.resolve())
        about = run.path.parts[-3:] if run.path.parent.name in ("trials", "final") else run.path.parts[-1:]
        base, mark, options = self.storage.partition("?")  # a URI may end in options, such as ?region=eu-west-1
        return "/".join([base.rstrip("/"), *about]) + mark + options


LOCAL = Placement()


@dataclass(frozen=True)
class Outcome:
    """What a search or training leaves: where it is, why it ended early (or ""), and what MLflow lacks (or "")."""

    run: RunDir
    early: str
    mlflow_problem: str
    pictures: tuple[Path, ...] = ()


def new_name(kind: str) -> str:
    """`search-20261123-201512`: a name for who gave none."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
