"""Evaluation on the sealed test: models scored on the test patients, in two scopes that are never mixed.

Whole volumes are predicted on the input's own grid, lesion-free slices included. Kept slices are the scope of the
paper's Table I. Counts are added up and divided once (see `scores`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wmlsearch.data.cutting import cut, expert_mask, restore
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.head_detection import Box, find_head
from wmlsearch.data.head_grey import has_head_grey
from wmlsearch.data.manifest import PREPARE_AGAIN, Manifest
from wmlsearch.data.sealed_test import Opener, SealedTest, check_sealed_test, open_sealed_test
from wmlsearch.errors import InputError
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing
from wmlsearch.inference.predictor import BATCH, HERE, Predictions, mean_probabilities
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry, spacing_fault
from wmlsearch.inference.trained_model import TrainedModel, common_preprocessing
from wmlsearch.runs.evaluation import (
    SCOPES,
    SLICES,
    VOLUMES,
    EvaluatedData,
    Evaluation,
    Gallery,
    MaskScores,
    ModelScores,
    NetworkScores,
    RowOrigin,
    RowScores,
    Scope,
    ScopeScores,
    UnitScores,
)
from wmlsearch.runs.progress import Progress
from wmlsearch.verdict.gallery import GalleryBuilder
from wmlsearch.verdict.scores import pooled, score

HALF = 0.5  # the paper's threshold, at which nothing is done with the predictions afterwards
# Scores of a unit that are averaged over its volumes or slices; all others follow from its summed counts.
AVERAGED: dict[Scope, tuple[str, ...]] = {
    VOLUMES: (
        "hd95_mm", "volume_ml", "expert_volume_ml", "volume_error_ml", "volume_error_relative", "volume_error_abs_ml",
    ),
    SLICES: ("hd95_px",),
}  # fmt: skip
Unit = Literal["patients", "images"]
Networks = Mapping[str, Sequence[TrainedModel]]  # by role, one for each run


def evaluate(
    models: Networks,
    data: Path,
    by: Opener,
    ensemble_thresholds: Mapping[str, float] | None = None,
    progress: Progress = lambda *_: None,
    predictions: Predictions = HERE,
) -> tuple[Evaluation, Gallery]:
    """Open the sealed test of a prepared data set and score models on its patients.

    Args:
        models: The networks of each role, one for each run; figures show the first. The mean probability of several
            is scored as an ensemble, at its threshold in `ensemble_thresholds` (default: the mean of theirs).
        data: The prepared data set. It may be sliced in another way than the models' own if it holds whole volumes:
            these are sliced again, and in another plane its rule says which slices are kept.
        by: Who opens the test; the data set's ledger records it.
        progress: Called after each volume, or each batch of slices.
        predictions: Where the networks predict. Images are opened and scored in this process.

    Raises InputError for data that are damaged or do not fit the models; the latter before the test is opened.
    """
    networks = [model for members in models.values() for model in members]
    preprocessing = common_preprocessing(networks)
    manifest = check_sealed_test(data)
    _check_preprocessing(data, manifest, preprocessing)
    _check_spacing(data, manifest, preprocessing)
    _check_neighbours(data, manifest, networks)
    _check_head_grey(data, manifest, networks)
    sealed = open_sealed_test(data, by)
    unit: Unit = "patients" if sealed.by_patient else "images"
    thresholds = ensemble_thresholds or {}
    scorers = {role: _scorers(role, members, thresholds.get(role)) for role, members in models.items()}
    gallery = GalleryBuilder(list(models))
    predictor = _Predictor(models, predictions)
    if manifest.has_volumes:
        _score_volumes(sealed, preprocessing, predictor, scorers, gallery, progress)
    else:
        _score_slices(sealed, predictor, scorers, gallery, progress)
    evaluation = Evaluation(
        opened=sealed.opened,
        opened_before=sealed.opened_before,
        data=EvaluatedData(
            path=str(data.resolve()),
            fingerprint=Manifest.read(data).fingerprint,
            optimistic=manifest.optimistic,
        ),
        unit=unit,
        scope=VOLUMES if manifest.has_volumes else SLICES,
        models={role: _model_scores(its_scorers, unit) for role, its_scorers in scorers.items()},
    )
    return evaluation, gallery.gallery()


def _check_preprocessing(data: Path, manifest: Manifest, preprocessing: Preprocessing) -> None:
    """Refuse test slices that are not sliced as the models expect. Whole volumes are sliced for them."""
    same = (manifest.axis, manifest.size, manifest.fit) == (preprocessing.axis, preprocessing.size, preprocessing.fit)
    if not (preprocessing.axis is not None if manifest.has_volumes else same):
        raise InputError(
            f"{data}: its test slices are {manifest.size} pixels wide ({manifest.plane}, fit {manifest.fit}), but the "
            f"models were trained on {preprocessing.size} ({preprocessing.plane}, fit {preprocessing.fit}); prepare it "
            "with the same options"
        )


def _check_spacing(data: Path, manifest: Manifest, preprocessing: Preprocessing) -> None:
    """Refuse test volumes whose voxels are too large or too small in the models' plane, by the stored headers."""
    if preprocessing.axis is None or not manifest.has_volumes:
        return
    of_volumes = (
        spacing_fault(volume.source, volume.picture_mm_along(preprocessing.axis), preprocessing)
        for volume in manifest.volumes
    )
    if faults := [fault for fault in of_volumes if fault]:
        raise InputError(f"{data}: some of its test volumes cannot be cut as the models expect", faults)


