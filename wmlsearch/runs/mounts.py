"""The mounts that a process sees, as Linux lists them in `/proc/self/mountinfo`: proc_pid_mountinfo(5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mount:
    """A line of the list."""

    root: str  # path within the file system, or the hierarchy of control groups, that is mounted
    point: str  # path at which it is mounted
    type: str  # of the file system
    options: tuple[str, ...]  # of the file system, not of this mount


def parse_mounts(text: str) -> Iterator[Mount]:
    """Yield the mounts of a list in its order, in which a later mount at one point hides an earlier one."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) >= 5 and kind:
            yield Mount(_unescape(fields[3]), _unescape(fields[4]), kind[0], tuple(kind[-1].split(",")))


def _unescape(field: str) -> str:
    """Return a path, in which spaces are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
