"""The mark of a worker group's placement group, and its release after the driving process was killed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wmlsearch.search import group_resources
from wmlsearch.search.group_resources import RELEASE_FOR_S, KilledGroups, Machines, mark_of


def actor(identity: str) -> Any:
    return SimpleNamespace(_actor_id=bytes.fromhex(identity))


def test_marks_are_small_and_differ() -> None:
    marks = {mark_of(f"{number:032x}") for number in range(100)}
    assert len(marks) == 100
    assert all(1_000_000 <= mark < 2_000_000 for mark in marks), "a megabyte or two: no machine lacks it"


def test_what_a_killed_group_asks_for_is_released_once_a_second_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, released = [100.0], []
    monkeypatch.setattr(group_resources, "release_placement_groups", lambda marks: released.append(sorted(marks)))
    killed = KilledGroups(lambda: now[0])
    killed.release()
    assert released == [], "nothing was killed"
    killed.add(actor("ab12"))
    killed.release()
    killed.release()
    assert released == [[mark_of("ab12")]], "once within a second"
    now[0] += 1
    killed.release()
    assert len(released) == 2, "its processes may still ask for machines"
    killed.add(actor("cd34"))
    killed.release()
    assert released[-1] == sorted([mark_of("ab12"), mark_of("cd34")]), "at once after another kill"
    now[0] += RELEASE_FOR_S + 1
    killed.release()
    count = len(released)
    now[0] += 10
    killed.release(at_once=True)
    assert len(released) == count, "both are forgotten"


def test_a_group_has_its_machines_when_its_mark_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_resources, "placed_marks", lambda: {mark_of("ab12"), 4_000_000_000})
    machines = Machines()
    assert machines.are_given_to(actor("ab12"))
    assert not machines.are_given_to(actor("cd34"))
