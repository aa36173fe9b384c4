"""What a search finds out before its first trial: how many trials share a GPU, and a forecast.

And what of the forecast only shows while the search runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import RunSettings
from wmlsearch.jobs import Where
from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.space import SearchSpace

if TYPE_CHECKING:
    from wmlsearch.search.cluster import Slots

LIMIT_S = 2.0  # for each configuration that is timed
PATIENCE_S = 180.0  # then a search begins without its forecast: others may hold what it would be measured on


def mind_load(where: Where, say: Callable[[str], None]) -> None:
    """Say when others use the cores that are about to be timed. Of another machine than this one nothing is known."""
    from wmlsearch.search.measure import load_warning

    if not where.ray_address and (warning := load_warning()):
        say(warning)


def foresee(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: dict[str, Any],
    slots: Slots,
    final: Slots,
    say: Callable[[str], None],
) -> None:
    """Forecast a search before its first trial, into its folder. Whatever goes wrong with that, the search goes on."""
    from wmlsearch.search.plan import forecast

    say("forecast: three configurations are timed for some seconds ...")
    try:
        made = forecast(space, settings, data, slots, final, LIMIT_S, PATIENCE_S)
        search.set_forecast(made.as_dict())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"no forecast ({reason}); the search goes on without")


def packed(
    where: Where, space: SearchSpace, settings: RunSettings, data: Path, say: Callable[[str], None]
) -> tuple[Where, dict[str, Any]]:
    """`where` with the number of trials that share a GPU, tried where it is "auto", and what was found in trying.

    Whatever goes wrong with that, the search goes on with one trial on each GPU.
    """
    from wmlsearch.model.timing import mps_is_on
    from wmlsearch.search.nodes import parcel
    from wmlsearch.search.packing import pack

    if where.trials_per_gpu == 1:
        return where, {}
    alone = where.slots(settings.trials)  # whatever was wished, a wish that can't be is refused here
    if where.trials_per_gpu != "auto":
        say(f"{where.trials_per_gpu} trials share a GPU; NVIDIA MPS is {'on' if mps_is_on() else 'off'}")
        return where, {}
    say("trials per GPU: the paper's point is timed with one trial, two at once, and so on ...")
    try:
        found = pack(space, settings, parcel(data, send=bool(where.ray_address)), alone)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"1 trial has a GPU, since no other number could be tried ({reason})")
        return dataclasses.replace(where, trials_per_gpu=1), {}
    say(str(found))
    return dataclasses.replace(where, trials_per_gpu=found.trials_per_gpu), found.as_dict()


class CheckpointBytes:
    """What the checkpoints of a search take at most, where they are kept in its folder."""

    def __init__(self, search: SearchDir, where: Where) -> None:
        self.search, self.here = search, not where.storage
        self.there: set[RunDir] = set()
        self.most = search.used()["checkpoint_bytes"]

    def look(self, run: RunDir) -> None:
        """At a run that has changed, and at those that had checkpoints when they were looked at last."""
        if self.here and not isinstance(run, SearchDir):
            sizes = {it: it.checkpoint_bytes() for it in (*self.there, run)}
            self.there = {it for it, size in sizes.items() if size}
            if sum(sizes.values()) > self.most:
                self.most = sum(sizes.values())
                self.search.set_used({"checkpoint_bytes": self.most})
