"""What the mailbox of a worker group passes on while ranks break and groups start anew. Without Ray."""

from __future__ import annotations

import asyncio

from records import epoch_row

from wmlsearch.config import TrialConfig
from wmlsearch.search.messages import TrialAssignment, TrialResult
from wmlsearch.search.worker_group import Command, Mailbox

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
