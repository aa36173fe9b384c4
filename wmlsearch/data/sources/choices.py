"""The user's choices among the files of a raw data set: `--patient-pattern`, `--select` and `--mask-select`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from wmlsearch.errors import short_repr

ABSENT = "none"  # as a value: the file does not have the entity


@dataclass(frozen=True)
class Choices:
    """What the user has said about the files of a raw data set."""

    patient_pattern: str | None = None  # regular expression that finds the patient in a file name
    select: tuple[str, ...] = ()  # KEY=VALUE, chooses among several images of a scan
    mask_select: tuple[str, ...] = ()  # KEY=VALUE, chooses among several masks of a scan
    names_lesions: bool = False  # the user says which labels of the masks are lesions, so the layout need not

    @property
    def images(self) -> Selection:
        return Selection.parse("--select", self.select)

    @property
    def masks(self) -> Selection:
        return Selection.parse("--mask-select", self.mask_select)


@dataclass(frozen=True)
class Match:
    """How a file fits a selection."""

    explicit: frozenset[str]  # keys whose value the user has named, and the file has
    rank: tuple[int, ...]  # place of the file's value among the named ones, by key; small is better


@dataclass(frozen=True)
class Selection:
    """Properties that a file should have. Several values of one key are alternatives, the first is preferred."""

    option: str  # --select or --mask-select
    wanted: Mapping[str, tuple[str, ...]]  # by key

    @classmethod
    def parse(cls, option: str, texts: Sequence[str]) -> Selection:
        """Read KEY=VALUE, such as `acq=3D`, `acq-3D` or `acq=none`. Expects texts without `selection_faults`."""
        wanted: dict[str, tuple[str, ...]] = {}
        for text in texts:
            key, _, value = text.strip().partition("=")
            key = key.strip().lower()
            wanted[key] = (*wanted.get(key, ()), value.strip())
        return cls(option, wanted)

    def match(self, properties: Mapping[str, str]) -> Match | None:
        """Return how a file with these properties fits; None where it has another value of a key.

        A file without the key fits as well, but less than one with the value: a selection chooses among several files
        of a scan, and where there is nothing to choose it does not empty a scan.
        """
        if self._conflicts(properties):
            return None
        places = {key: self._places(key, properties) for key in self.wanted}
        explicit = frozenset(key for key, fitting in places.items() if fitting)
        return Match(
            explicit, tuple(fitting[0] if fitting else len(self.wanted[key]) for key, fitting in places.items())
        )

    def _places(self, key: str, properties: Mapping[str, str]) -> list[int]:
        return [i for i, one in enumerate(self.wanted[key]) if _fits(key, one, properties.get(key, ""))]

    def _conflicts(self, properties: Mapping[str, str]) -> list[str]:
        """Return the keys of which a file has a value that is not asked for."""
        return [key for key in self.wanted if properties.get(key) and not self._places(key, properties)]

    def more(self, properties: Mapping[str, str]) -> str:
        """Return the options that have to be added, as alternatives, for a file that does not fit."""
        return " ".join(option_text(self.option, key, properties[key]) for key in self._conflicts(properties))

    def arguments(self) -> str:
        """Return the selection as it is written on the command line."""
        return " ".join(option_text(self.option, key, value) for key, values in self.wanted.items() for value in values)


def option_text(option: str, key: str, value: str) -> str:
    """Return `--select KEY=VALUE` quoted for a shell; a file without the key has the value `none`."""
    return f"{option} {key}={shlex.quote(value or ABSENT)}"


def selection_faults(option: str, texts: Sequence[str]) -> list[str]:
    """Return a line for each text that is not KEY=VALUE."""
    return [
        f"{option} must be KEY=VALUE, such as {'acq=3D' if option == '--select' else 'desc=rater1'}, "
        f"but got {short_repr(text)}"
        for text in texts
        if not re.fullmatch(r"\s*[A-Za-z0-9]+\s*=\s*\S.*", text)
    ]


def same_value(a: str, b: str) -> bool:
    """Whether two values of an entity are the same: numbers by their value (run-1, run-01), case aside."""
    if a.isdecimal() and b.isdecimal():
        return int(a) == int(b)
    return a.casefold() == b.casefold()


def _fits(key: str, wanted: str, value: str) -> bool:
    if not value:
        return wanted.casefold() == ABSENT
    if key == "name":
        return fnmatchcase(value, wanted)
    if key in ("derivative", "folder"):  # several folders, one in the other, or one of them
        return same_value(wanted, value) or any(same_value(wanted, part) for part in value.split("/"))
    return same_value(wanted, value)
