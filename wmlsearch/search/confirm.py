"""Final runs and `wmlsearch train`: one configuration trained through Ray Train, its epochs written as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmlsearch.search.cluster import Slots  # isort: skip - sets Ray's environment before Ray is imported

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs import RunDir
from wmlsearch.search.checkpoints import Checkpoints
from wmlsearch.search.group import CLOSE_TIMEOUT_S, Group


def train_run(
    run: RunDir,
    config: TrialConfig,
    settings: RunSettings,
    data: dict[str, Any],
    slots: Slots,
    place: str,
    on_change: Callable[[RunDir], None],
    elastic: bool = False,
) -> None:
    """Train `config` into `run` with Ray Train; its state says how it ended. Ctrl-C leaves it interrupted.

    `data` is a parcel, `place` where the checkpoints go: what is elsewhere than in the run folder is copied there. The
    rate follows the `rate_factors` that the run folder has, if any: so what a trial of population based training has
    found is trained again from its beginning.
    """
    job = {"data": data, "settings": settings.model_dump(), "threads": slots.cpus}
    # In a process of its own, on this machine: Ray Train can't be interrupted in mid-epoch, but a process can be ended.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    host: Any = ray.remote(num_cpus=0)(Group)
    group = host.options(scheduling_strategy=here).remote(job, slots, elastic)
    try:
        factors = run.rate_factors()
        trial = {"config": config.model_dump(), "place": place, "heard": len(run.rows()), "rate_factors": factors}
        ray.get(group.start.remote(trial))
        result: dict[str, Any] = {}
        while not result.get("done"):
            result = ray.get(group.step.remote())
            write_result(run, result)
            on_change(run)
        bring_back(run, place)
        set_ended(run, result["ended"], result.get("reason", ""), result.get("traceback", ""))
    except KeyboardInterrupt as stopped:
        run.set_status("interrupted", str(stopped) or "stopped by Ctrl-C")
        raise
    except (RuntimeError, RayError) as error:
        set_ended(run, "failed", str(error).strip().splitlines()[-1], str(error))
    else:
        with contextlib.suppress(RayError):
            ray.get(group.close.remote(), timeout=2 * CLOSE_TIMEOUT_S)
    finally:
        ray.kill(group)  # and with it go its workers
        on_change(run)


def write_result(run: RunDir, result: dict[str, Any]) -> None:
    """Into the run folder with what a training has reported."""
    if "replayed" in result:
        run.reconcile(result["replayed"])
    if "report" in result and result["epoch"] > len(run.rows()):  # one of the checkpoint's is there already
        run.append(result["report"])


def set_ended(run: RunDir, state: str, reason: str = "", trace: str = "", **more: Any) -> None:
    """How a training ended: the reason in one line, and the traceback where there is one."""
    run.set_status(state, reason, **({"traceback": trace} if trace else {}), **more)


def bring_back(run: RunDir, place: str) -> None:
    """Copy the weights of the best epoch into the run folder, from where the checkpoints are."""
    if Path(place) == run.path.resolve():
        return
    kept = Checkpoints(place)
    kept.fetch()
    if kept.best.exists():
        run.best.write_bytes(kept.best.read_bytes())
    kept.close()
