"""What was found in a raw data set: its volumes, what is not used and why, remarks, and faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wmlsearch.data.sources.source import Source
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural


@dataclass(frozen=True)
class Unused:
    """A file that could have been an image or a mask, but was not taken."""

    name: str  # relative to the data set
    reason: str


@dataclass
class LayoutReport:
    """Collects what a layout has to say beside its sources, so that the user learns everything at once."""

    faults: list[str] = field(default_factory=list)  # nothing is prepared where there are any
    notes: list[str] = field(default_factory=list)  # how something was understood that could be meant otherwise
    unused: list[Unused] = field(default_factory=list)
    unused_note: str = ""  # how many those are, for who does not see them all
    test_patients: list[str] = field(default_factory=list)  # patients that the layout itself keeps for testing
    lesion_labels: tuple[float, ...] = ()  # of the masks, as the layout itself says; empty where it does not
    ignore_labels: tuple[float, ...] = ()
    list_file: str = ""  # the list that names the files, where they are not found by their folders


@dataclass(frozen=True)
class Discovery:
    """The volumes of a raw data set, in natural order, and everything that was found beside them."""

    raw: Path
    layout: str  # such as "a BIDS folder (sub-*/)"
    sources: tuple[Source, ...]
    unused: tuple[Unused, ...]
    unused_note: str  # how many those are, for who does not see them all; "" where a note says it already
    notes: tuple[str, ...]
    faults: tuple[str, ...]
    test_patients: tuple[str, ...]  # that the layout itself keeps for testing
    lesion_labels: tuple[float, ...]  # of the masks, as the layout itself says; empty where it does not
    ignore_labels: tuple[float, ...]

    def check(self) -> Discovery:
        """Return the discovery itself. Raises InputError with all its faults, or its notes where it has no volume."""
        if self.faults:
            raise InputError(f"{self.raw}: {plural(len(self.faults), 'fault')}, nothing was written", self.faults)
        if not self.sources:
            raise InputError(
                f"{self.raw} is read as {self.layout}, but no image with its mask was found there", self.notes
            )
        return self


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
