"""The names of a worker group's placement groups, their release, and where a group's other processes run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wmlsearch.cluster.ray_patches import ON_HEAD
from wmlsearch.search import group_resources
from wmlsearch.search.group_resources import (
    HEAD_BYTES,
    PROCESSES_BYTES,
    RELEASE_FOR_S,
    DriverPlace,
    KilledGroups,
    Machines,
    name_of,
)

MEMORY = {"memory": float(PROCESSES_BYTES)}
NOT_ON_HEAD = {"ray.io/node-id": "!head"}


def actor(identity: str) -> Any:
    return SimpleNamespace(_actor_id=bytes.fromhex(identity))


def test_what_a_killed_group_asks_for_is_released_once_a_second_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, released = [100.0], []
    monkeypatch.setattr(group_resources, "release_placement_groups", lambda names: released.append(sorted(names)))
    killed = KilledGroups(lambda: now[0])
    killed.release()
    assert released == [], "nothing was killed"
    killed.add(actor("ab12"))
    killed.release()
    killed.release()
    assert released == [[name_of("ab12")]], "once within a second"
    now[0] += 1
    killed.release()
    assert len(released) == 2, "its processes may still ask for machines"
    killed.add(actor("cd34"))
    killed.release()
    assert released[-1] == sorted([name_of("ab12"), name_of("cd34")]), "at once after another kill"
    now[0] += RELEASE_FOR_S + 1
    killed.release()
    count = len(released)
    now[0] += 10
    killed.release(at_once=True)
    assert len(released) == count, "both are forgotten"


def test_a_group_has_its_machines_when_its_placement_group_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = {f"{name_of('ab12')}0f0f": 2, "of-another-program": 1, "": 3}
    monkeypatch.setattr(group_resources, "placed_groups", lambda: placed)
    machines = Machines()
    assert machines.workers_of(actor("ab12")) == 2
    assert machines.workers_of(actor("cd34")) == 0


def node(identity: str, memory_gb: float, head: bool = False) -> dict[str, Any]:
    resources = {"CPU": 8.0, "GPU": 8.0, "memory": memory_gb * 2**30}
    return {"NodeID": identity, "Resources": {**resources, **({"node:__internal_head__": 1.0} if head else {})}}


def test_drivers_of_many_groups_stay_off_a_small_head() -> None:
    """Each group has a driver and a controller beside its ranks: 32 of them do not fit on a head with 8 GiB."""
    small = node("head", 5.5, head=True)
    assert DriverPlace.on_nodes([small, node("a", 500)], 32, []) == DriverPlace(MEMORY, NOT_ON_HEAD)
    large = node("head", 32 * PROCESSES_BYTES / 2**30 + HEAD_BYTES / 2**30, head=True)
    assert DriverPlace.on_nodes([large, node("a", 500)], 32, []) == DriverPlace({**ON_HEAD, **MEMORY}, {})
    assert DriverPlace.on_nodes([large, node("a", 500)], 33, []) == DriverPlace(MEMORY, NOT_ON_HEAD)


def test_drivers_wait_for_machines_that_may_come_if_their_memory_is_known() -> None:
    small = node("head", 5.5, head=True)
    assert DriverPlace.on_nodes([small], 32, [{"CPU": 8.0, "memory": 64 * 2.0**30}]).selector == NOT_ON_HEAD
    assert DriverPlace.on_nodes([small], 32, [{"CPU": 8.0}]) == DriverPlace(MEMORY, {}), "on the head, as many as fit"
    tiny = node("head", 2, head=True)
    assert DriverPlace.on_nodes([tiny], 2, []) == DriverPlace(ON_HEAD, {}), "the only machine"


def test_the_place_as_options_of_an_actor() -> None:
    assert DriverPlace({**ON_HEAD, **MEMORY}, {}).actor_options() == {
        "memory": PROCESSES_BYTES,
        "resources": ON_HEAD,
        "label_selector": {},
    }
    assert DriverPlace(MEMORY, NOT_ON_HEAD).actor_options()["label_selector"] == NOT_ON_HEAD