def _check_neighbours(data: Path, manifest: Manifest, networks: Sequence[TrainedModel]) -> None:
    """Refuse single test slices for models that need whole volumes."""
    needing = [model.name for model in networks if model.needs_whole_volumes]
    if needing and not manifest.has_volumes:
        raise InputError(
            f"{data}: {needing[0]} needs the whole scan of each slice, but these data are "
            f"{'2-D pictures' if manifest.axis is None else 'split by image'}; evaluate it on volumes that are split "
            "by patient"
        )


def _check_head_grey(data: Path, manifest: Manifest, networks: Sequence[TrainedModel]) -> None:
    """Refuse single test slices without the grey values of the head for models that see z-scores."""
    needing = [model.name for model in networks if model.config.intensity == "zscore"]
    if needing and not manifest.has_volumes and not has_head_grey(manifest):
        raise InputError(
            f"{data}: {needing[0]} sees z-scores (intensity=zscore), but these data were prepared by an older version, "
            f"which did not record the grey values of the head; {PREPARE_AGAIN}"
        )


@dataclass(frozen=True)
class _Probabilities:
    """The probabilities of a role's networks, (N, H, W) float32 each."""

    final: list[np.ndarray]  # with the mirror averaging of the model
    plain: list[np.ndarray]  # without it


class _Predictor:
    """Predicts with the networks of all roles, and where they average mirrored predictions also without that."""

    def __init__(self, models: Networks, predictions: Predictions) -> None:
        self.models, self.predictions = models, predictions
        self.plain: Networks = {
            role: [_without_mirroring(model) for model in role_models] for role, role_models in models.items()
        }

    def probabilities(self, images: np.ndarray, head_grey: Sequence[tuple[float, float]]) -> dict[str, _Probabilities]:
        """Return the probabilities of each role for slices (N, H, W). All networks are asked for at once."""
        all_models = [
            model
            for models_by_role in (self.models, self.plain)
            for members in models_by_role.values()
            for model in members
        ]
        different = list({id(model): model for model in all_models}.values())
        predicted = self.predictions.probabilities(different, images, head_grey)
        by_model = {id(model): one for model, one in zip(different, predicted, strict=True)}
        return {
            role: _Probabilities(
                *(
                    [by_model[id(model)] for model in models_by_role[role]]
                    for models_by_role in (self.models, self.plain)
                )
            )
            for role in self.models
        }


def _without_mirroring(model: TrainedModel) -> TrainedModel:
    """Return the model without postprocessing; the model itself if it averages no mirrored predictions."""
    return replace(model, postprocessing=NO_POSTPROCESSING) if model.postprocessing.mirror_averaging else model


