"""The threshold of a configuration, from the predictions of its networks for patients that they were not trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.data.labels import IGNORED
from wmlsearch.data.slices import Slices
from wmlsearch.inference import ensemble
from wmlsearch.inference.ensemble import out_of_fold_threshold
from wmlsearch.inference.predictor import BATCH
from wmlsearch.model.metrics import BINS


def slices_of(*patients: str, lesions: bool = True) -> Slices:
    """One slice of two pixels for each patient; the first pixel is lesion."""
    count = len(patients)
    masks = torch.tensor([[[1, 0]]] * count, dtype=torch.uint8) * lesions
    numbers = torch.arange(count)
    return Slices(torch.zeros(count, 1, 2, dtype=torch.uint8), masks, numbers, numbers, patients)


class Network:
    """Gives the lesion pixel of every slice one probability and the other pixel another one."""

    def __init__(self, fold: int, lesion: float, background: float) -> None:
        self.fold, self.pixels = fold, [lesion, background]
        self.unet, self.config, self.needs_whole_volumes = torch.nn.Identity(), TrialConfig(), False
        self.asked: list[int] = []  # how many slices at a time

    def probabilities(self, images: np.ndarray, _head_grey: object) -> np.ndarray:
        self.asked.append(len(images))
        return np.array([[self.pixels]] * len(images), np.float32)


class Data:
    """One validation set for each fold."""

    def __init__(self, *folds: Slices) -> None:
        self.folds, self.val = folds, folds[0]

    def with_fold(self, fold: int) -> Data:
        place = fold % len(self.folds)
        return Data(*self.folds[place:], *self.folds[:place])

    def with_input_of(self, _config: TrialConfig) -> Data:
        return self


def threshold(networks: list[Network], *folds: Slices) -> float:
    data: Any = Data(*folds)
    models: Any = networks
    return out_of_fold_threshold(models, data)


def test_each_network_is_asked_about_its_own_fold_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dice is 2/3 while both pixels are predicted, 1 with the lesion alone, and 0 with nothing."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(ensemble, "threshold_of_curves", lambda curves, _: seen.append(curves) or 0.25)
    networks = [Network(0, 0.8005, 0.2005), Network(1, 0.6005, 0.4005), Network(2, 0.5005, 0.3005)]
    assert threshold(networks, slices_of("a"), slices_of("b", "c")) == 0.25
    (curves,) = seen
    assert curves.shape == (3, BINS)

    def dice_at(patient: int, hundredths: int) -> float:
        return float(curves[patient][hundredths * 10])

    # a: networks 0 and 2 (fold 2 is fold 0 of two), averaged
    assert [dice_at(0, 15), dice_at(0, 25), dice_at(0, 45), dice_at(0, 70), dice_at(0, 90)] == pytest.approx(
        [2 / 3, (1 + 2 / 3) / 2, 1, 1 / 2, 0]
    )
    for patient in (1, 2):  # b and c: network 1
        assert [dice_at(patient, 15), dice_at(patient, 50), dice_at(patient, 70)] == pytest.approx([2 / 3, 1, 0])


def test_patients_that_agree_set_the_threshold() -> None:
    """All are best from 0.201 to 0.300: the lowest such threshold, which each patient less would choose too."""
    networks = [Network(0, 0.3005, 0.2005), Network(1, 0.3005, 0.2005)]
    assert threshold(networks, slices_of("a", "b"), slices_of("c", "d")) == 0.201


def test_a_patient_without_lesions_has_no_say() -> None:
    networks = [Network(0, 0.3005, 0.2005), Network(1, 0.9005, 0.8005)]
    assert threshold(networks, slices_of("a", "b"), slices_of("c", lesions=False)) == 0.201
    assert threshold(networks[1:], slices_of("a"), slices_of("c", lesions=False)) == 0.5


def test_ignored_pixels_are_in_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pixel counts as background for patient a, and for nothing for patient b: Dice 1 up to 0.8."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(ensemble, "threshold_of_curves", lambda curves, _: seen.append(curves) or 0.25)
    masks = torch.tensor([[[1, 0]], [[1, IGNORED]]], dtype=torch.uint8)
    numbers = torch.arange(2)
    slices = Slices(torch.zeros(2, 1, 2, dtype=torch.uint8), masks, numbers, numbers, ("a", "b"), has_ignored=True)
    threshold([Network(0, 0.8005, 0.6005)], slices)
    assert [float(curve[500]) for curve in seen[0]] == pytest.approx([2 / 3, 1])
    assert [float(curve[700]) for curve in seen[0]] == pytest.approx([1, 1])


def test_networks_of_single_slices_are_asked_for_many_at_a_time() -> None:
    """A data set of pictures has as many volumes as slices."""
    network, slices = Network(0, 0.8005, 0.2005), slices_of(*(f"{number:03}" for number in range(2 * BATCH + 1)))
    threshold([network], slices)
    assert network.asked == [BATCH, BATCH, 1]
    network.asked, network.needs_whole_volumes = [], True
    volumes = torch.arange(len(slices)) // 3
    threshold([network], replace(slices, volumes=volumes))
    assert network.asked == [3] * ((2 * BATCH + 1) // 3)
