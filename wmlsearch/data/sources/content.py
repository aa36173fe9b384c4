"""Files whose content is not here: links that lead nowhere, and what git-annex, DataLad and Git LFS leave in its place.

The user's own files are the user's: links and absolute paths are followed, wherever they lead.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from wmlsearch.data.sources.discovery import first_names
from wmlsearch.data.sources.source import Source, is_nifti, is_picture, shown_name, stem

MAX_POINTER_BYTES = 32768  # git-annex reads no longer pointer files
ANNEX_POINTER, LFS_POINTER = b"/annex/objects/", b"version https://git-lfs.github.com/spec/"
MAX_NAMED = 3  # files written out in a command; more are written as patterns


def content_faults(raw: Path, sources: Sequence[Source], list_file: str = "") -> list[str]:
    """Return a line for each file that does not exist, and one for all whose content another program must fetch.

    Args:
        raw: The data set.
        sources: The volumes of the data set.
        list_file: Name of the list that names the files; "" if there is none.
    """
    correct = f"correct the path in {list_file}, or the link" if list_file else "correct the path or the link"
    folder = raw if raw.is_dir() else raw.parent
    faults: list[str] = []
    fetched: dict[str, list[Path]] = defaultdict(list)  # by the command that fetches them
    folders: dict[Path, dict[str, list[str]]] = {}  # that were listed
    for source in sources:
        for path in (*source.image, *source.mask):
            if command := fetch_command(path):
                fetched[command].append(path)
            elif not _is_file(path):
                similar = _similar(path, folders)
                advice = f"is {similar} meant?" if similar else correct
                faults.append(f"{shown_name(path, folder)}: no such file; {advice}")
    return [_fetch_fault(folder, command, paths) for command, paths in fetched.items()] + faults


def fetch_command(path: Path) -> str:
    """Return the command that fetches a file's content: `datalad get`, `git lfs pull`; "" where it is here."""
    try:
        if path.is_symlink() and not path.exists():
            return "datalad get" if _leads_into_annex(path) else ""
        if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
            return ""
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except (OSError, ValueError):  # a name that is too long, or with a zero byte; a file that may not be read
        return ""
    if start.startswith(ANNEX_POINTER):
        return "datalad get"
    return "git lfs pull" if start == LFS_POINTER else ""


def uninstalled(folder: Path) -> list[str]:
    """Return a sentence for each data set of images or masks within a DataLad data set that is an empty folder here."""
    modules = folder / ".gitmodules"
    text = modules.read_text(encoding="utf-8", errors="replace") if modules.is_file() else ""
    sentences = []
    for name in re.findall(r"(?m)^\s*path\s*=\s*(.+?)\s*$", text):
        path = folder / name
        if re.match("sub-|derivatives|rawdata|sourcedata", name) and not (path.is_dir() and any(path.iterdir())):
            fetch = f"cd {shlex.quote(str(folder))} && datalad get -n {shlex.quote(name)}"
            sentences.append(f"{name}: this data set within the data set is not here; fetch it with: {fetch}")
    return sentences


def _leads_into_annex(link: Path) -> bool:
    """Whether a link, or a link that it leads to, names an object of git-annex."""
    for _ in range(40):  # as many as Linux follows
        target = link.readlink()
        if "annex/objects/" in target.as_posix():
            return True
        link = link.parent / target
        if not link.is_symlink():
            break
    return False


def _fetch_fault(folder: Path, command: str, paths: Sequence[Path]) -> str:
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    system = "Git LFS" if command.startswith("git lfs") else "git-annex (DataLad)"
    subject = f"{names[0]}: its content is" if len(names) == 1 else f"{first_names(names)}: their content is"
    go = f"cd {shlex.quote(str(folder))}"
    if command == "git lfs pull":
        return f"{subject} not here, only a pointer of {system}; fetch it with: {go} && {command}"
    fetch = f"{go} && {command} {' '.join(_arguments(names))}"
    return f"{subject} not here, only a link of {system}; fetch it with: {fetch}"


def _arguments(names: Sequence[str]) -> list[str]:
    """Return shell words that name the files: the names themselves, or patterns that fit those of all patients."""
    if len(names) > MAX_NAMED and all(re.fullmatch(r"[\w./+-]+", name) for name in names):
        by_patient = {re.sub(r"(sub|ses)-[^/_]+", r"\1-*", name) for name in names}
        by_number = {re.sub(r"[0-9]+", "*", name) for name in names}
        return sorted(by_patient if len(by_patient) <= len(by_number) else by_number)
    return [shlex.quote(name) for name in names]


def _similar(path: Path, folders: dict[Path, dict[str, list[str]]]) -> str:
    """Return the name of the one file beside a path that differs in case or in the extension only, or "".

    Args:
        path: A path without a file.
        folders: Names of images by their plain form, of each folder that was listed; is added to.
    """
    if path.parent not in folders:
        names: dict[str, list[str]] = defaultdict(list)
        try:
            for other in path.parent.iterdir():
                if is_nifti(other) or is_picture(other):
                    names[stem(other).casefold()].append(other.name)
        except (OSError, ValueError):  # no such folder, one that may not be read, or a name that no folder can have
            pass
        folders[path.parent] = names
    alike = [name for name in folders[path.parent].get(stem(path).casefold(), ()) if name != path.name]
    return alike[0] if len(alike) == 1 else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long for a file, or has a zero byte
        return False