class _Scorer:
    """Collects the scores of one network (`member`: its place among the role's), or of their ensemble (None)."""

    def __init__(
        self,
        name: str,
        seed: int | None,
        threshold: float,
        member: int | None,
        fold: int | None = None,
        postprocessing: Postprocessing = NO_POSTPROCESSING,
    ) -> None:
        self.name, self.seed, self.threshold, self.member, self.fold = name, seed, threshold, member, fold
        self.postprocessing = postprocessing
        self.rows: dict[Scope, list[RowScores]] = {}
        self.half: dict[Scope, list[MaskScores]] = {}

    def probabilities(self, networks: _Probabilities) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities to score, (N, H, W): as the model predicts, and without mirror averaging.

        Both are the same array where nothing is mirrored.
        """
        final = self._of(networks.final)
        return final, self._of(networks.plain) if self.postprocessing.mirror_averaging else final

    def _of(self, networks: Sequence[np.ndarray]) -> np.ndarray:
        return networks[self.member] if self.member is not None else mean_probabilities(networks)

    def masks(self, final: np.ndarray, plain: np.ndarray, voxel_ml: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the masks of a volume, or of slices without `voxel_ml`: the model's, and as the paper's at 0.5.

        The second is without any postprocessing.
        """
        return self.postprocessing.finish(final >= self.threshold, voxel_ml), plain >= HALF

    def add(
        self,
        scope: Scope,
        origin: RowOrigin,
        masks: tuple[np.ndarray, np.ndarray],
        expert: np.ndarray,
        voxel_mm: Sequence[float] | None,
        farthest: float,
        voxel_ml: float | None = None,
    ) -> None:
        """Score the masks of one volume (i, j, k), or of one slice (1, H, W) without `voxel_mm`."""
        scores, half = (score(mask, expert, voxel_mm, farthest, voxel_ml) for mask in masks)
        self.rows.setdefault(scope, []).append(RowScores.model_validate({**origin.as_json(), **scores.as_json()}))
        self.half.setdefault(scope, []).append(half)

    def scores(self, unit: Unit) -> NetworkScores:
        scopes = {
            scope: ScopeScores(
                pooled=pooled(self.rows[scope]),
                pooled_half=pooled(self.half[scope]),
                units=_unit_scores(self.rows[scope], scope, unit),
                rows=self.rows[scope],
            )
            for scope in SCOPES
            if scope in self.rows
        }
        return NetworkScores.model_validate(
            {
                "name": self.name,
                "seed": self.seed,
                "threshold": self.threshold,
                **asdict(self.postprocessing),
                "fold": self.fold,
                **scopes,
            }
        )


def _scorers(role: str, members: Sequence[TrainedModel], ensemble_threshold: float | None) -> list[_Scorer]:
    """Return a scorer for each network, and one for the ensemble of several."""
    scorers = [
        _Scorer(model.name, model.seed, model.threshold, place, model.fold, model.postprocessing)
        for place, model in enumerate(members)
    ]
    if len(members) > 1:
        threshold = ensemble_threshold or statistics.fmean(model.threshold for model in members)
        scorers.append(_Scorer(f"{role} ensemble", None, threshold, None, postprocessing=members[0].postprocessing))
    return scorers


def _model_scores(scorers: Sequence[_Scorer], unit: Unit) -> ModelScores:
    ensemble = next((scorer for scorer in scorers if scorer.member is None), None)
    return ModelScores(
        members=[scorer.scores(unit) for scorer in scorers if scorer.member is not None],
        ensemble=ensemble.scores(unit) if ensemble else None,
    )


def _unit_scores(rows: Sequence[RowScores], scope: Scope, unit: Unit) -> list[UnitScores]:
    """Return the scores of each patient (counts of all time points added up), or of each image."""
    groups: dict[str, list[RowScores]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.patient if unit == "patients" else _image_name(number), []).append(row)
    units = []
    for name, group in groups.items():
        means = {metric: _mean([row.value(metric) for row in group]) for metric in AVERAGED[scope]}
        units.append(UnitScores.model_validate({"unit": name, **pooled(group).as_json(), **means}))
    return units


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None


def _image_name(number: int) -> str:
    """Return the name of an image in reports. Its file's name may be a patient's, so only `rows` holds that."""
    return f"image {number + 1:04d}"


