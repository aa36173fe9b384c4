"""Wheels in parts of limited size: cut with checksums, joined and installed on a machine without network.

    FOLDER/downloads/       the wheels as they were downloaded
    FOLDER/part-1, ...      what travels: wheels, pieces of wheels, and `contents.json`, which is the same in each part
    FOLDER/site-<digest>    where they are installed

It needs the standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
INSTALL_LIMIT_S = 300
FORMAT = 1
CONTENTS = "contents.json"


class VisitError(Exception):
    """What cannot go on, in one line with the next step."""


@dataclass(frozen=True)
class Piece:
    """A file in a part: a wheel, or some consecutive bytes of one."""

    part: int  # from 1
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel and its pieces in order."""

    file: str
    bytes: int
    sha256: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Contents:
    """`contents.json`: all wheels of all parts."""

    python: str  # major.minor, for which the wheels are
    parts: int
    wheels: tuple[Wheel, ...]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Some digits that change with any wheel."""
        return hashlib.sha256("".join(sorted(wheel.sha256 for wheel in self.wheels)).encode()).hexdigest()[:12]

    def write(self, part: Path) -> None:
        (part / CONTENTS).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, part: Path) -> Contents:
        """Read it from a part. Raises VisitError."""
        path = part / CONTENTS
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise VisitError(f"{path}: has format {values['format']}, and this checkout reads {FORMAT}")
            wheels = tuple(
                Wheel(**{**wheel, "pieces": tuple(Piece(**piece) for piece in wheel["pieces"])})
                for wheel in values["wheels"]
            )
            return cls(values["python"], values["parts"], wheels)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VisitError(f"{path}: cannot be read ({error}); carry this part again") from None


def split(folder: Path, wheels: Sequence[Path], python: str, max_bytes: int) -> Contents:
    """Write wheels into parts of at most `max_bytes` each, `contents.json` not counted, and return what is in them.

    Args:
        folder: Gets `part-1`, `part-2` and so on; those of an earlier call are removed.
        wheels: Files. A larger one than a part is cut into pieces.
        python: Version for which the wheels are, as "3.12".
        max_bytes: Size of a part, at least 1.
    """
    for old in folder.glob("part-*"):
        shutil.rmtree(old)
    sizes = {path: path.stat().st_size for path in wheels}
    cuts = [
        (path, start, min(max_bytes, size - start))
        for path, size in sizes.items()
        for start in range(0, size, max_bytes)
    ]
    room: list[int] = []  # bytes that are free in each part
    pieces: dict[tuple[Path, int], Piece] = {}
    for path, start, size in sorted(cuts, key=lambda cut: (-cut[2], cut[0].name)):  # the largest first
        number = next((number for number, free in enumerate(room, 1) if size <= free), len(room) + 1)
        part = folder / f"part-{number}"
        if number > len(room):
            room.append(max_bytes)
            part.mkdir(parents=True)
        room[number - 1] -= size
        name = path.name if size == sizes[path] else f"{path.name}.piece-{start // max_bytes + 1}"
        with open(path, "rb") as source:
            source.seek(start)
            content = source.read(size)
        (part / name).write_bytes(content)
        pieces[path, start] = Piece(number, name, size, hashlib.sha256(content).hexdigest())
    described = [
        Wheel(path.name, size, sha256(path), tuple(pieces[path, start] for start in range(0, size, max_bytes)))
        for path, size in sizes.items()
    ]
    contents = Contents(python, len(room), tuple(described))
    for number in range(1, contents.parts + 1):
        contents.write(folder / f"part-{number}")
    return contents


def read_contents(folder: Path) -> Contents:
    """Return what is in the parts of a folder. Raises VisitError if a part is missing, or is of other wheels."""
    parts = sorted(folder.glob("part-*"))
    if not parts:
        raise VisitError(f"{folder}: has no part-1; make the parts with `tests/gpu/visit wheels` and carry them here")
    contents = Contents.read(parts[0])
    missing = [n for n in range(1, contents.parts + 1) if not (folder / f"part-{n}").is_dir()]
    if missing:
        names = ", ".join(f"part-{number}" for number in missing)
        raise VisitError(f"{folder}: {names} of {contents.parts} parts is missing; carry it here too")
    for number in range(2, contents.parts + 1):
        if Contents.read(folder / f"part-{number}") != contents:
            raise VisitError(f"{folder}/part-{number}: is of other wheels than part-1; carry all parts again")
    return contents


def join(folder: Path, into: Path) -> list[Path]:
    """Return the wheels of all parts: checked, and joined in `into` where they are in pieces. Raises VisitError."""
    into.mkdir(parents=True, exist_ok=True)
    return [_joined(folder, wheel, into) for wheel in read_contents(folder).wheels]


def _joined(folder: Path, wheel: Wheel, into: Path) -> Path:
    paths = [folder / f"part-{piece.part}" / piece.file for piece in wheel.pieces]
    for path, piece in zip(paths, wheel.pieces, strict=True):
        if not path.is_file() or sha256(path) != piece.sha256:
            raise VisitError(f"{path}: {'is damaged' if path.is_file() else 'is missing'}; carry this part again")
    if len(paths) == 1:
        return paths[0]
    whole = into / wheel.file
    with open(whole, "wb") as target:
        for path in paths:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, target)
    if sha256(whole) != wheel.sha256:
        raise VisitError(f"{whole}: its pieces do not make the wheel; make the parts again")
    return whole


def installed_site(folder: Path) -> Path | None:
    """Return where the wheels of all parts are installed, or None. Raises VisitError."""
    site = folder / f"site-{read_contents(folder).digest}"
    return site if site.is_dir() else None


def install(folder: Path) -> Path:
    """Install the wheels of all parts into a folder of its own, and return that. Nothing else is changed.

    It exists only complete, so that a second call returns at once. Raises VisitError.
    """
    contents, here = read_contents(folder), f"{sys.version_info.major}.{sys.version_info.minor}"
    if contents.python != here:
        raise VisitError(
            f"{folder}: the wheels are for Python {contents.python}, and this is {here}; make them with --python {here}"
        )
    site = folder / f"site-{contents.digest}"
    if installed_site(folder):
        return site
    unfinished, joined = folder / f"{site.name}.unfinished", folder / "joined"
    shutil.rmtree(unfinished, ignore_errors=True)
    wheels = join(folder, joined)
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(unfinished), *map(str, wheels)]
    try:
        status = subprocess.run(command, check=False, timeout=INSTALL_LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        raise VisitError(f"pip did not end within {INSTALL_LIMIT_S} s") from None
    shutil.rmtree(joined, ignore_errors=True)
    if status:
        raise VisitError(f"pip ended with status {status}; its output is above")
    unfinished.rename(site)
    return site


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
