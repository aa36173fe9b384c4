"""Worker groups whose ranks break: what their mailbox passes on, without Ray, and what the next runs get."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from records import epoch_row, run_record

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.runs.folders import RunDir
from wmlsearch.search import checkpoints
from wmlsearch.search.final_training import write_result
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession
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


def assignment_of(start: Command) -> TrialAssignment:
    assert start.assignment is not None
    return start.assignment


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


def test_a_group_that_starts_again_knows_which_epochs_were_reported(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run waits for a checkpoint that another machine's file system shows late, and does not begin anew."""
    shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
    job = WorkerJob(shipment, RunSettings(epochs=3), threads=1)
    config = TrialConfig(depth=1, base_channels=2, batch_size=24)
    run = RunDir.create(tmp_path / "run", run_record({"name": "x"}))

    async def scenario() -> None:
        mailbox = Mailbox()
        await mailbox.order(Command("start", TrialAssignment(config=config, checkpoint_location=str(run.path))))
        start = (await commands(mailbox))[0]
        session = TrainingSession(job, assignment_of(start))
        for _ in range(2):
            await mailbox.order(Command("step"))
            await mailbox.post(start.number, session.step())
            result = await take(mailbox)
            assert result is not None
            write_result(run, result, set())
        await mailbox.order(Command("step"))  # its process dies in the third epoch
        await mailbox.group_started()
        again = await commands(mailbox)
        assert trials(again) == [("start", None), ("step", None)]
        assert assignment_of(again[0]).reported_epochs == 2
        run.last.rename(tmp_path / "late")
        result = TrainingSession(job, assignment_of(again[0])).step()
        assert result.ended == "interrupted"
        assert result.reason.startswith("[Errno 2] the checkpoint of 2 reported epochs is missing on ")
        write_result(run, result, {run.path})
        assert [row.epoch for row in run.rows()] == [1, 2]

    monkeypatch.setattr(checkpoints, "LATE_S", 0.0)
    asyncio.run(scenario())


def test_an_older_checkpoint_does_not_lower_the_number_of_reported_epochs() -> None:
    """A power cut may lose the latest checkpoint: epochs are trained again that the scheduler has."""

    async def scenario() -> None:
        mailbox = Mailbox()
        await mailbox.order(
            Command("start", TrialAssignment(config=TrialConfig(), checkpoint_location="x", reported_epochs=3))
        )
        await mailbox.post(1, TrialResult(report=epoch_row({"epoch": 2})))
        await mailbox.group_started()
        assert assignment_of((await commands(mailbox))[0]).reported_epochs == 3

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_a_run_that_breaks_costs_the_next_one_nothing(prepared: Path, tmp_path: Path) -> None:
    """Both ranks of the first run raise the same error. The group may be set up again after no loss at all."""
    config, seeds = TrialConfig(depth=1, base_channels=1, batch_size=4), {"broken": 2**70, "good": 0}
    with ray_session(None):
        shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
        group = WorkerGroup(WorkerJob(shipment, RunSettings(epochs=1), threads=1, slots=Slots(1, 2, 1, 0.0)), retries=0)
        results = []
        for name, seed in seeds.items():
            group.start(TrialAssignment(config=config, seed=seed, checkpoint_location=str(tmp_path / name)))
            results.append(group.step())
        group.close()
    assert [(result.ended, result.broke) for result in results] == [("failed", True), ("completed", False)]
    assert "Overflow" in results[0].reason