def _score_volumes(
    sealed: SealedTest,
    preprocessing: Preprocessing,
    predictor: _Predictor,
    scorers: Mapping[str, Sequence[_Scorer]],
    gallery: GalleryBuilder,
    progress: Progress,
) -> None:
    """Score each test volume on its own grid, and its kept slices in the models' plane and at their size."""
    total = len(sealed.manifest.volumes)
    progress("scoring test volumes", 0, total)
    for done, volume in enumerate(sealed.volumes(preprocessing.axis), 1):
        geometry = slicing_geometry(volume.source, preprocessing, volume.nan_background)
        slices = cut(volume.source, geometry, rule=sealed.manifest.mask_rule)
        expert = expert_mask(volume.source, geometry, sealed.manifest.mask_rule)
        origin = RowOrigin(patient=geometry.patient, timepoint=geometry.timepoint, source=geometry.source)
        farthest_mm, farthest_px = _head_diagonals(slices.images, geometry)
        masks: dict[str, np.ndarray] = {}
        for role, networks in predictor.probabilities(slices.images, geometry.head_grey).items():
            for scorer in scorers[role]:
                final, plain = scorer.probabilities(networks)
                final_on_grid = restore(final, geometry)
                plain_on_grid = final_on_grid if plain is final else restore(plain, geometry)
                on_grid = scorer.masks(final_on_grid, plain_on_grid, geometry.voxel_ml)
                scorer.add(VOLUMES, origin, on_grid, expert, geometry.voxel_mm, farthest_mm, geometry.voxel_ml)
                mask, half = scorer.masks(final, plain, geometry.pixel_ml)
                for index in volume.kept:
                    one = mask[index][None], half[index][None]
                    of_slice = origin.model_copy(update={"index": index})
                    scorer.add(SLICES, of_slice, one, slices.masks[index][None], None, farthest_px)
            masks[role], _ = scorers[role][0].masks(*scorers[role][0].probabilities(networks), geometry.pixel_ml)
        gallery.add(geometry.patient, slices.images, slices.masks, masks, volume.kept)
        progress("scoring test volumes", done, total)


def _head_diagonals(images: np.ndarray, geometry: VolumeGeometry) -> tuple[float, float]:
    """Return the diagonal of the head's box in mm, in the whole volume, and in pixels, in one of its slices.

    Args:
        images: (slices, size, size) uint8, all slices of the volume.
    """
    head = find_head(images)
    inside = np.flatnonzero(head.area)
    depth = int(inside[-1]) + 1 - int(inside[0]) if len(inside) else len(images)
    pixels = _box_diagonal(head.box)
    if geometry.axis is None or geometry.voxel_mm is None or geometry.spacing_mm is None:
        raise ValueError(f"{geometry.source}: is not a volume: its voxels have no size")
    thickness = geometry.voxel_mm[geometry.input_axis(geometry.axis)]
    return math.hypot(pixels * geometry.spacing_mm, depth * thickness), pixels


def _box_diagonal(box: Box) -> float:
    top, left, bottom, right = box
    return math.hypot(bottom - top, right - left)


def _score_slices(
    sealed: SealedTest,
    predictor: _Predictor,
    scorers: Mapping[str, Sequence[_Scorer]],
    gallery: GalleryBuilder,
    progress: Progress,
) -> None:
    """Score the kept test slices: of data that came as images, and of splits by image."""
    kept = sealed.kept_slices()
    rows, images, experts = kept.rows, kept.images, kept.masks
    progress("scoring test slices", 0, len(rows))
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        farthest = [_box_diagonal(find_head(image[None]).box) for image in images[batch]]
        masks: dict[str, np.ndarray] = {}
        for role, networks in predictor.probabilities(images[batch], kept.head_grey[batch]).items():
            for scorer in scorers[role]:
                predicted, half = scorer.masks(*scorer.probabilities(networks), None)
                for place, (row, expert, px) in enumerate(zip(rows[batch], experts[batch], farthest, strict=True)):
                    origin = RowOrigin(patient=row.patient, timepoint=row.timepoint, source=row.source, index=row.index)
                    one = predicted[place][None], half[place][None]
                    scorer.add(SLICES, origin, one, expert[None], None, px)
            masks[role], _ = scorers[role][0].masks(*scorers[role][0].probabilities(networks), None)
        for place, row in enumerate(rows[batch]):
            unit = row.patient if sealed.by_patient else _image_name(start + place)
            gallery.add(unit, images[batch], experts[batch], masks, [place])
        progress("scoring test slices", min(start + BATCH, len(rows)), len(rows))
