"""Lesions outside the window that is cut out: what is said of one volume, and of a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wmlsearch.data.findings import Finding, NamedFinding, volumes_and_values, worst_first
from wmlsearch.data.labels import LESION
from wmlsearch.runs.wording import percent

if TYPE_CHECKING:
    from wmlsearch.data.cutting import CutSlices

KIND = "lesions cut off"
CHECK = "they lie outside the head, which --fit resize shows whole: check the masks"


def cut_off(slices: CutSlices, fit: str) -> tuple[Finding, ...]:
    """Return a warning where lesions of a volume lie outside its window.

    Args:
        slices: All slices of the volume that have lesions.
        fit: How the window was placed, crop or resize.
    """
    lost = int(slices.lost.sum())
    if not lost:
        return ()
    total = lost + int((slices.masks == LESION).sum())
    size = slices.images.shape[-1]
    share = percent(lost / total)
    advice = CHECK if fit == "resize" else f"--size {slices.size_needed} would lose none"
    text = f"the window of {size} x {size} pixels cuts off {lost} of {total} lesion pixels ({share}); {advice}"
    return (Finding(KIND, text, share, lost / total),)


def cut_off_line(lost: int, total: int, findings: Sequence[NamedFinding], fit: str, size: int, needed: int) -> str:
    """Return the warning of a data set that has lesion pixels outside its windows.

    Args:
        lost: Lesion pixels outside the windows.
        total: All lesion pixels.
        findings: One finding per volume with such pixels, including sealed volumes.
        fit: How the windows were placed, crop or resize.
        size: Edge of the windows in pixels.
        needed: The size whose windows would lose none; 0 in older data, which do not hold it.
    """
    if fit == "resize":
        advice = CHECK
    else:
        advice = f"take --size {needed}, which loses none, or " if needed else f"take a bigger --size than {size}, or "
        advice += "--fit resize"
    who = f": {volumes_and_values(worst_first(findings))}" if findings else ""
    return f"the window cuts off {lost} of {total} lesion pixels ({percent(lost / total)}){who}; {advice}"
