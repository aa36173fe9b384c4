"""The epochs of the rungs, and the reason that a stopped trial gets."""

from __future__ import annotations

import pytest

from wmlsearch.config import RunSettings
from wmlsearch.search.scheduler import Scheduler


def stopped_at(scheduler: Scheduler, number: int, value: float) -> int | None:
    """Report a trial of constant value to its end, and return the epoch at which it is stopped."""
    last = scheduler.settings.epochs
    return next((e for e in range(1, last + 1) if scheduler.report(number, e, value, ended=e == last)), None)


def test_asha_compares_at_a_third_and_not_at_the_last_epoch() -> None:
    scheduler = Scheduler(RunSettings())
    assert stopped_at(scheduler, 0, 0.5) is None
    assert stopped_at(scheduler, 1, 0.4) == 6
    scheduler = Scheduler(RunSettings())
    curves = {0: [0.2] * 5 + [0.4] * 12 + [0.9], 1: [0.1] * 5 + [0.3] * 13, 2: [0.1] * 5 + [0.5] * 13}
    stops = {
        number: [
            epoch for epoch, value in enumerate(curve, start=1) if scheduler.report(number, epoch, value, epoch == 18)
        ]
        for number, curve in curves.items()
    }
    assert stops[0] == stops[2] == []
    assert stops[1][0] == 6


@pytest.mark.parametrize(
    ("values", "grace"),
    [
        ({"epochs": 186}, 62),
        ({"epochs": 3}, 2),
        ({"epochs": 186, "grace_epochs": 1}, 1),
        ({"epochs": 186, "scheduler": "hyperband"}, 62),
        ({"epochs": 186, "scheduler": "predictive"}, 2),
        ({"epochs": 186, "scheduler": "pbt"}, 2),
    ],
)
def test_no_trial_is_stopped_before(values: dict[str, object], grace: int) -> None:
    assert RunSettings.from_mapping(values).grace == grace


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("asha", "behind the best of its rung at epoch 6"),
        ("median", "worse than the median of the other trials at epoch 6"),
    ],
)
def test_the_reason_names_the_rule(kind: str, reason: str) -> None:
    scheduler = Scheduler(RunSettings.from_mapping({"scheduler": kind}))
    for number in range(4):
        assert stopped_at(scheduler, number, 0.5) is None
    assert stopped_at(scheduler, 4, 0.1) == 6
    assert scheduler.stop_reason(4, 6) == (reason, None)
