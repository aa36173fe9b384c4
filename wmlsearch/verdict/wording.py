"""How results are put into words: means with their spread, how often the sealed test was opened, leakage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from wmlsearch.data.certificate import OPTIMISTIC

RATIOS = ("accuracy", "iou", "dice", "precision", "recall")
# Table I of the paper (mean, standard deviation): 1476 kept slices of its own patients.
PAPERS = {"accuracy": (0.9963, 0.0004), "iou": (0.5739, 0.01), "dice": (0.7292, 0.008), "precision": (0.7592, 0.0088),
          "recall": (0.7016, 0.009)}  # fmt: skip


def how_often(opened_before: int) -> str:
    """How often the sealed test was opened, in a sentence."""
    if not opened_before:
        return "the sealed test was opened for the first time"
    times = "once" if opened_before == 1 else f"{opened_before} times"
    return f"the sealed test had been opened {times} before: the more often, the less it says"


def optimistic_note(about: Mapping[str, Any]) -> str:
    """Why the results of a run on these data look better than they are: "image-level split: optimistic"; or ""."""
    if not about["data"]["optimistic"]:
        return ""
    return str((about.get("certificate") or {}).get("note") or OPTIMISTIC)


def compared_slices(certificate: Mapping[str, Any]) -> str:
    """What the guard against leakage has found: `480 slices compared: no duplicates across splits`."""
    found = []
    for pair, counts in certificate["duplicates"].items():
        if some := [f"{n} {kind}" for kind, n in counts.items() if n]:
            first, second = pair.split("/")
            found.append(f"{', '.join(some)} of {second} in {first}")
    what = f"duplicates across splits: {'; '.join(found)}" if found else "no duplicates across splits"
    return f"{certificate['compared']} slices compared: {what}"


def mean_sd(values: list[float | None]) -> str:
    """`0.7292 ± 0.0080`: mean and standard deviation; `-` where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.4f}" + (f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else "")
