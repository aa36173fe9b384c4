"""The words of the verdict: its sentence, how often the sealed test was opened, leakage, means with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from wmlsearch.data.certificate import OPTIMISTIC, Certificate
from wmlsearch.runs.evaluation import Comparison, ConfigurationClaim, LesionFree, ModelsClaim
from wmlsearch.runs.schema import FolderRecord, SplitCertificate
from wmlsearch.runs.wording import be, plural, rounded_beside
from wmlsearch.verdict.champion import Candidate
from wmlsearch.verdict.statistics import ALPHA, MIN_PATIENTS, MIN_RUNS, NOT_SHOWN, POWER

RATIOS = ("accuracy", "iou", "dice", "precision", "recall")  # the columns of the paper's Table I
# Table I of the paper (mean, standard deviation): 1476 kept slices of its own patients.
PAPER_TABLE = {"accuracy": (0.9963, 0.0004), "iou": (0.5739, 0.01), "dice": (0.7292, 0.008),
               "precision": (0.7592, 0.0088), "recall": (0.7016, 0.009)}  # fmt: skip
PAPER_TABLE_NAME = "the paper's Table I (other data)"
NOT_SHOWN_WORDS = "not shown to be better or worse"
CHOSEN_BY_THESE_RUNS = (
    "an older version chose the champion by these runs, so they cannot judge it too; a new search trains other runs"
)
_LESION_FREE_WORDS = {"volume_ml": "false volume in ml", "fp": "false pixels", "lesions_false": "false lesions"}
OPTIMISTIC_WARNING = "Warning: the split is optimistic, because slices of one patient can be on both sides."


def configuration_sentence(
    claim: ConfigurationClaim, champion_name: str, optimistic: bool = False, budget_note: str = ""
) -> str:
    """Return claim (a) with its numbers in words. It ends with what this design could have found.

    Args:
        champion_name: The champion's configuration, "trial-0007".
        optimistic: Slices of one patient can be on both sides of the split; a warning is added.
        budget_note: A sentence about the limit on epochs, or "".
    """
    champion = f"the champion configuration ({champion_name})"
    trainings, patients = f"{claim.runs} + {claim.runs} trainings", plural(claim.patients, "sealed test patient")
    if claim.reason:
        text = f"{_capital(champion)} is {NOT_SHOWN_WORDS} than the baseline configuration: {claim.reason}."
        if claim.difference is not None:
            text += f" Mean {_numbers(claim)}."
    else:
        result = NOT_SHOWN_WORDS if claim.outcome == NOT_SHOWN else claim.outcome
        text = f"Trained again on patients like these, {champion} is {result} than the baseline configuration: "
        text += f"mean {_numbers(claim)}, from {trainings} on {patients}."
    if claim.outcome == NOT_SHOWN and claim.low is not None:
        text += f" This does not mean that they are equal: differences from {_range(claim)} remain plausible."
    if count := claim.patients_left_out:
        text += f" {plural(count, 'patient')} without lesions {be(count)} left out."
    if count := claim.runs_left_out:
        text += f" {plural(count, 'training')} {be(count)} left out, because the other configuration has none to match."
    if optimistic:
        text += f" {OPTIMISTIC_WARNING}"
    if budget_note:
        text += f" {budget_note}"
    design = f"{trainings} and {plural(claim.patients, 'patient')}"
    if claim.detectable is not None:
        power = f"a difference of {claim.detectable:.3f} would have been found with {POWER:.0%} probability"
        text += f" With {design}, {power.replace('%', ' %')}."
    else:
        text += f" With {design}, no difference could have been shown."
    return text


def why_no_claim(patients: int, runs: int, se: float | None) -> str:
    """Return why nothing can be claimed about the configurations, or "".

    Args:
        patients: Number of patients with lesions.
        runs: Number of runs of each configuration.
        se: Standard error of the difference, None where it was not computed.
    """
    if patients < MIN_PATIENTS:
        return _too_few_patients(patients)
    if runs == 0:
        return "no fold has a finished training of both"
    if runs < MIN_RUNS:
        return (
            f"{runs} + {runs} trainings are too few, because the spread between trainings needs at least {MIN_RUNS} of "
            "each configuration"
        )
    return "" if se else "the scores do not vary between trainings or patients, so there is nothing to test"


def models_sentence(claim: ModelsClaim) -> str:
    """Return claim (b) with its numbers in words."""
    subject = f"The models that you would use ({claim.what}): the champion's is"
    if claim.pairs < MIN_PATIENTS:
        text = f"{subject} {NOT_SHOWN_WORDS} than the baseline's: {_too_few_patients(claim.pairs)}."
        if claim.difference is not None:
            text += f" Mean {_numbers(claim)}."
    else:
        result = NOT_SHOWN_WORDS if claim.outcome == NOT_SHOWN else claim.outcome
        patients = plural(claim.pairs, "sealed test patient")
        text = f"{subject} {result} than the baseline's: mean {_numbers(claim)}, on {patients}."
    if claim.outcome == NOT_SHOWN:
        text += " This does not mean that they are equal."
    return f"{text} This is about these networks alone: the same configurations, trained again, give others."


def lesion_free_sentence(lesion_free: LesionFree) -> str:
    """Say what the models find in the patients without lesions, who are in no other comparison."""
    parts = [
        f"{_LESION_FREE_WORDS[endpoint.metric]} {endpoint.champion:.3g} with the champion against "
        f"{endpoint.baseline:.3g} with the baseline"
        for endpoint in lesion_free.endpoints
        if endpoint.champion is not None and endpoint.baseline is not None
    ]
    count = lesion_free.patients
    subject = f"{plural(count, 'test patient')} {'has' if count == 1 else 'have'} no lesions, and {be(count)} in"
    text = f"{subject} neither claim. Found in {'it' if count == 1 else 'them'}, as a mean: {'; '.join(parts)}."
    if all(endpoint.p is None for endpoint in lesion_free.endpoints):
        few = f"With fewer than {MIN_PATIENTS} such patients, this" if count < MIN_PATIENTS else "This"
        return f"{text} {few} is not tested."
    return text


def no_verdict_sentence(primary: Comparison, champion_name: str, optimistic: bool = False) -> str:
    """Say why images without known patients give no verdict, with the numbers."""
    text = (
        "There is no verdict, because the patients of the test images are not known: images of one patient are alike, "
        "and a test that takes them for independent calls equal configurations different in most cases."
    )
    if primary.difference is not None:
        text += (
            f" Mean Dice per image {primary.champion:.3f} for the champion configuration ({champion_name}) against "
            f"{primary.baseline:.3f} for the baseline configuration, difference {primary.difference:+.3f}, on "
            f"{plural(primary.pairs, 'sealed test image')}."
        )
    if count := primary.left_out:
        text += f" {plural(count, 'image')} without lesions {be(count)} left out."
    return f"{text} {OPTIMISTIC_WARNING}" if optimistic else text


def _too_few_patients(patients: int) -> str:
    if patients == 0:
        return "no sealed test patient has lesions"
    return (
        f"{plural(patients, 'sealed test patient')} with lesions {be(patients)} too few, because a test of fewer than "
        f"{MIN_PATIENTS} in pairs cannot reach p < {ALPHA}"
    )


def _numbers(claim: ConfigurationClaim | ModelsClaim) -> str:
    text = f"Dice per patient {claim.champion:.3f} against {claim.baseline:.3f}, difference {claim.difference:+.3f}"
    if claim.low is None or claim.p is None:
        return text
    p = "p < 0.001" if claim.p < 0.001 else f"p = {rounded_beside(claim.p, ALPHA, '.2g')}"
    return f"{text} (95 % interval {_range(claim)}, {p})"


def _range(claim: ConfigurationClaim | ModelsClaim) -> str:
    return " to ".join(rounded_beside(bound or 0.0, 0, ".3f") for bound in (claim.low, claim.high))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


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
    where = {"fold/fold": "of one fold in another", "fold/test": "of test in a fold"}
    for pair, counts in certificate.duplicates.items():
        if kinds := [f"{count} {kind}" for kind, count in counts.items() if count]:
            first, second = pair.split("/")
            duplicates.append(f"{', '.join(kinds)} {where.get(pair, f'of {second} in {first}')}")
    parts = "splits and folds" if certificate.folds else "splits"
    result = f"duplicates across {parts}: {'; '.join(duplicates)}" if duplicates else f"no duplicates across {parts}"
    return f"{plural(certificate.compared, 'slice')} compared: {result}"


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
