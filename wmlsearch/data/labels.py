"""What the values of a mask mean: which are lesions, and which voxels are left out of training and every score.

Stored masks hold `BACKGROUND`, `LESION` and `IGNORED`. The truth of an ignored voxel is not known, or does not matter:
other pathology in the WMH Segmentation Challenge (Kuijf et al. 2019, doi 10.1109/TMI.2019.2905770). As there, it is
taken out of the prediction, too, before anything is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wmlsearch.data.stack import Array, MaskLabels, VolumeFault

BACKGROUND, LESION, IGNORED = 0, 1, 2  # of stored masks
MAX_LABELS = 50  # whole numbers in a mask that are taken for labels; masks with more are probabilities or grey values
MAX_NAMED_LABELS = 256  # the same where options name labels: atlases have hundreds
NEAR_LABEL = 1e-3, 1e-6  # absolute, relative: a scale in the header, or resampling, leaves labels beside whole numbers
LISTED = 12  # labels in a message, at most
TRUE_VALUES = {1.0, 255.0}  # both mean lesion in 8-bit masks


@dataclass(frozen=True)
class LabelledMask:
    """A mask as read by a `MaskRule`."""

    lesion: Array  # bool
    ignored: Array | None  # bool; None where nothing is ignored
    labels: MaskLabels | None  # None where the values are no labels


@dataclass(frozen=True)
class MaskRule:
    """Which values of raw masks are lesions, and which are ignored.

    Ignored labels are taken out first. Of the other values those above `threshold`, or the `lesion_labels`, are lesions
    and the rest is background. With neither, all values but 0 are lesions, and the masks of a data set may hold only
    one of them (see `label_fault`).
    """

    threshold: float | None = None
    lesion_labels: tuple[float, ...] = ()
    ignore_labels: tuple[float, ...] = ()

    def faults(self) -> list[str]:
        """Return a line for each fault of the options."""
        faults = []
        if self.threshold is not None and not math.isfinite(self.threshold):
            faults.append(f"--mask-threshold must be a finite number, but got {self.threshold}")
        for option, labels in (("--lesion-label", self.lesion_labels), ("--ignore-label", self.ignore_labels)):
            if wrong := [label for label in labels if not math.isfinite(label) or label != int(label) or label == 0]:
                faults.append(
                    f"{option} must be a whole number other than 0, which is background, but got {_listed(wrong)}"
                )
        if both := sorted(set(self.lesion_labels) & set(self.ignore_labels)):
            faults.append(f"--lesion-label and --ignore-label must differ, but both name {_listed(both)}; drop one")
        if self.threshold is not None and self.lesion_labels:
            faults.append("--mask-threshold and --lesion-label both say which values are lesions; drop one")
        return faults

    def read(self, mask: Array, name: str) -> LabelledMask:
        """Return which voxels of a mask are lesions and which are ignored.

        Args:
            mask: Values as stored.
            name: File name for messages.

        Raises:
            VolumeFault: For values that are not finite, values that no option explains, or no background.
        """
        if not np.isfinite(mask).all():
            raise VolumeFault(
                f"{name}: every voxel must be a finite number, but the mask has NaN or infinite ones; correct the mask"
            )
        labels = _whole_labels(mask)
        values, voxels = np.unique(labels, return_counts=True)
        limit = MAX_NAMED_LABELS if self.lesion_labels or self.ignore_labels else MAX_LABELS
        are_labels = len(values) <= limit and not (values % 1).any()
        is_ignored = np.isin(values, self.ignore_labels)
        if self.threshold is None:
            self._check_values(name, values, are_labels, self._lesion(values), is_ignored)
        of_labels = [(float(value), int(n)) for value, n in zip(values, voxels, strict=True) if value != 0]
        ignored = np.isin(labels, self.ignore_labels) if is_ignored.any() else None
        lesion = self._lesion(labels) if self.threshold is None else _above(mask, self.threshold)
        return LabelledMask(
            lesion=lesion if ignored is None else lesion & ~ignored,
            ignored=ignored,
            labels=MaskLabels(name, tuple(of_labels)) if are_labels else None,
        )

    def _check_values(self, name: str, values: Array, are_labels: bool, is_lesion: Array, is_ignored: Array) -> None:
        """Raise VolumeFault for values of a mask that the rule does not explain, and masks without background.

        Args:
            name: File name for messages.
            values: Values of the mask, ascending, each once.
            are_labels: Whether the values are few whole numbers.
            is_lesion: Which of the values are lesion.
            is_ignored: Which of the values are ignored.
        """
        if not are_labels and (self.lesion_labels or self.ignore_labels):
            option = "--lesion-label" if self.lesion_labels else "--ignore-label"
            raise VolumeFault(
                f"{name}: holds {len(values)} values, no labels ({_first(values)}), so {option} does not fit; give "
                "--mask-threshold T instead to take every value above T as lesion"
            )
        if is_lesion.sum() > 1 and not self.lesion_labels and not are_labels:
            raise VolumeFault(
                f"{name}: a mask must hold 0 and one other value, but holds {_first(values)}; "
                "give --mask-threshold T to take every value above T as lesion"
            )
        if not (is_lesion | is_ignored).all() or (is_lesion.any() and is_ignored.any()):
            return
        if self.lesion_labels or len(values) == 1:
            raise VolumeFault(
                f"{name}: a mask must have background, but every voxel is {_first(values)}; replace the mask"
            )
        raise VolumeFault(
            f"{name}: a mask must have background, which is 0, but holds {_first(values)}; if one of them is the "
            f"background, name the lesions by --lesion-label (such as --lesion-label {values[-1]:g})"
        )

    def _lesion(self, values: Array) -> Array:
        """Return which values of a mask are lesion without a threshold, bool of their shape."""
        if self.lesion_labels:
            return np.isin(values, self.lesion_labels)
        return np.asarray(values != 0) & ~np.isin(values, self.ignore_labels)

    def label_fault(self, masks: Sequence[MaskLabels]) -> str | None:
        """Return why the lesions of a data set's masks are not known: they hold several labels that no option names.

        A label that stands alone in a file counts as well, since a patient may have nothing but the label that another
        patient's mask has beside the lesions. 1 and 255 in different files are both how 8-bit masks say lesion.
        """
        if self.threshold is not None or self.lesion_labels:
            return None
        held = [{label for label, _ in mask.voxels} - set(self.ignore_labels) for mask in masks]
        labels = set().union(*held)
        if len(labels) < 2 or (labels == TRUE_VALUES and max(map(len, held)) == 1):
            return None
        example = " (as in the WMH challenge: --lesion-label 1 --ignore-label 2)" if labels == {1.0, 2.0} else ""
        return (
            f"the masks hold {label_counts(masks)} beside the background 0; give --lesion-label L for each label that "
            "is lesion, and --ignore-label L for each that is to be left out of training and scores, neither lesion "
            f"nor background{example}; labels without an option become background. Or give --mask-threshold T to take "
            "every value above T as lesion (0 where lesions are numbered)"
        )

    def notes(self, files_with: dict[str, int]) -> tuple[str, ...]:
        """Return notes on labels that no option names, and on options that no mask fits.

        Args:
            files_with: Number of masks with each label.
        """
        notes = []
        labels = {float(label): files for label, files in files_with.items()}
        if self.threshold is not None:
            lesion = [label for label in labels if label > self.threshold and label not in self.ignore_labels]
            if len(lesion) > 1:
                notes.append(
                    f"--mask-threshold {self.threshold:g} takes the labels {_listed(lesion[:LISTED])} of the masks for "
                    "lesions; if only some of them are, give --lesion-label instead"
                )
        if self.lesion_labels:
            named = {*self.lesion_labels, *self.ignore_labels}
            if others := {label: files for label, files in sorted(labels.items()) if label not in named}:
                what = ", ".join(f"{label:g} (in {files} masks)" for label, files in list(others.items())[:LISTED])
                notes.append(
                    f"labels of the masks that no option names are background: {what}; --ignore-label leaves them out"
                )
        for option, chosen in (("--lesion-label", self.lesion_labels), ("--ignore-label", self.ignore_labels)):
            if absent := [label for label in chosen if label not in labels]:
                notes.append(f"no mask holds {option} {_listed(absent)}")
        return tuple(notes)


def _whole_labels(mask: Array) -> Array:
    """Return a mask whose values beside whole numbers are those numbers: 1.0000002 is 1.

    Values of a mask that are all below one half stay as they are, since none of them would be left.
    """
    if mask.dtype.kind != "f" or not mask.size or not (mask % 1).any() or np.abs(mask).max() < 0.5:
        return mask
    rounded = np.rint(mask)
    return np.where(np.isclose(mask, rounded, rtol=NEAR_LABEL[1], atol=NEAR_LABEL[0]), rounded, mask)


def _above(mask: Array, threshold: float) -> Array:
    """Return which values are above a threshold, bool: the values as stored, since they may be probabilities.

    Whole numbers are labels. Such a label is not above itself where a scale in the header makes it 1.0000002.
    """
    rounding = 0 if threshold % 1 else NEAR_LABEL[1] * abs(threshold)
    return np.asarray(mask > threshold + rounding)


def files_with_label(masks: Iterable[MaskLabels]) -> dict[str, int]:
    """Return how many masks hold each label, ascending, by the label as text."""
    counts = Counter(label for mask in masks for label, _ in mask.voxels)
    return {f"{label:g}": files for label, files in sorted(counts.items())}


def label_counts(masks: Sequence[MaskLabels]) -> str:
    """Return which labels occur in how many masks, or in which one, for a message."""
    parts = []
    files = files_with_label(masks)
    for text, count in list(files.items())[:LISTED]:
        holders = [(mask.file, voxels) for mask in masks for label, voxels in mask.voxels if label == float(text)]
        where = f"in {holders[0][0]}" if count == 1 else f"in {count} of {len(masks)} masks"
        parts.append(f"label {text} {where} ({sum(voxels for _, voxels in holders)} voxels)")
    more = f", ... ({len(files)} labels)" if len(files) > LISTED else ""
    return ", ".join(parts) + more


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _first(values: Array) -> str:
    more = f", ... ({len(values)} values)" if len(values) > 6 else ""
    return _listed(values[:6].tolist()) + more
