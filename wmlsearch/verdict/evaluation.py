"""The sealed test: models on the test patients, in two scopes that are never mixed.

Whole volumes are predicted on the input's own grid, lesion-free slices included. Kept slices are what the paper's
Table I is made of. Counts are added up and divided once; what is 0 / 0 is None and left out of every mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmlsearch.config import InputError
from wmlsearch.data.cutting import cut, expert_mask, restore
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sealed_test import SealedTest, check_sealed_test, open_sealed_test
from wmlsearch.inference.predictor import TrainedModel, common_preprocessing, mean_probabilities, slicing_geometry
from wmlsearch.verdict.scores import Score, pooled, score
from wmlsearch.verdict.statistics import Comparison, holm, paired, sentence, verdict

VOLUMES, SLICES = "whole volumes", "kept slices"
HALF = 0.5  # the paper's threshold
AT_ONCE = 64  # slices, of which each network's probabilities are held
# Beside the primary endpoint, Dice: scores of a unit that are compared with Holm's correction.
_OVERLAP = ("precision", "recall", "lesion_precision", "lesion_recall", "lesion_f1")
SECONDARY = {
    VOLUMES: (*_OVERLAP, "hd95_mm", "volume_error_abs_ml"),
    SLICES: (*_OVERLAP, "hd95_px"),
}
_MEASURED = ("hd95_mm", "hd95_px", "volume_ml", "expert_volume_ml", "volume_error_ml", "volume_error_abs_ml")
Progress = Callable[[str, int, int], None]


def evaluate(
    models: Mapping[str, Sequence[TrainedModel]],
    data: Path,
    by: Mapping[str, Any],
    ensemble_thresholds: Mapping[str, float] | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score models on the test patients of a prepared data set: the one door to them. `by` goes into the seal's ledger.

    Args:
        models: for each role its networks, one for each seed; the first is the one that pictures show. Where there are
            several, their mean probability is scored as a model of its own, at its threshold in `ensemble_thresholds`.
        data: the prepared data set. One that the models were not trained on must hold whole volumes.

    Returns:
        What was found, for JSON: `opened`, `opened_before`, `data`, `unit` ("patients", or "images" where no patient is
        known), `scope` (of the primary endpoint), and in `models` for each role `members` and `ensemble`: each with its
        threshold and, for each scope, `pooled` (at its own threshold), `pooled_half` (at 0.5), `units` (a row for each
        patient or image) and `rows` (one for each volume or image).
        And pictures of each unit: `images`, `expert` and, by role, masks, (units, size, size) uint8.

    Raises InputError for data that were not sealed so, are damaged, or can't be cut as the models want, which is known
    before they are opened.
    """
    preprocessing = common_preprocessing([model for members in models.values() for model in members])
    manifest = check_sealed_test(data)
    same = (manifest.axis, manifest.size, manifest.fit) == (preprocessing.axis, preprocessing.size, preprocessing.fit)
    fits = preprocessing.axis is not None if manifest.has_volumes else same  # volumes are cut as the models want
    if not fits:
        raise InputError(
            f"{data}: its test slices are {manifest.size} pixels wide ({manifest.plane}, fit {manifest.fit}), but the "
            f"models were trained on {preprocessing.size} ({preprocessing.plane}, fit {preprocessing.fit}); prepare it "
            "with the same options"
        )
    sealed = open_sealed_test(data, by)
    scored = [
        _Scored(role, place, model.threshold, model.name, model.seed)
        for role, members in models.items()
        for place, model in enumerate(members)
    ]
    for role, members in models.items():
        if len(members) > 1:
            mean = statistics.fmean(model.threshold for model in members)
            scored.append(_Scored(role, None, (ensemble_thresholds or {}).get(role, mean), f"{role} ensemble", None))
    networks = {role: list(members) for role, members in models.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for members in networks.values():
        for model in members:
            model.unet.to(device)
    gallery = _Gallery(list(models))
    (_score_volumes if manifest.has_volumes else _score_slices)(sealed, networks, scored, gallery, progress)
    unit = "patients" if sealed.by_patient else "images"
    found = {
        "opened": sealed.opened,
        "opened_before": sealed.opened_before,
        "data": {
            "path": str(data.resolve()),
            "fingerprint": Manifest.read(data).fingerprint,
            "optimistic": manifest.optimistic,
        },
        "unit": unit,
        "scope": VOLUMES if manifest.has_volumes else SLICES,
        "models": {
            role: {
                "members": [it.result(unit) for it in scored if it.role == role and it.place is not None],
                "ensemble": next((it.result(unit) for it in scored if it.role == role and it.place is None), None),
            }
            for role in models
        },
    }
    return found, gallery.arrays()


class _Scored:
    """One network, or the mean of a role's (`place` None), and the rows of its scores."""

    def __init__(self, role: str, place: int | None, threshold: float, name: str, seed: int | None) -> None:
        self.role, self.place, self.threshold, self.name, self.seed = role, place, threshold, name, seed
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.half: dict[str, list[dict[str, Score]]] = {}

    def of(self, probabilities: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
        """Its own of the probabilities that each role's networks gave."""
        each = probabilities[self.role]
        return each[self.place] if self.place is not None else mean_probabilities(each)

    def add(
        self,
        scope: str,
        about: Mapping[str, Any],
        likely: np.ndarray,
        expert: np.ndarray,
        voxel_mm: Sequence[float] | None,
    ) -> np.ndarray:
        """Score one volume, or one picture (1, rows, columns); returns the mask at its own threshold."""
        found = likely >= self.threshold
        row = score(found, expert, voxel_mm)
        if voxel_mm is not None:
            row["volume_error_abs_ml"] = abs(float(row["volume_error_ml"] or 0.0))
        self.rows.setdefault(scope, []).append({**about, **row})
        self.half.setdefault(scope, []).append(score(likely >= HALF, expert, voxel_mm))
        return np.asarray(found)

    def result(self, unit: str) -> dict[str, Any]:
        scopes = {
            scope: {
                "pooled": pooled(rows),
                "pooled_half": pooled(self.half[scope]),
                "units": _units(rows, unit),
                "rows": rows,
            }
            for scope, rows in self.rows.items()
        }
        return {"name": self.name, "seed": self.seed, "threshold": self.threshold, **scopes}


def _units(rows: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, Any]]:
    """A row for each patient, counts of all time points added up, distances and volumes averaged; or for each image."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for place, row in enumerate(rows):
        name = row["patient"] if unit == "patients" else _image(place)
        groups.setdefault(name, []).append(row)
    units = []
    for name, own in groups.items():
        means: dict[str, Score] = {}
        for key in _MEASURED:
            known = [row[key] for row in own if row.get(key) is not None]
            if key in own[0]:
                means[key] = statistics.fmean(known) if known else None
        units.append({"unit": name, **pooled(own), **means})
    return units


def _image(place: int) -> str:
    """An image's name in reports: that of its file may be a patient's, and stands beside its scores in `rows` only."""
    return f"image {place + 1:04d}"


def _score_volumes(
    sealed: SealedTest,
    networks: Mapping[str, Sequence[TrainedModel]],
    scored: Sequence[_Scored],
    gallery: _Gallery,
    progress: Progress,
) -> None:
    """Each test volume on its own grid, and its kept slices as they are cut for the models."""
    total = len(sealed.manifest.volumes)
    preprocessing = common_preprocessing([model for members in networks.values() for model in members])
    progress("scoring test volumes", 0, total)
    for done, volume in enumerate(sealed.volumes(), 1):
        geometry = slicing_geometry(volume.source, preprocessing)
        slices = cut(volume.source, geometry, mask_threshold=sealed.manifest.mask_threshold)
        expert = expert_mask(volume.source, geometry, sealed.manifest.mask_threshold)
        likely = {role: [model.probabilities(slices.images) for model in members] for role, members in networks.items()}
        about = {"patient": geometry.patient, "timepoint": geometry.timepoint, "source": geometry.source}
        masks: dict[str, np.ndarray] = {}
        for it in scored:
            own = it.of(likely)
            it.add(VOLUMES, about, restore(own, geometry), expert, geometry.voxel_mm)
            for index in volume.kept:
                it.add(SLICES, {**about, "index": index}, own[index][None], slices.masks[index][None], None)
            if it.place == 0:
                masks[it.role] = own >= it.threshold
        gallery.look(geometry.patient, slices.images, slices.masks, masks, volume.kept)
        progress("scoring test volumes", done, total)


def _score_slices(
    sealed: SealedTest,
    networks: Mapping[str, Sequence[TrainedModel]],
    scored: Sequence[_Scored],
    gallery: _Gallery,
    progress: Progress,
) -> None:
    """The kept test slices: of pictures, and of image-level splits."""
    rows, images, masks = sealed.kept_slices()
    progress("scoring test slices", 0, len(rows))
    for first in range(0, len(rows), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        likely = {role: [model.probabilities(images[some]) for model in members] for role, members in networks.items()}
        found: dict[str, np.ndarray] = {}
        for it in scored:
            own = it.of(likely)
            for row, one, mask in zip(rows[some], own, masks[some], strict=True):
                about = {name: getattr(row, name) for name in ("patient", "timepoint", "source", "index")}
                it.add(SLICES, about, one[None], mask[None], None)
            if it.place == 0:
                found[it.role] = own >= it.threshold
        for place, row in enumerate(rows[some]):
            name = row.patient if sealed.by_patient else _image(first + place)
            gallery.look(name, images[some], masks[some], found, [place])
        progress("scoring test slices", min(first + AT_ONCE, len(rows)), len(rows))


class _Gallery:
    """Of each unit the kept slice with most lesion, as it is predicted: for whoever would rather look than read."""

    def __init__(self, roles: Sequence[str]) -> None:
        self.roles = roles
        self.best: dict[str, tuple[int, np.ndarray, np.ndarray, dict[str, np.ndarray]]] = {}

    def look(
        self, unit: str, images: np.ndarray, expert: np.ndarray, masks: Mapping[str, np.ndarray], kept: Iterable[int]
    ) -> None:
        places = list(kept)
        if not places:
            return
        place = max(places, key=lambda index: int(expert[index].sum()))
        load = int(expert[place].sum())
        if unit not in self.best or load > self.best[unit][0]:
            chosen = {role: mask[place].astype(np.uint8) for role, mask in masks.items()}
            self.best[unit] = load, images[place].copy(), expert[place].copy(), chosen

    def arrays(self) -> dict[str, np.ndarray]:
        if not self.best:
            return {}
        shown = list(self.best.values())
        return {
            "units": np.array(list(self.best)),
            "images": np.stack([it[1] for it in shown]),
            "expert": np.stack([it[2] for it in shown]),
            **{role: np.stack([it[3][role] for it in shown]) for role in self.roles},
        }


# ------------------------------------------------------------------------------------------------------ the comparison


def judge(
    found: Mapping[str, Any], baseline: str, champion: str, names: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """The verdict of an evaluation of two roles: the primary endpoint, then the secondary ones with Holm's correction.

    The primary endpoint is the Dice of each unit at the models' own thresholds, averaged over a model's seeds, paired
    over units. `names` says in words who they are.
    """
    scope, unit = found["scope"], found["unit"]
    primary = _compared(found, baseline, champion, "dice", seed)
    others = {name: _compared(found, baseline, champion, name, seed) for name in SECONDARY[scope]}
    corrected = holm([it.p for it in others.values()])
    return {
        "verdict": verdict(primary, unit),
        "sentence": sentence(
            primary, names[champion], names[baseline], unit=unit, optimistic=bool(found["data"]["optimistic"])
        ),
        "scope": scope,
        "unit": unit,
        "primary": {"metric": "dice", **asdict(primary)},
        "secondary": [
            {"metric": name, **asdict(it), "p_holm": p} for (name, it), p in zip(others.items(), corrected, strict=True)
        ],
    }


def unit_means(found: Mapping[str, Any], role: str, metric: str) -> dict[str, float | None]:
    """A metric of each unit, averaged over the role's seeds in which it is a number; None where it is in none."""
    values: dict[str, list[float]] = {}
    for member in found["models"][role]["members"]:
        for row in member[found["scope"]]["units"]:
            its = values.setdefault(row["unit"], [])
            if row.get(metric) is not None:
                its.append(row[metric])
    return {unit: statistics.fmean(its) if its else None for unit, its in values.items()}


def _compared(found: Mapping[str, Any], baseline: str, champion: str, metric: str, seed: int) -> Comparison:
    theirs, ours = (unit_means(found, role, metric) for role in (baseline, champion))
    return paired(list(theirs.values()), [ours[unit] for unit in theirs], seed)
