"""What all tests of the verdict share: their level, how many patients and runs they need, outcomes, Holm's method."""

from __future__ import annotations

import math
from collections.abc import Sequence

ALPHA = 0.05  # level of a test; an interval has 1 - ALPHA
POWER = 0.8  # probability with which a difference is to be found
MIN_PATIENTS = 6  # with 5 pairs even the clearest difference has p = 2 / 2^5 in a sign-flip test, above ALPHA
MIN_RUNS = 2  # of each configuration; a single one says nothing of the spread between runs
BETTER, WORSE, NOT_SHOWN, NO_VERDICT = "better", "worse", "not shown", "no verdict"
TOO_FEW_PATIENTS, TOO_FEW_RUNS = f"{NOT_SHOWN}: too few patients", f"{NOT_SHOWN}: too few runs"


def outcome(low: float | None, high: float | None, p: float | None) -> str:
    """Return `BETTER` or `WORSE` where the interval excludes 0 and p < `ALPHA`, else `NOT_SHOWN`.

    Higher scores are better.
    """
    if low is None or high is None or p is None or p >= ALPHA:
        return NOT_SHOWN
    return BETTER if low > 0 else WORSE if high < 0 else NOT_SHOWN


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979, step down). None and NaN stay and do not count."""
    adjusted = list(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted
