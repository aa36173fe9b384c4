"""Typed records of an evaluation on the sealed test: what `test.json` and `test-gallery.npz` of a run folder hold.

A score is a count, a ratio of counts, a distance or a volume. Ratios of overlap and distances are None where the expert
marked no lesion, and are left out of means. On disk a record holds exactly the fields that were set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from wmlsearch.runs.schema import Record

Scope = Literal["whole volumes", "kept slices"]
VOLUMES: Final = "whole volumes"  # every voxel of a test volume on the input's own grid
SLICES: Final = "kept slices"  # the slices that the paper would keep: the scope of its Table I
SCOPES: tuple[Scope, ...] = (VOLUMES, SLICES)
EARLIER_OR_DAMAGED: Final = "was written by an earlier version or is damaged"


class Scores(Record):
    """Counts of voxels (of pixels in slices) and of lesions, and the ratios of these counts.

    Lesions are counted by size, in mm3 where volumes are scored and in pixels where slices are. `found` lesions are the
    expert's lesions with at least one predicted voxel.
    """

    tp: int  # true positives, voxels or pixels
    fp: int
    fn: int
    tn: int
    lesions_expert: int
    lesions_predicted: int
    lesions_found: int  # the expert's lesions that the prediction overlaps
    lesions_false: int  # predicted lesions that overlap none of the expert's
    lesions_under_10_mm3: int | None = None
    found_under_10_mm3: int | None = None
    lesions_10_to_100_mm3: int | None = None
    found_10_to_100_mm3: int | None = None
    lesions_from_100_mm3: int | None = None
    found_from_100_mm3: int | None = None
    lesions_under_10_px: int | None = None
    found_under_10_px: int | None = None
    lesions_10_to_100_px: int | None = None
    found_10_to_100_px: int | None = None
    lesions_from_100_px: int | None = None
    found_from_100_px: int | None = None
    accuracy: float | None
    iou: float | None
    dice: float | None
    precision: float | None
    recall: float | None
    lesion_precision: float | None  # 1 - lesions_false / lesions_predicted
    lesion_recall: float | None  # lesions_found / lesions_expert
    lesion_f1: float | None  # harmonic mean of the two

    @property
    def has_lesions(self) -> bool:
        """Whether the expert marked lesions. Where not, ratios of overlap and distances say nothing."""
        return self.tp + self.fn > 0

    def value(self, name: str) -> float | None:
        """Return the score called `name`, None where it is not a number or was not computed."""
        value: float | None = getattr(self, name)
        return value


class MaskScores(Scores):
    """Scores of a predicted mask against the expert's, with distances and volumes.

    Volumes have the fields in mm and ml, slices those in pixels.
    """

    hd95_mm: float | None = None  # 95th percentile of the Hausdorff distance; None without lesions of the expert
    volume_ml: float | None = None  # predicted lesion volume
    expert_volume_ml: float | None = None
    volume_error_ml: float | None = None  # predicted minus expert
    volume_error_relative: float | None = None  # volume_error_ml / expert_volume_ml
    volume_error_abs_ml: float | None = None
    hd95_px: float | None = None  # mean over the slices in which the expert marked lesions
    hd95_pictures: int | None = None  # the number of those slices
    area_px: int | None = None  # predicted lesion pixels
    expert_area_px: int | None = None
    area_error_px: int | None = None  # predicted minus expert
    area_error_relative: float | None = None


class _UnitName(Record):
    unit: str  # a patient, or "image 0001" where patients are not known


class UnitScores(MaskScores, _UnitName):
    """Scores of one patient or image: counts summed over its rows, distances and volumes averaged over them."""


class RowOrigin(Record):
    """Which volume or slice a row is about."""

    patient: str  # "" where it is not known
    timepoint: str
    source: str  # the FLAIR image, relative to the raw data set
    index: int | None = None  # of the slice in its volume, from 0, in the models' plane; not set for a whole volume


class RowScores(MaskScores, RowOrigin):
    """Scores of one volume or one slice."""


class ScopeScores(Record):
    """The scores of one network in one scope."""

    pooled: Scores  # counts summed over all rows, at the network's own threshold
    pooled_half: Scores  # at the paper's threshold of 0.5, without mirror averaging and with lesions of all sizes
    units: list[UnitScores]
    rows: list[RowScores]


class NetworkScores(Record):
    """The scores of one network, or of the mean probability of an ensemble."""

    name: str  # of the run that trained it, or "<role> ensemble"
    seed: int | None  # None for an ensemble
    threshold: float  # a pixel is lesion at this probability and above; chosen on validation patients
    mirror_averaging: bool = False  # the prediction is averaged with that of the mirrored head
    smallest_lesion_mm3: float = 0.0  # predicted lesions of a smaller volume are removed
    fold: int | None = None  # the fold that its run validated on; None for an ensemble, and in files without folds
    volumes: ScopeScores | None = Field(None, alias=VOLUMES)
    slices: ScopeScores | None = Field(None, alias=SLICES)

    @property
    def has_postprocessing(self) -> bool:
        """Whether more was done with its predictions than to compare them with its threshold."""
        return self.mirror_averaging or self.smallest_lesion_mm3 > 0

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes in which the network was scored."""
        return tuple(scope for scope in SCOPES if self._scores[scope] is not None)

    def scope(self, scope: Scope) -> ScopeScores:
        """Return the scores in a scope. Raises ValueError where the network was not scored in it."""
        scores = self._scores[scope]
        if scores is None:
            raise ValueError(f"{self.name}: has no scores of {scope}")
        return scores

    @property
    def _scores(self) -> dict[Scope, ScopeScores | None]:
        return {VOLUMES: self.volumes, SLICES: self.slices}


class ModelScores(Record):
    """The scores of a model: its networks (one for each run, the best first) and their ensemble."""

    members: Annotated[list[NetworkScores], Field(min_length=1)]
    ensemble: NetworkScores | None  # None for a single network

    @property
    def networks(self) -> list[NetworkScores]:
        """The members, then the ensemble where there is one."""
        return [*self.members, *([self.ensemble] if self.ensemble else [])]


class Comparison(Record):
    """A score of baseline and champion over the same units, in pairs. None is what too few pairs do not give."""

    pairs: int  # units with a score of both
    left_out: int  # units in which a score is missing
    baseline: float | None  # mean over the pairs
    champion: float | None
    difference: float | None  # champion minus baseline
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # of the two-sided test


class _Metric(Record):
    metric: str  # a field of UnitScores


class EndpointComparison(Comparison, _Metric):
    """The comparison in one endpoint of the verdict."""

    p_holm: float | None = None  # corrected for the number of secondary endpoints; not set for the primary one


class ConfigurationClaim(Record):
    """Claim (a), about the configurations: trained again, would the champion's be better on patients like these?

    Counts the spread between runs (seeds and folds) as well as that between patients. None is what too few runs or
    patients do not give.
    """

    outcome: str  # "better", "worse", "not shown", "not shown: too few patients", "not shown: too few runs"
    sentence: str  # the outcome with its numbers and what this design could have found
    reason: str = ""  # why nothing is claimed, where that was so before any test
    runs: int  # of each configuration
    runs_left_out: int = 0  # of both together: runs of a fold of which the other configuration has fewer
    folds: int = 1  # different folds among the runs
    folds_as_block: bool = False  # whether the differences between folds are taken out of the spread between runs
    patients: int  # with lesions
    patients_left_out: int = 0  # without lesions
    baseline: float | None  # mean Dice over runs and patients
    champion: float | None
    difference: float | None  # champion minus baseline
    se: float | None  # standard error of the difference
    df: float | None  # degrees of freedom of t, between those of runs and of patients
    low: float | None  # 95 % interval of the difference
    high: float | None
    p: float | None  # of the two-sided test
    run_sd: float | None  # standard deviation between runs of one configuration, of their mean over all patients
    patient_sd: float | None  # between patients, of the difference
    residual_sd: float | None  # between runs in one patient, beside `run_sd`
    detectable: float | None  # the smallest true difference that is found with 80 % probability


class ModelsClaim(Comparison):
    """Claim (b), about the models that one would use: are these weights better than the baseline's?

    Counts the spread between patients only.
    """

    outcome: str  # "better", "worse", "not shown", "not shown: too few patients"
    sentence: str
    what: str  # "ensembles of 5 networks" or "single networks": what is compared with what


class LesionFree(Record):
    """What the models find in test patients in whom the expert found no lesions. They are in no other endpoint."""

    patients: int
    endpoints: list[EndpointComparison]  # volume and number of the false lesions; without interval and p where too few


class Verdict(Record):
    """Whether the champion is better than the baseline on the sealed test.

    `outcome`, `sentence` and `primary` are those of claim (a). In a file without claims, from before they existed, they
    speak about the trained networks: scores are averaged over seeds, and only the spread between patients counts.
    """

    outcome: str = Field(alias="verdict")  # that of claim (a); "no verdict" where no patient is known
    sentence: str  # the outcome with its numbers
    scope: Scope
    unit: str  # "patients" or "images": what is paired
    primary: EndpointComparison
    secondary: list[EndpointComparison]
    configuration: ConfigurationClaim | None = None  # None where no patient is known, and in old files
    models: ModelsClaim | None = None
    lesion_free: LesionFree | None = None  # None where every test patient has lesions
    budget_note: str = ""  # that the limit on epochs ended final runs, or ""

    @property
    def has_claims(self) -> bool:
        """Whether configurations and models are told apart: not in old files, and not where no patient is known."""
        return self.configuration is not None


class EvaluatedData(Record):
    """The prepared data set whose test patients were scored."""

    path: str
    fingerprint: str
    optimistic: bool  # slices of one patient can be on both sides of the split


class Evaluation(Record):
    """Models scored on sealed test patients: `test.json` of a search or of a single run."""

    FAULT: ClassVar = EARLIER_OR_DAMAGED

    opened: float  # Unix seconds
    opened_before: int = 0  # how often the sealed test had been opened before
    data: EvaluatedData
    unit: Literal["patients", "images"]  # "images" where patients are not known
    scope: Scope  # of the primary endpoint
    models: dict[str, ModelScores]  # by role: "baseline" and "champion" of a search, "model" of a single run
    # Of a search: the configuration of each role, "paper" or "trial-0007", and name and key of each role's runs.
    names: dict[str, str] = Field(default_factory=dict)
    members: list[list[str]] = Field(default_factory=list)
    verdict: Verdict | None = None  # a search
    metrics: dict[str, float] = Field(default_factory=dict)  # a single run: what MLflow shows of it

    @property
    def half_threshold(self) -> str:
        """The threshold of `pooled_half` in words, beside rows with the postprocessing of the models."""
        processed = any(network.has_postprocessing for model in self.models.values() for network in model.networks)
        return "0.5, no postprocessing" if processed else "0.5"

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes in which every model was scored."""
        first = [model.members[0].scopes for model in self.models.values()]
        return tuple(scope for scope in SCOPES if all(scope in scopes for scopes in first))

    def with_verdict(self, names: dict[str, str], members: list[list[str]], verdict: Verdict) -> Evaluation:
        """Return the evaluation of a search, complete."""
        return self.model_copy(update={"names": names, "members": members, "verdict": verdict})

    def with_metrics(self, metrics: dict[str, float]) -> Evaluation:
        """Return the evaluation of a single run, complete."""
        return self.model_copy(update={"metrics": metrics})


class EvaluationMetrics(Record):
    """What MLflow shows of an evaluation: all that `test.json` of a search's model holds, a part of a single run's."""

    FAULT: ClassVar = EARLIER_OR_DAMAGED

    opened: float  # Unix seconds
    metrics: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """The slice with the most lesion of each unit of the sealed test, with the masks of expert and models.

    All arrays are (units, size, size) uint8: images from 0 to 255, predictions 0 or 1, the expert's masks with their
    labels (data/labels.py).
    """

    units: tuple[str, ...]
    images: np.ndarray
    expert: np.ndarray
    predictions: Mapping[str, np.ndarray]  # by role

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the gallery's file, by name."""
        return {"units": np.array(self.units), "images": self.images, "expert": self.expert, **self.predictions}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Gallery:
        """Build the gallery from the arrays of its file. Raises KeyError where one is missing."""
        roles = [name for name in arrays if name not in ("units", "images", "expert")]
        units = tuple(str(unit) for unit in arrays["units"])
        return cls(units, arrays["images"], arrays["expert"], {role: arrays[role] for role in roles})
