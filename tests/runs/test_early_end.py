"""Why a search or training ended early: which ends can be resumed, and what the run folder records."""

from __future__ import annotations

import copy

import pytest

from wmlsearch.runs.early_end import STOP_REQUESTED, EarlyEnd, EndCause
from wmlsearch.runs.interrupts import Interrupted


@pytest.mark.parametrize("cause", list(EndCause))
def test_an_end_is_resumable_unless_a_budget_or_the_program_caused_it(cause: EndCause) -> None:
    assert EarlyEnd(cause, "").resumable == (cause not in (EndCause.BUDGET, EndCause.ERROR))


def test_the_text_of_an_end_is_the_reason_in_the_run_folder() -> None:
    assert str(EarlyEnd.by_dead_ray(["gcs_server", "raylet"])) == "stopped, since Ray has died (gcs_server and raylet)"
    assert str(EarlyEnd.by_storage(OSError(28, "disk full"))) == "stopped, since [Errno 28] disk full"
    assert str(STOP_REQUESTED) == "stopped by `wmlsearch stop`"


def test_a_copy_of_an_interrupt_has_its_end() -> None:
    assert copy.copy(Interrupted(STOP_REQUESTED)).end == STOP_REQUESTED
