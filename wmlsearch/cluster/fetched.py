"""The folder of a search that was fetched from a cluster: whether what the cluster has now may take its place.

`.fetched.json` in the folder says how far the search had come when it was fetched. If it was trained or evaluated here
since, or runs here, the cluster's files would replace newer ones.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from wmlsearch.cluster.head_job import SearchState
from wmlsearch.cluster.run_copies import copy_is_complete
from wmlsearch.errors import InputError
from wmlsearch.runs.copied_folders import last_work
from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.lock import folder_lock
from wmlsearch.runs.schema import Record
from wmlsearch.runs.wording import command, duration, run_words

_MARK = ".fetched.json"


class Progress(Record):
    """How far a search has come in a folder. Its states do not count: `sync` corrects them."""

    seconds: float  # in which trials and final runs ran, in all sessions
    last_work: float  # time of the last training or evaluation, Unix seconds

    @classmethod
    def of(cls, search: SearchDir) -> Progress:
        """Read a search folder. Raises InputError."""
        usage = search.usage()
        return cls(seconds=usage.seconds + usage.final_seconds, last_work=last_work(search))


def note_fetched(search: SearchDir) -> None:
    """Note that the cluster has all that this folder has now. A damaged folder gets no note."""
    with suppress(InputError):
        write_text(search.path / _MARK, Progress.of(search).model_dump_json())


def is_up_to_date(search: SearchDir, others: SearchState, where: str) -> bool:
    """Return whether a folder holds its search as `others` does. Raises InputError if it holds another run.

    Args:
        search: The search. Its folder must exist.
        others: The search as it stands elsewhere.
        where: Description of that place, for messages.
    """
    _check_same_search(search, others, where)
    if SearchState.read(search.path) != others:
        return False
    if _noted(search) is None:
        with suppress(OSError):  # a folder that cannot be written cannot go on either
            note_fetched(search)
    return True


def check_replaceable(search: SearchDir, others: SearchState, where: str) -> None:
    """Refuse to replace a folder if that would lose something. Raises InputError. Arguments as of `is_up_to_date`."""
    _check_same_search(search, others, where)
    _check_not_running(search)
    _check_not_ahead(search, others, where)


def check_resumable(search: SearchDir, others: SearchState | None, where: str, storage: str | None) -> None:
    """Refuse to resume a search elsewhere if it has gone on in this folder: its work here would be lost.

    It may have gone on if the storage has all of it, from where the other machine gets it. Raises InputError.

    Args:
        search: The search. Its folder must exist.
        others: The search as it stands elsewhere; None: it is not there.
        where: Description of that place, for messages.
        storage: Storage of the search.
    """
    if others is not None:
        _check_same_search(search, others, where)
    _check_not_running(search)
    if others is None or not _ahead(search, others, where):
        return
    if storage is None or not copy_is_complete(storage, search):
        _check_not_ahead(search, others, where)
    note_fetched(search)


def replace(search: SearchDir, newer: Path, where: str) -> None:
    """Move the files of a newer copy of a search, which was fetched, into its folder.

    Raises InputError if that would lose something.

    Args:
        search: The search. Its folder must exist.
        newer: The folder with the copy; it is gone afterwards.
        where: Description of where the copy is from, for messages.
    """
    others = SearchState.of(SearchDir(newer))
    check_replaceable(search, others, where)
    with folder_lock(search.path):
        _check_not_ahead(search, others, where)  # it may have run meanwhile
        # Without the note, a move that is interrupted can be repeated: the folder has no more than the copy.
        (search.path / _MARK).unlink(missing_ok=True)
        search.replace_with(newer)
        note_fetched(search)


def _noted(search: SearchDir) -> Progress | None:
    with suppress(OSError, ValueError):
        return Progress.model_validate_json((search.path / _MARK).read_bytes())
    return None


def _ahead(search: SearchDir, others: SearchState, where: str) -> str:
    """Return in words what a folder has of its search that another place lacks; "" if nothing.

    Without a note it was fetched by an older version, or not at all. Then the time in which trainings ran tells.
    """
    noted, now = _noted(search), Progress.of(search)
    if noted is not None and noted != now:
        return "the search was trained or evaluated here since it was fetched"
    other_seconds = others.used.seconds + others.used.final_seconds
    if now.seconds > other_seconds:
        return f"has more of the search ({duration(now.seconds)} of trainings) than {where} ({duration(other_seconds)})"
    return ""


def _check_not_ahead(search: SearchDir, others: SearchState, where: str) -> None:
    if ahead := _ahead(search, others, where):
        raise InputError(
            f"{search.path}: {ahead}, and nothing is overwritten; resume it here "
            f"(`{command('tune', '--resume', *run_words(search.path))}`), or give another --out for what {where} has"
        )


def _check_not_running(search: SearchDir) -> None:
    if search.is_running():
        raise InputError(
            f"{search.path}: the search runs here, and nothing is overwritten; end it first "
            f"(`{command('stop', *run_words(search.path))}`), or give another --out"
        )


def _check_same_search(search: SearchDir, others: SearchState, where: str) -> None:
    if not search.exists() or search.record().key != others.key:
        raise InputError(
            f"{search.path}: contains a search that differs from the one of {where}, and nothing is overwritten; "
            "give another --out"
        )
