"""Worker groups whose ranks break: what their mailbox passes on, without Ray, and what the next runs get."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from records import epoch_row

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.worker_group import Command, Mailbox, WorkerGroup

FAILED = TrialResult().with_end("failed", "trial 1 broke", broke=True)


async def begin(mailbox: Mailbox, trial: int) -> None:
    """Do as the driving process does: give a trial to the group, and ask for its first epoch."""
    assignment = TrialAssignment(number=trial, checkpoint_location=f"trials/{trial}", config=TrialConfig())
    await mailbox.order(Command("start", assignment))
    await mailbox.order(Command("step"))


async def commands(mailbox: Mailbox) -> list[Command]:
    """Take the commands that are there, as rank 0 does."""
    return [await mailbox.next_command() for _ in range(mailbox.commands.qsize())]


async def take(mailbox: Mailbox) -> TrialResult | None:
    return await mailbox.take(0.01)


def trials(taken: list[Command]) -> list[tuple[str, int | None]]:
    return [(command.action, command.assignment.number if command.assignment else None) for command in taken]


def test_a_late_result_is_not_that_of_the_next_trial() -> None:
    """Two ranks break by themselves, and the second one says so when the next trial has been ordered."""

    async def scenario() -> None:
        mailbox = Mailbox()
        await begin(mailbox, 1)
        first = (await commands(mailbox))[0].number
        await mailbox.post(first, FAILED)
        await mailbox.post(first, FAILED)  # before the next trial
        assert await take(mailbox) == FAILED
        await begin(mailbox, 2)
        await mailbox.post(first, FAILED)  # and after it
        assert await take(mailbox) is None, "trial 2 has no result"
        await mailbox.group_started()
        repeated = await commands(mailbox)
        assert trials(repeated) == [("start", 2), ("step", None)]
        report = TrialResult(report=epoch_row({"epoch": 1}))
        await mailbox.post(repeated[0].number, report)
        assert await take(mailbox) == report

    asyncio.run(scenario())


def test_a_group_that_starts_gets_what_is_unfinished_and_nothing_else() -> None:
    async def scenario() -> None:
        mailbox = Mailbox()
        await begin(mailbox, 1)
        number = (await commands(mailbox))[0].number
        await mailbox.group_started()
        assert trials(await commands(mailbox)) == [("start", 1), ("step", None)]
        await mailbox.post(number, TrialResult(report=epoch_row({"epoch": 1})))
        await mailbox.group_started()
        assert trials(await commands(mailbox)) == [("start", 1)], "its epoch has been reported"
        await mailbox.order(Command("step"))
        await mailbox.post(number, FAILED)
        await mailbox.group_started()
        assert await commands(mailbox) == [], "nothing of a trial that has ended"
        await mailbox.order(Command("quit"))
        await mailbox.group_started()
        assert trials(await commands(mailbox)) == [("quit", None)]

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_a_run_that_breaks_costs_the_next_one_nothing(prepared: Path, tmp_path: Path) -> None:
    """Both ranks of the first run raise the same error. The group may be set up again after no loss at all."""
    config, seeds = TrialConfig(depth=1, base_channels=1, batch_size=4), {"broken": 2**70, "good": 0}
    with ray_session(None):
        shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
        group = WorkerGroup(WorkerJob(shipment, RunSettings(epochs=1), 1, Slots(1, 2, 1, 0.0)), retries=0)
        results = []
        for name, seed in seeds.items():
            group.start(TrialAssignment(config=config, seed=seed, checkpoint_location=str(tmp_path / name)))
            results.append(group.step())
        group.close()
    assert [(result.ended, result.broke) for result in results] == [("failed", True), ("completed", False)]
    assert "Overflow" in results[0].reason
