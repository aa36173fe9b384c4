"""The gallery of the sealed test: the slice with the most lesion of each unit, with the masks of expert and models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wmlsearch.data.labels import LESION
from wmlsearch.runs.evaluation import Gallery


class GalleryBuilder:
    """Collects a slice of each unit while the test is scored."""

    def __init__(self, roles: Sequence[str]) -> None:
        self.roles = roles
        self._slices: dict[str, tuple[int, np.ndarray, np.ndarray, dict[str, np.ndarray]]] = {}

    def add(
        self, unit: str, images: np.ndarray, expert: np.ndarray, masks: Mapping[str, np.ndarray], kept: Iterable[int]
    ) -> None:
        """Take the kept slice with the most lesion if it has more than the unit's slice so far.

        Args:
            images: (n, size, size), uint8.
            expert: The expert's mask with its labels (data/labels.py), in this shape.
            masks: The prediction of each role, in this shape.
            kept: The indices of the slices to choose from.
        """
        indices = list(kept)
        if not indices:
            return
        index = max(indices, key=lambda candidate: int((expert[candidate] == LESION).sum()))
        lesion = int((expert[index] == LESION).sum())
        if unit not in self._slices or lesion > self._slices[unit][0]:
            predictions = {role: mask[index].astype(np.uint8) for role, mask in masks.items()}
            self._slices[unit] = lesion, images[index].copy(), expert[index].copy(), predictions

    def gallery(self) -> Gallery:
        """Return the collected slices, in the order in which their units came."""
        if not self._slices:
            empty = np.zeros((0, 0, 0), np.uint8)
            return Gallery((), empty, empty, dict.fromkeys(self.roles, empty))
        _, images, experts, predictions = zip(*self._slices.values(), strict=True)
        return Gallery(
            units=tuple(self._slices),
            images=np.stack(images),
            expert=np.stack(experts),
            predictions={role: np.stack([masks[role] for masks in predictions]) for role in self.roles},
        )
