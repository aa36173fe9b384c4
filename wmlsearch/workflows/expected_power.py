"""What difference a planned search could find, said before anything is spent."""

from __future__ import annotations

from pathlib import Path

from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.copied_folders import by_key
from wmlsearch.runs.evaluation import ConfigurationClaim
from wmlsearch.runs.folders import SearchDir, list_runs
from wmlsearch.runs.wording import plural
from wmlsearch.verdict.power import ASSUMED, Spread, detectable
from wmlsearch.verdict.statistics import MIN_PATIENTS, MIN_RUNS, POWER


def expected_power(settings: RunSettings, manifest: Manifest, out: Path) -> str:
    """Return which difference claim (a) of the verdict would find, or why there will be none; "" without a verdict.

    The test patients are those that `prepare` has counted, with or without lesions. The sealed test stays closed.

    Args:
        settings: Settings of the planned search.
        manifest: Manifest of the prepared data set.
        out: Folder of earlier searches. Those on the same data say how much results vary.
    """
    if not settings.baseline or not settings.candidate_count:
        return ""
    runs, patients = settings.final_runs, manifest.counts["test"].patients
    if not patients:  # counted as 0 where no patient is known
        return "none, because the patients of the test images are not known"
    design = f"{runs} + {runs} trainings and {plural(patients, 'test patient')}"
    if runs < MIN_RUNS or patients < MIN_PATIENTS:
        return (
            f"{design} cannot show any difference: at least {MIN_RUNS} trainings and {MIN_PATIENTS} patients are needed"
        )
    claims = _earlier_claims(manifest.fingerprint, out)
    spread = Spread.of(claims)
    source = "assumed, as no earlier search on these data has a verdict"
    if spread is not None:
        source = f"as in {len(claims)} earlier search{'' if len(claims) == 1 else 'es'} on these data"
    else:
        spread = ASSUMED
    folds = [run % manifest.fold_count for run in range(runs)]
    difference = detectable(spread.run, spread.patient, spread.residual, folds, patients)
    probability = f"{100 * POWER:.0f} %"
    return (
        f"{design} find a difference of {difference:.3f} in Dice per patient with {probability} probability, if all of "
        f"them have lesions and its standard deviation is {spread.run:.3f} between trainings and {spread.patient:.3f} "
        f"between patients ({source})"
    )


def _earlier_claims(fingerprint: str, out: Path) -> list[ConfigurationClaim]:
    """Return claim (a) of each search in a folder that used these data and knows how much results vary."""
    claims = []
    for search in (copied.latest for copied in by_key(list_runs(out))):
        if not isinstance(search, SearchDir):
            continue
        try:
            evaluation = search.evaluation() if search.record().data.fingerprint == fingerprint else None
        except InputError:  # a damaged folder says nothing
            continue
        claim = evaluation.verdict.configuration if evaluation and evaluation.verdict else None
        if claim is not None and claim.df is not None:  # without it the scores did not vary, or there were too few
            claims.append(claim)
    return claims
