"""Deal the patients that are not sealed into folds, so that each of them is validated by some runs.

A run that has fold f trains on the patients of the other folds and validates on those of fold f.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural

DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class DevelopmentPatient:
    """A patient for training and validation, and what the folds should have alike."""

    name: str
    lesion_load: float  # mean over the patient's scans: ml, or pixels where the size of a pixel is not known
    site: str = ""  # hospital or scanner; "" where it is not known


def deal(
    patients: Sequence[DevelopmentPatient], wanted: int | None, seed: int, first: Collection[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """Return the names of each fold's patients, sorted; no fold where there is to be one validation set.

    The patients of each site are dealt from the highest lesion load to the lowest. Each goes to the fold that has the
    fewest patients of this site; of these, to the one with the fewest patients; of these, to the one with the lowest
    lesion load so far; of these, to the first. Patients without lesions are dealt last, since no Dice can be computed
    in a fold without lesions. In the end folds with more patients come before those with fewer, in a drawn order.

    Args:
        patients: All development patients, in any order.
        wanted: Number of folds. None: `DEFAULT_FOLDS`, or as many as there can be with a lesion in each.
        seed: Seed by which patients of equal lesion load, and folds of equal size, are ordered.
        first: Names of the first fold's patients, where they are chosen; the others are dealt into the other folds.

    Raises:
        InputError: Where fewer than `wanted` folds can have a lesion each.
    """
    dealt = [patient for patient in patients if patient.name not in first]
    possible = sum(patient.lesion_load > 0 for patient in dealt) + bool(first)
    if wanted is not None and wanted > max(1, possible):
        raise InputError(
            f"--folds {wanted}: each fold needs a patient with a lesion, which makes {plural(possible, 'fold')} of "
            f"{plural(len(patients), 'training and validation patient')}; give --folds {max(1, possible)}"
        )
    count = min(wanted or DEFAULT_FOLDS, possible)
    if count < 2:
        return ()
    folds: list[list[DevelopmentPatient]] = [[] for _ in range(count - bool(first))]
    of_site: Counter[tuple[int, str]] = Counter()
    rng = np.random.default_rng(seed)
    for patient in _order(dealt, rng):
        site = patient.site
        ranks = [(of_site[number, site], len(fold), _load(fold), number) for number, fold in enumerate(folds)]
        *_, lowest = min(ranks)
        folds[lowest].append(patient)
        of_site.update([(lowest, site)])
    drawn = [folds[i] for i in rng.permutation(len(folds))]
    ordered = sorted(drawn, key=lambda fold: -len(fold))
    chosen = [[patient for patient in patients if patient.name in first]] if first else []
    return tuple(tuple(sorted(patient.name for patient in fold)) for fold in [*chosen, *ordered])


def _load(patients: Sequence[DevelopmentPatient]) -> float:
    return sum(patient.lesion_load for patient in patients)


def _order(patients: Sequence[DevelopmentPatient], rng: np.random.Generator) -> list[DevelopmentPatient]:
    """Return the patients in the order in which they are dealt."""
    by_name = sorted(patients, key=lambda patient: patient.name)
    drawn = [by_name[i] for i in rng.permutation(len(by_name))]
    return sorted(drawn, key=lambda patient: (patient.lesion_load <= 0, patient.site, -patient.lesion_load))
