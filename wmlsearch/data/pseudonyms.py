"""Pseudonyms: what stands in a prepared data set in the place of patients' ids, scan dates and file names.

They are random, so without the table that joins them with the ids nobody can find one from the other, nor check a
guess. The table is a file of its own that only its owner can read; with the same table a patient has the same pseudonym
in every cohort.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.data.sources import Source
from wmlsearch.runs.files import read_json, write_private

FORMAT = 1


class Pseudonyms:
    """The table in the file `path`, which need not be there yet. Raises InputError where it is none, or open to others.

    What `hide` adds is written by `save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = self._read()
        self._of = dict(self._known)

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        if self.path.is_dir() or (mode := self.path.stat().st_mode & 0o777) & 0o077:
            what = "is a folder" if self.path.is_dir() else f"others can read or change it (mode {mode:03o})"
            step = "name a file" if self.path.is_dir() else f"`chmod 600 {self.path}`"
            raise InputError(f"{self.path}: must be a file that only you can read, but {what}; {step}")
        table = read_json(self.path)
        found = table.get("pseudonyms")
        if (
            table.get("format") != FORMAT
            or not isinstance(found, dict)
            or len(set(map(str, found.values()))) < len(found)
        ):
            raise InputError(f"{self.path}: is no table of pseudonyms (format {FORMAT}), or damaged; name another file")
        return {name: str(pseudonym) for name, pseudonym in found.items()}

    def hide(self, sources: Sequence[Source]) -> list[Source]:
        """The same sources as others may see them: pseudonym, number of the scan, and a file name made of both.

        A source without a patient keeps none, and its file name has a pseudonym of its own. Scans of a patient are
        numbered from 1 in the order given.
        """
        hidden: list[Source] = []
        scans: Counter[str] = Counter()
        for source in sources:
            pseudonym = self._pseudonym(source.patient or source.name(source.image[0]))
            scans[pseudonym] += 1
            folder = Path(pseudonym, str(scans[pseudonym]))
            image, mask = (
                tuple(
                    folder / f"{kind}{f'-{place + 1}' if len(paths) > 1 else ''}{_ending(path)}"
                    for place, path in enumerate(paths)
                )
                for kind, paths in (("image", source.image), ("mask", source.mask))
            )
            timepoint = str(scans[pseudonym]) if source.timepoint else ""
            hidden.append(Source(pseudonym if source.patient else "", timepoint, Path(), image, mask))
        return hidden

    def _pseudonym(self, identity: str) -> str:
        if identity not in self._of:
            taken = set(self._of.values())
            while (made := f"p{secrets.token_hex(4)}") in taken:
                pass
            self._of[identity] = made
        return self._of[identity]

    def save(self) -> None:
        """Write the table, for its owner alone. Raises InputError where another `prepare` has changed it meanwhile."""
        if self._read() != self._known:
            raise InputError(f"{self.path}: was changed while the data were prepared; say it again")
        table = {"format": FORMAT, "pseudonyms": dict(sorted(self._of.items()))}
        write_private(self.path, json.dumps(table, indent=1) + "\n")


def _ending(path: Path) -> str:
    """`.nii.gz`, `.png`: what a file is, without its name."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
