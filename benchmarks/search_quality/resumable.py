"""A file of recorded trainings: a header, then lines that a recording appends, and goes on with if it was killed."""

from __future__ import annotations

import os
from pathlib import Path

from wmlsearch.errors import InputError


class ResumableFile:
    """The whole lines of a recording, which may have been killed while it wrote one.

    Args:
        path: The file; it may not exist yet.
        header: Its first line. A part of it is accepted, since a recording may have been killed there.
        refusal: The message of the InputError that is raised if the file begins with another line.
    """

    def __init__(self, path: Path, header: str, refusal: str) -> None:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not header.startswith(text[: len(header)]):
            raise InputError(refusal)
        self._path, self._header, self._has_header = path, header, len(text) >= len(header)
        self.lines = text[len(header) :].splitlines(keepends=True)
        if self.lines and not self.lines[-1].endswith("\n"):
            self.lines.pop()

    def keep(self, count: int) -> None:
        """Make the file end after so many lines: it is truncated, not rewritten, so that they survive a crash."""
        if self._has_header:
            os.truncate(self._path, len((self._header + "".join(self.lines[:count])).encode()))
        else:
            self._path.write_text(self._header, encoding="utf-8")
