"""Accented letters in file names: one character (composed, as Linux and Windows type them) or two (as macOS may)."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def composed(text: str) -> str:
    """Return a name in Unicode's normal form C, by which names that look the same are equal."""
    return unicodedata.normalize("NFC", text)


def decomposed(text: str) -> str:
    """Return a name in Unicode's normal form D."""
    return unicodedata.normalize("NFD", text)


def same_names(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return which of some names each of the others is, if exactly one of both is spelled alike."""
    of_form: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for place, group in enumerate((names, others)):
        for name in group:
            of_form[composed(name)][place].append(name)
    return {other[0]: name[0] for name, other in of_form.values() if len(name) == len(other) == 1}


def as_on_disk(path: Path) -> Path:
    """Return a path with each part spelled as the file system has it; parts that it does not have stay as they are."""
    if os.path.lexists(path) or str(path).isascii():
        return path
    spelled = Path(path.anchor)
    for part in path.parts[len(spelled.parts) :]:
        name = part
        if not os.path.lexists(spelled / part):
            name = same_names(_list_names(spelled), [part]).get(part, part)
        spelled /= name
    return spelled


def _list_names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except (OSError, ValueError):  # no such folder, one that may not be read, or a name that no folder can have
        return []
