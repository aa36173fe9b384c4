"""Pseudonyms, which replace patients' ids, scan dates and file names in a prepared data set.

Pseudonyms are random: without the table that maps ids to them, nobody can find one from the other or check a guess.
The table is a separate file that only its owner can read. With the same table a patient has the same pseudonym in every
cohort.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.runs.files import read_json, write_private

FORMAT = 1


class PseudonymTable:
    """The table in the file `path`, which may not exist yet. `save` writes what `rename` has added.

    Raises:
        InputError: Where the file is not a table, or others can read it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = self._read()
        self._pseudonyms = dict(self._saved)  # by patient's id, or by file where the patient is not known

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        if self.path.is_dir():
            raise InputError(f"{self.path}: must be a file that only you can read, but is a folder; name a file")
        if (mode := self.path.stat().st_mode & 0o777) & 0o077:
            raise InputError(
                f"{self.path}: must be a file that only you can read, but others can read or change it "
                f"(mode {mode:03o}); `chmod 600 {self.path}`"
            )
        table = read_json(self.path)
        pseudonyms = table.get("pseudonyms")
        if (
            table.get("format") != FORMAT
            or not isinstance(pseudonyms, dict)
            or len(set(map(str, pseudonyms.values()))) < len(pseudonyms)
        ):
            raise InputError(
                f"{self.path}: is not a table of pseudonyms (format {FORMAT}), or is damaged; name another file"
            )
        return {identity: str(pseudonym) for identity, pseudonym in pseudonyms.items()}

    def rename(self, sources: Sequence[Source]) -> list[Source]:
        """Return the sources under pseudonyms: patient, number of the scan, and file names made of both.

        Scans of a patient are numbered from 1 in the order given. A source without a patient stays without, and its
        file name gets a pseudonym of its own.
        """
        renamed: list[Source] = []
        scans: Counter[str] = Counter()
        for source in sources:
            pseudonym = self._pseudonym(source.patient or source.name(source.image[0]))
            scans[pseudonym] += 1
            scan = str(scans[pseudonym])
            folder = Path(pseudonym, scan)
            image, mask = (_file_names(folder, "image", source.image), _file_names(folder, "mask", source.mask))
            patient = pseudonym if source.patient else ""
            renamed.append(Source(patient, scan if source.timepoint else "", Path(), image, mask))
        return renamed

    def _pseudonym(self, identity: str) -> str:
        if identity not in self._pseudonyms:
            used = set(self._pseudonyms.values())
            while (pseudonym := f"p{secrets.token_hex(4)}") in used:
                pass
            self._pseudonyms[identity] = pseudonym
        return self._pseudonyms[identity]

    def save(self) -> None:
        """Write the table, readable by its owner only. Raises InputError where another `prepare` has changed it."""
        if self._read() != self._saved:
            raise InputError(f"{self.path}: was changed while the data were prepared; run `wmlsearch prepare` again")
        table = {"format": FORMAT, "pseudonyms": dict(sorted(self._pseudonyms.items()))}
        write_private(self.path, json.dumps(table, indent=1) + "\n")


def _file_names(folder: Path, kind: str, paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return `image.nii.gz`, or `image-1.png`, `image-2.png`, ..., in `folder`."""
    numbers = [""] if len(paths) == 1 else [f"-{i + 1}" for i in range(len(paths))]
    return tuple(folder / f"{kind}{number}{_extension(path)}" for number, path in zip(numbers, paths, strict=True))


def _extension(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
