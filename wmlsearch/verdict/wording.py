"""The words of the verdict: its sentence, how often the sealed test was opened, leakage, means with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from wmlsearch.data.certificate import OPTIMISTIC, Certificate
from wmlsearch.runs.evaluation import Comparison
from wmlsearch.runs.schema import FolderRecord, SplitCertificate
from wmlsearch.verdict.champion import Candidate
from wmlsearch.verdict.statistics import ALPHA, MIN_PAIRS, NOT_SHOWN, outcome

RATIOS = ("accuracy", "iou", "dice", "precision", "recall")  # the columns of the paper's Table I
# Table I of the paper (mean, standard deviation): 1476 kept slices of its own patients.
PAPER_TABLE = {"accuracy": (0.9963, 0.0004), "iou": (0.5739, 0.01), "dice": (0.7292, 0.008),
               "precision": (0.7592, 0.0088), "recall": (0.7016, 0.009)}  # fmt: skip
PAPER_TABLE_NAME = "the paper's Table I (other data)"


def verdict_sentence(
    comparison: Comparison,
    champion: str,
    baseline: str,
    unit: str = "patients",
    optimistic: bool = False,
) -> str:
    """Return the verdict with its numbers in words.

    Args:
        champion: the subject of the sentence, "The champion configuration (trial-0007)".
        baseline: what it is compared with, "the baseline configuration".
        unit: what the pairs are, "patients" or "images".
        optimistic: slices of one patient can be on both sides of the split; a warning is added.
    """
    pairs, one = comparison.pairs, singular(unit)
    tested = f"{pairs} sealed test {one if pairs == 1 else unit}"
    if pairs == 0:
        text = f"{champion} cannot be compared with {baseline}: no sealed test {one} has Dice for both."
    elif pairs < MIN_PAIRS:
        text = (
            f"{champion} is not shown to be better or worse than {baseline}: {tested} {_be(pairs)} too few, because "
            f"a paired test of fewer than {MIN_PAIRS} cannot reach p < {ALPHA}. "
            f"Mean {_numbers(comparison, one)}"
        )
    else:
        result = outcome(comparison, unit)
        words = "not shown to be better or worse" if result == NOT_SHOWN else result
        text = f"{champion} is {words} than {baseline} on {tested}: mean {_numbers(comparison, one)}"
    if count := comparison.left_out:
        text += f" {count} {one if count == 1 else unit} without Dice for both {_be(count)} left out."
    if optimistic:
        text += " Warning: the split is optimistic, because slices of one patient can be on both sides."
    return text


def _numbers(comparison: Comparison, one: str) -> str:
    text = f"Dice per {one} {comparison.champion:.3f} against {comparison.baseline:.3f}"
    text += f", difference {comparison.difference:+.3f}"
    details = [] if comparison.low is None else [f"95 % interval {comparison.low:.3f} to {comparison.high:.3f}"]
    details += [] if comparison.p is None else [f"p = {comparison.p:.3g}"]
    return f"{text} ({', '.join(details)})." if details else f"{text}."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def singular(unit: str) -> str:
    """Return "patient" for "patients", "image" for "images"."""
    return unit.removesuffix("s")


def openings_note(opened_before: int) -> str:
    """Say how often the sealed test was opened."""
    if not opened_before:
        return "The sealed test was opened for the first time."
    times = "once" if opened_before == 1 else f"{opened_before} times"
    return f"The sealed test had been opened {times} before. Each opening makes its result less reliable."


def optimistic_note(record: FolderRecord) -> str:
    """Say why results on these data look better than they are ("image-level split: optimistic"), or return ""."""
    if not record.data.optimistic:
        return ""
    return (record.certificate.note if record.certificate else None) or OPTIMISTIC


def leakage_note(certificate: Certificate | SplitCertificate) -> str:
    """Say what the check for leakage has found: `480 slices compared: no duplicates across splits`."""
    duplicates = []
    for pair, counts in certificate.duplicates.items():
        if kinds := [f"{count} {kind}" for kind, count in counts.items() if count]:
            first, second = pair.split("/")
            duplicates.append(f"{', '.join(kinds)} of {second} in {first}")
    result = f"duplicates across splits: {'; '.join(duplicates)}" if duplicates else "no duplicates across splits"
    return f"{certificate.compared} slices compared: {result}"


def states_of(candidate: Candidate) -> str:
    """Return how the final runs of a configuration stand: `2 completed, 1 failed`."""
    states = [run.state.replace("_", " ") for run in candidate.runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def mean_sd(values: Sequence[float | None]) -> str:
    """Return `0.7292 ± 0.0080`, mean and standard deviation of the values that are not None, or `-`."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    return f"{statistics.fmean(numbers):.4f}" + (f" ± {statistics.stdev(numbers):.4f}" if len(numbers) > 1 else "")
