"""Find masks that are equal, voxel for voxel, though they belong to different scans: one of them was copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from wmlsearch.data.examine import VolumeFacts
from wmlsearch.data.findings import Finding
from wmlsearch.data.sources import Source


def with_equal_masks(sources: Sequence[Source], facts: Sequence[VolumeFacts]) -> list[VolumeFacts]:
    """Return the facts of all volumes, with a finding for each whose lesion mask is that of another one.

    Args:
        sources: The volumes by the names that may be written: pseudonyms, where patients have some.
        facts: Facts of each volume.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for number, volume in enumerate(facts):
        if volume.lesion_sha256:
            same[volume.lesion_sha256].append(number)
    completed = list(facts)
    for numbers in same.values():
        for number in numbers if len(numbers) > 1 else []:
            other = next(one for one in numbers if one != number)
            name = sources[other].name(sources[other].mask[0])
            both = " and so is the image" if facts[number].voxels_sha256 == facts[other].voxels_sha256 else ""
            text = f"the mask is {name}, voxel for voxel{both}; is one of them copied?"
            finding = Finding("equal masks", text, f"= {name}", len(numbers))
            completed[number] = replace(facts[number], findings=(*facts[number].findings, finding))
    return completed
