"""Which slices of a volume are kept: those that are trained on, and the sealed test's scope of the paper's Table I."""

from __future__ import annotations

from wmlsearch.data.examine import VolumeFacts

MIN_HEAD = 0.1  # share of the largest slice's head that a slice must show to be kept with `--keep brain`


def choose_kept(facts: VolumeFacts, keep: str) -> list[bool]:
    """Return whether each slice of a volume is kept.

    Args:
        facts: The volume's measures, along the axis of the slices.
        keep: `brain`, `lesion` or `all`: see `PrepareOptions`.
    """
    if keep == "all":
        return [True] * len(facts.head)
    if keep == "lesion":
        return [lesion > 0 for lesion in facts.lesion]
    min_head = MIN_HEAD * max(facts.head)
    return [head >= min_head or lesion > 0 for head, lesion in zip(facts.head, facts.lesion, strict=True)]
