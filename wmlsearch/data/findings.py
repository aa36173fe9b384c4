"""What is doubtful about one volume or its mask: notes and warnings that travel from reading to the last page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from wmlsearch.runs.wording import plural

LISTED = 12  # volumes in a line of many, at most
SINGLE = 2  # a kind with at most so many volumes is told in a sentence each


@dataclass(frozen=True)
class Kind:
    """A kind of finding, and what a line says that names many volumes of it."""

    of_many: str  # follows "12 of 34 volumes: "
    is_warning: bool = True  # else a note, which asks for nothing


# The most serious first.
KINDS = {
    "inverted": Kind("the mask covers most of the space outside the head; is it inverted?"),
    "whole head": Kind("the mask covers half of the head or more; is it a mask of the head or the brain?"),
    "outside": Kind("the mask lies outside the head"),
    "large": Kind("the mask covers a tenth of the head or more, which lesions hardly do; is it a mask of lesions?"),
    "flipped": Kind("the lesions are bright only where the mask is turned over; is the mask, or a header, flipped?"),
    "moved": Kind("the lesions are brighter where the mask is moved; is it on another grid, or of another scan?"),
    "dark": Kind(
        "the lesions are not brighter than their surroundings; is the mask of another scan, or the image no FLAIR?"
    ),
    "equal masks": Kind("the mask equals that of another volume, voxel for voxel"),
    "lesions without values": Kind("lesions lie where the image is NaN or infinite; is the image cut off?"),
    "enclosed": Kind("voxels inside the volume that are NaN or infinite are treated as background, as requested"),
    "mask filled": Kind("the mask is finite neither in lesions nor in the head; is it damaged?"),
    "lesions cut off": Kind("lesions lie outside the window that is cut out"),
    "outside the window": Kind("parts of the head lie outside the model's window, where no lesion can be found"),
    "coarse slices": Kind("pixels are coarser than the model's; was it trained on such slices?"),
    "scaled alone": Kind("pictures were scaled by themselves, those of the training data by their whole volumes"),
    "wrapped": Kind("grey values at both ends of the file's number type; did they overflow?"),
    "no orientation": Kind("the header gives no orientation (sform_code and qform_code are 0); check left and right"),
    "two orientations": Kind("the header's sform and qform disagree; check left and right"),
    "units": Kind("the header's unit of length is not mm; check the voxel sizes"),
    "grid": Kind("the mask's grid is not quite its image's"),
    "empty": Kind("the mask is empty", is_warning=False),
    "rim outside the window": Kind("the rim of the head lies outside the model's window", is_warning=False),
    "padding": Kind("a grey value far below all others is treated as padding", is_warning=False),
    "filled": Kind("voxels without a finite value, from the border on, are treated as background", is_warning=False),
}


@dataclass(frozen=True)
class Finding:
    """One doubtful thing about a volume. The text names no file and no patient, so that it holds under a pseudonym."""

    kind: str  # a key of KINDS
    text: str  # a sentence that follows the file's name
    value: str = ""  # the number that tells how bad it is: "48 %"
    severity: float = 0.0  # of two findings of a kind, the larger is worse

    @property
    def is_warning(self) -> bool:
        """Whether the user should look; a note only says what was done."""
        return KINDS[self.kind].is_warning


@dataclass(frozen=True)
class NamedFinding:
    """A finding, and the volume that has it."""

    volume: str  # patient and time point, or the file where they are not known
    file: str
    finding: Finding


class FindingLine(NamedTuple):
    """What the terminal shows of one or more findings of a kind."""

    is_warning: bool
    text: str


def named(volume: str, file: str, findings: Iterable[Finding]) -> list[NamedFinding]:
    """Return the findings of one volume with its name."""
    return [NamedFinding(volume, file, finding) for finding in findings]


def worst_first(findings: Iterable[NamedFinding]) -> list[NamedFinding]:
    """Return findings by kind, the most serious kind first, and in each kind the worst first."""
    order = list(KINDS)
    return sorted(findings, key=lambda row: (order.index(row.finding.kind), -row.finding.severity))


def lines(findings: Iterable[NamedFinding], volumes: int) -> list[FindingLine]:
    """Return the findings of a data set for the terminal.

    A kind that few volumes have is told in a sentence each, another in one line that names the volumes and numbers.

    Args:
        findings: Findings of all volumes.
        volumes: How many volumes the data set has.
    """
    by_kind: dict[str, list[NamedFinding]] = defaultdict(list)
    for row in worst_first(findings):
        by_kind[row.finding.kind].append(row)
    result: list[FindingLine] = []
    for kind, rows in by_kind.items():
        if len(rows) <= SINGLE:
            result += [FindingLine(KINDS[kind].is_warning, f"{row.file}: {row.finding.text}") for row in rows]
            continue
        line = f"{len(rows)} of {plural(volumes, 'volume')}: {KINDS[kind].of_many} ({volumes_and_values(rows)})"
        result.append(FindingLine(KINDS[kind].is_warning, line))
    return result


def volumes_and_values(rows: Sequence[NamedFinding]) -> str:
    """Return the first volumes with their numbers: `01 12 %, 07 3 % and 5 more`."""
    shown = ", ".join(" ".join(part for part in (row.volume, row.finding.value) if part) for row in rows[:LISTED])
    return shown + (f" and {len(rows) - LISTED} more" if len(rows) > LISTED else "")


def about_other_file(findings: Sequence[Finding], what: str) -> list[Finding]:
    """Return findings whose text says that they are about another file of the volume, such as its mask."""
    return [replace(finding, text=f"{what}: {finding.text}") for finding in findings]
