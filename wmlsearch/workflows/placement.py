"""Where a search runs and how its trials are shaped: the Ray, the storage of checkpoints, workers and GPUs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from wmlsearch.errors import InputError
from wmlsearch.runs.environment import RAY_OF_JOB
from wmlsearch.runs.folders import FINAL_RUNS, TRIALS, AnyDir, SearchDir
from wmlsearch.runs.locations import location_below
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import TrialShape

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Node, Request, Reserved, Slots

MAX_WORKERS_PER_TRIAL = 4096
COMPILED_NETWORKS = ".compiled-networks"  # no search or run has such a name
MAX_TRIALS_PER_GPU = 64  # with more, each trial's share is smaller than the memory that a CUDA process takes for itself


@dataclass(frozen=True)
class Placement:
    """The Ray and the storage that a search or training uses, and the resources of each trial."""

    ray_address: str | None = None  # HOST:PORT or auto; None: an embedded Ray on this machine
    storage: str | None = None  # folder or URI of checkpoints that all machines reach; None: the run folders
    workers_per_trial: int = 1
    gpus_per_worker: float | None = None  # None: one where the machines have GPUs
    trials_per_gpu: int | Literal["auto"] = 1  # auto: preflight measures how many are fastest
    on_own_ray: bool = False  # whether ray_address is the Ray that this process was connected to before

    def __post_init__(self) -> None:
        """Make the path of a storage folder absolute: Ray's processes have other working directories."""
        if self.storage and ("://" not in self.storage or self.storage.startswith("file:///")):
            object.__setattr__(self, "storage", str(Path(self.storage.removeprefix("file://")).absolute()))

    @property
    def on_cluster(self) -> bool:
        """Whether trials run on a cluster that exists already, not on an embedded Ray."""
        return bool(self.ray_address)

    @property
    def given_ray_address(self) -> str | None:
        """The address that the user gave, to resume a search there. A Ray of this process or job ends with it."""
        ends = self.on_own_ray or self.ray_address == os.environ.get(RAY_OF_JOB)
        return None if ends else self.ray_address

    def check_before_ray(self, trials: int) -> None:
        """Check options, storage, and the cluster's address or this machine's resources. Raises InputError."""
        if faults := [*self._option_faults(), *self._gpu_sharing_faults()]:
            raise InputError("these options cannot be used", faults)
        if self.storage:
            from wmlsearch.search.checkpoints import check_writable

            check_writable(self.storage)
        if self.ray_address:
            from wmlsearch.cluster.connect import check_reachable

            check_reachable(self.ray_address)
        else:
            self.slots(trials)

    def _option_faults(self) -> list[str]:
        faults = []
        if not 1 <= self.workers_per_trial <= MAX_WORKERS_PER_TRIAL:
            faults.append(
                f"--workers-per-trial must be a whole number from 1 to {MAX_WORKERS_PER_TRIAL}, but got "
                f"{self.workers_per_trial}"
            )
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker < math.inf:
            faults.append(f"--gpus-per-worker must be 0 or a positive number, but got {self.gpus_per_worker}")
        elif self.gpus_per_worker is not None and self.gpus_per_worker % 1:
            faults.extend(self._fraction_faults(self.gpus_per_worker))
        if self.trials_per_gpu not in ("auto", *range(1, MAX_TRIALS_PER_GPU + 1)):
            faults.append(
                f"--trials-per-gpu must be auto or a whole number from 1 to {MAX_TRIALS_PER_GPU}, but got "
                f"{self.trials_per_gpu}"
            )
        if self.ray_address and self.ray_address.startswith("ray://"):
            faults.append(
                f"--ray-address {self.ray_address}: is an address of Ray Client, which runs single tasks from afar; "
                "a search lives on a machine of the cluster, so run the command there with --ray-address auto, or here "
                "with --cluster FILE"
            )
        elif self.ray_address and not re.fullmatch(r"auto|[^/\s]+:[0-9]{1,5}", self.ray_address):
            faults.append(f"--ray-address must be HOST:PORT or auto, but got {self.ray_address!r}")
        return faults

    def _fraction_faults(self, gpus: float) -> list[str]:
        if gpus > 1:  # Ray's rule
            return [f"--gpus-per-worker above 1 must be a whole number, but got {gpus:g}"]
        if self.workers_per_trial > 1:  # Ray puts such workers on one GPU, and NCCL refuses two ranks there
            return [
                f"--workers-per-trial {self.workers_per_trial}: cannot be combined with --gpus-per-worker {gpus:g}, "
                "since workers of one trial cannot share a GPU; give --gpus-per-worker 1, or one worker for each trial"
            ]
        return []

    def _gpu_sharing_faults(self) -> list[str]:
        if self.trials_per_gpu not in ("auto", *range(2, MAX_TRIALS_PER_GPU + 1)):
            return []
        faults, option = [], f"--trials-per-gpu {self.trials_per_gpu}"
        if self.gpus_per_worker is not None:
            faults.append(
                f"{option}: cannot be combined with --gpus-per-worker {self.gpus_per_worker:g}, since both set a "
                "trial's share of a GPU; give one of them"
            )
        if self.workers_per_trial != 1:
            faults.append(
                f"{option}: cannot be combined with --workers-per-trial {self.workers_per_trial}, which gives each "
                "trial several GPUs; give one of them"
            )
        return faults

    def free_memory_gb(self) -> float | None:
        """Return the free memory of this machine, GiB, where it limits the slots; None on a cluster."""
        from wmlsearch.cluster.resources import free_memory_gb

        return None if self.ray_address else free_memory_gb()

    def slots(self, trials: int, reserved: Reserved | None = None, free_gb: float | None = None) -> Slots:
        """Return how many of `trials` trials run at once, and the resources of each. Raises InputError if none fits.

        Args:
            trials: The number of trials.
            reserved: Resources of the cluster that others have reserved (see `reserved_by_others`).
            free_gb: A former result of `free_memory_gb`. None: ask now.
        """
        from wmlsearch.cluster.resources import cluster_nodes, plan_slots, this_machine

        if not self.ray_address:
            nodes = this_machine()
            return plan_slots(
                nodes, self._request(nodes), trials, self.free_memory_gb() if free_gb is None else free_gb
            )
        nodes = cluster_nodes(reserved or {})
        if len(nodes) > 1 and not self.storage:
            raise InputError(
                f"the cluster has {len(nodes)} machines, so checkpoints need a storage that all of them reach: "
                "give --storage (a shared folder, or a URI such as s3://bucket/wmlsearch)"
            )
        try:
            return plan_slots(nodes, self._request(nodes), trials)
        except InputError as error:
            if not any(any(held.values()) for held in (reserved or {}).values()):
                raise
            raise InputError(
                f"{error}, or wait until others have ended: they have reserved a part of this cluster (`ray status`)"
            ) from None

    def wait_for_machines(self, slots: Slots, reserved: Reserved, say: Callable[[str], None]) -> None:
        """Wait until a cluster that starts machines on demand has those of one slot; `say` tells what is waited for."""
        from wmlsearch.cluster.resources import wait_for_machines

        if self.on_cluster:
            wait_for_machines(slots, reserved, say)

    def reserved(self) -> Reserved:
        """Return what others have reserved of the cluster. Ask before this process has trainings of its own."""
        from wmlsearch.cluster.resources import reserved_by_others

        return reserved_by_others() if self.on_cluster else {}

    def _request(self, nodes: Sequence[Node]) -> Request:
        """Return what a trial asks for. Raises InputError if trials are to share a GPU and there is none."""
        from wmlsearch.cluster.resources import Request, share_of_gpu

        gpus = self.gpus_per_worker
        if self.trials_per_gpu != 1:
            if not any(node.get("GPU") for node in nodes):
                raise InputError(f"--trials-per-gpu {self.trials_per_gpu}: there is no GPU to share; leave it out")
            gpus = None if self.trials_per_gpu == "auto" else share_of_gpu(self.trials_per_gpu)
        return Request(self.workers_per_trial, None, gpus)

    @property
    def shape(self) -> TrialShape:
        """The resources of a trial, for `search.json`. Before, `trials_per_gpu` must be resolved to a number."""
        return TrialShape(
            workers_per_trial=self.workers_per_trial,
            gpus_per_worker=self.gpus_per_worker,
            trials_per_gpu=cast(int, self.trials_per_gpu),
        )

    def of_resumed(self, name: str, shape: TrialShape, storage: str | None) -> Placement:
        """Return this placement with the shape of search `name` and, unless this one has a storage, its storage.

        Raises InputError if that storage needs a password, which `search.json` does not hold.
        """
        storage = self.storage or storage
        if storage and "***" in storage:
            raise InputError(
                f"{name}: its checkpoints are in {storage}, and the password is not stored; give --storage "
                "(or WMLSEARCH_STORAGE) with the password"
            )
        return replace(self, **shape.model_dump(), storage=storage)

    @property
    def storage_without_password(self) -> str | None:
        """The storage as a run folder may hold it."""
        return without_password(self.storage) if self.storage else None

    def check_storage_unused(self, run: AnyDir) -> None:
        """Refuse a new run if the storage holds another run of this name, or its checkpoints. Raises InputError."""
        if self.storage:
            from wmlsearch.cluster.run_copies import check_no_copy
            from wmlsearch.search.checkpoints import check_unused

            check_no_copy(self.storage, run)
            check_unused(self.checkpoint_location(run))

    def prepare_storage(self, search: SearchDir) -> None:
        """Delete the checkpoints of runs that a search does not have, and make its folder in the storage.

        Raises OSError. Below that folder, workers make those of trials.

        Workers never make this one, so a storage that is unmounted during a search is waited for, not made anew.
        """
        if not self.storage:
            return
        from wmlsearch.search.checkpoints import delete_unknown_runs

        location = self.checkpoint_location(search)
        if "://" not in self.storage:
            Path(location).mkdir(parents=True, exist_ok=True)
            if Path(location).resolve() == search.path.resolve():
                return  # no copy is restored into it, so whatever else lies there is the user's
        delete_unknown_runs(location, search)

    def checkpoint_location(self, run: AnyDir) -> str:
        """Return the folder or URI of a run's checkpoints: its run folder, or its folder in the storage."""
        if not self.storage:
            return str(run.path.resolve())
        parts = run.path.parts[-3:] if run.path.parent.name in (TRIALS, FINAL_RUNS) else run.path.parts[-1:]
        return location_below(self.storage, *parts)

    def compiled_networks(self, run: AnyDir) -> str:
        """Return the folder or URI of compiled networks, which all searches and trainings of a storage or folder share.

        Args:
            run: A search, or a run of `wmlsearch train`.
        """
        return location_below(self.storage or str(run.path.resolve().parent), COMPILED_NETWORKS)


LOCAL = Placement()
