"""What runs on the head for `wmlsearch ... --cluster`: `python -m wmlsearch.cluster.head_job`, as a job of Ray.

Ray brings the package and the request (`request.json`, in the job's working folder). The search belongs to the cluster:
it goes on whether or not anyone follows it.
    ~/wmlsearch-head/ data/FINGERPRINT/   prepared data sets, each sent once; prepared again: FINGERPRINT-CHECKSUM/
                      runs/NAME/          the folders of the searches (their --out is runs/)
                      results/NAME/       what is fetched of a search that has ended
                      mlflow/             the MLflow server's database and log
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import runpy
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from wmlsearch.cluster.run_copies import GROWING, fetch_search
from wmlsearch.cluster.transfer import fetch_data, is_fetched
from wmlsearch.data.manifest import Manifest, manifest_sha256
from wmlsearch.errors import InputError
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import SearchDir, creation_time
from wmlsearch.runs.schema import RunStatus, Usage

HOME = Path("~/wmlsearch-head").expanduser()
REQUEST = "request.json"
ANSWER = "@wmlsearch@ "  # begins the line of a HeadReport in the job's log
ERROR = "wmlsearch: "  # begins the error with which a job ends, here and on the command line
COLUMNS = 140  # of what a search prints
STOP_POLL_S = 0.5


class HeadRequest(BaseModel):
    """What the head is asked to do.

    Args:
        verb: "tune" and "resume" run a search, "stop" ends one, "find" tells how one stands, and "report" shows it too
            and gathers its results if it has ended.
        name: Name of the search. None: the search that was started last.
        latest_job: Used if `name` is None: the search whose job was started last. Its folder may not exist yet.
        latest_job_started: When that job was started, Unix seconds by the clock of the head.
        argv: Options of `wmlsearch tune`, without --data, --name and --out.
        space: The name of a built-in search space, or of a file in the job's working folder.
        fingerprint: Fingerprint of the prepared data set.
        manifest_sha256: Checksum of its manifest. None: any data set with the fingerprint will do.
        storage: Storage of the data set and the run folder, if the head does not have them. None: WMLSEARCH_STORAGE of
            the head.
        columns: Width of the terminal.
    """

    verb: Literal["tune", "resume", "stop", "find", "report"]
    name: str | None = None
    latest_job: str | None = None
    latest_job_started: float = 0.0
    argv: list[str] = []
    space: str | None = None
    fingerprint: str | None = None
    manifest_sha256: str | None = None
    storage: str | None = None
    columns: int = COLUMNS


class SearchState(BaseModel):
    """Identity, status and usage of a search, by which two copies of its folder are compared."""

    key: str
    status: RunStatus
    used: Usage

    @classmethod
    def read(cls, folder: Path) -> SearchState | None:
        """Read a search folder; None before the search has begun."""
        search = SearchDir(folder)
        return cls.of(search) if search.exists() else None

    @classmethod
    def of(cls, search: SearchDir) -> SearchState:
        """Read the folder of a search that has begun. Raises InputError."""
        return cls(key=search.record().key, status=search.status(), used=search.usage())


class HeadReport(BaseModel):
    """How a search stands on the head.

    Args:
        name: Name of the search; "" if there is none.
        names: Names of all searches with a folder, the latest last.
        running: Whether a process runs it.
        search: State of the search. None: it has no folder.
        results: Folder to fetch, if the search has ended.
        size: Size of `results` in bytes.
        has_data: Whether the head has the requested prepared data set.
        has_storage: Whether the head has a storage of its own (WMLSEARCH_STORAGE).
        home: The folder of all that wmlsearch keeps on the head.
    """

    name: str = ""
    names: list[str] = []
    running: bool = False
    search: SearchState | None = None
    results: Path | None = None
    size: int = 0
    has_data: bool = False
    has_storage: bool = False
    home: Path = HOME


def tune(request: HeadRequest, folder: Path) -> None:
    """Run a search, new or resumed, and exit with its status. Raises InputError.

    Args:
        folder: The job's working folder, with the file of the search space if there is one.
    """
    name = str(request.name)
    if request.verb == "resume":
        _restore(request, SearchDir(HOME / "runs" / name))
        command: list[str | Path] = ["tune", "--resume", name]
        if request.fingerprint is not None:  # it may have been elsewhere on the head of before
            command += ["--data", _prepared_data(request)]
    else:
        space = folder / str(request.space)
        data = _prepared_data(request)
        command = ["tune", space if space.is_file() else str(request.space), "--data", data, "--name", name]
    _run_wmlsearch([*command, "--out", HOME / "runs", *request.argv], COLUMNS)


def stop(search: SearchDir) -> None:
    """Ask a running search to end, and return when it has."""
    while search.is_running():
        search.request_stop()  # again: a process that is just starting forgets requests for the one before
        time.sleep(STOP_POLL_S)


def report(request: HeadRequest) -> HeadReport:
    """Return how a search stands; for "report", show it, and gather its results if it has ended."""
    searches = sorted(
        (SearchDir(path) for path in (HOME / "runs").iterdir() if SearchDir(path).exists()), key=creation_time
    )
    answer = HeadReport(name=request.name or "", names=[search.name for search in searches])
    answer.has_storage = bool(os.environ.get("WMLSEARCH_STORAGE"))
    if request.fingerprint is not None:
        answer.has_data = _data_folder(request.fingerprint, request.manifest_sha256).is_dir()
    if request.name is None:
        answer.name = _latest(request, searches)
    if answer.name in answer.names:
        search = SearchDir(HOME / "runs" / answer.name)
        answer.search, answer.running = SearchState.read(search.path), search.is_running()
        if request.verb == "report":
            _show(search, request.columns)
            if not answer.running:
                answer.results, answer.size = _gather(search)
    return answer


def _latest(request: HeadRequest, searches: Sequence[SearchDir]) -> str:
    """Return the name of the search that was started last, as a job or on the head itself; "" if there is none.

    Args:
        request: The request, which names the latest job.
        searches: The searches with a folder, the latest last.
    """
    if request.latest_job and (not searches or creation_time(searches[-1]) < request.latest_job_started):
        return request.latest_job  # it has no folder yet, or is resumed
    return searches[-1].name if searches else ""


def _run_wmlsearch(argv: Sequence[str | Path], columns: int) -> None:
    """Do what `python -m wmlsearch ARGV` does, in this process: a command line of its own would show passwords of URIs.

    Raises SystemExit at the end.
    """
    os.environ["COLUMNS"] = str(columns)
    sys.argv[1:] = [str(word) for word in argv]
    runpy.run_module("wmlsearch", run_name="__main__", alter_sys=True)


def _data_folder(fingerprint: str, checksum: str | None) -> Path:
    """Return where the head has a prepared data set, or will have it.

    Data that were prepared again can have the fingerprint of before and another manifest. They get a folder of their
    own: a search may use the one of before.

    Args:
        fingerprint: Of the data set.
        checksum: Of its manifest. None: any will do.
    """
    folder = HOME / "data" / fingerprint
    if checksum is None:
        return folder
    prepared_again = folder.with_name(f"{fingerprint}-{checksum[:16]}")
    if prepared_again.is_dir() or (folder.is_dir() and manifest_sha256(folder) != checksum):
        return prepared_again
    return folder


def _prepared_data(request: HeadRequest) -> Path:
    """Return the folder of the prepared data set, which was sent or is in the storage.

    Raises InputError, StorageError.
    """
    fingerprint = str(request.fingerprint)
    data = _data_folder(fingerprint, request.manifest_sha256)
    _receive_data(data, fingerprint, request.manifest_sha256, request.storage)
    return data


def _receive_data(data: Path, fingerprint: str, checksum: str | None, storage: str | None) -> None:
    """Make the folder `data`, unless it exists, of what was sent or is in the storage. Raises InputError, StorageError.

    What was sent goes before the storage, unless it is other data or incomplete: an earlier command may have left it.
    One job at a time does so: several searches may begin at once.
    """
    with open(data.with_name(f"{fingerprint}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if data.is_dir():
            return
        received = data.with_name(f"{fingerprint}.part")
        try:
            _check_received(received, fingerprint, checksum)
        except InputError:
            if storage is None:
                raise
            received = data.with_name(f"{fingerprint}.fetched")  # made anew, where an earlier job died before the end
            fetch_data(storage, fingerprint, received)
            _check_received(received, fingerprint, checksum)
        os.replace(received, data)


def _check_received(folder: Path, fingerprint: str, checksum: str | None) -> None:
    """Check that a folder holds a prepared data set, undamaged. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"the head has no prepared data set {fingerprint[:12]}; give --data")
    manifest = Manifest.read(folder)
    if manifest.fingerprint != fingerprint or checksum not in (None, manifest_sha256(folder)):
        raise InputError(
            f"{folder}: has another manifest.json than the data that were asked for; run the command again with "
            "--data, which sends them again"
        )
    manifest.verify(folder)


def _restore(request: HeadRequest, search: SearchDir) -> None:
    """Bring back from the storage what a new head lacks of a search: its folder and its data.

    Raises InputError, StorageError."""
    if request.storage is not None and not search.exists():
        fetch_search(request.storage, search.name, search.path)
    if not search.exists():
        raise InputError(
            f"{search.name}: no search of this name on the head, so there is nothing to resume; give the --storage of "
            "the search if it has one, or start it again"
        )
    data = Path(search.record().data_path)
    if request.fingerprint is None and data.parent == HOME / "data" and not data.is_dir():
        _receive_data(data, data.name.partition("-")[0], None, request.storage)


def _show(search: SearchDir, columns: int) -> None:
    with contextlib.suppress(SystemExit):
        _run_wmlsearch(["status", search.name, "--out", search.path.parent], columns)


def _gather(search: SearchDir) -> tuple[Path, int]:
    """Gather the files of a search that are fetched: all but the trials' checkpoints and last states.

    Returns their folder and their size in bytes.
    """
    results = HOME / "results" / search.name
    shutil.rmtree(results, ignore_errors=True)
    size = 0
    for path in sorted(search.path.rglob("*")):
        part = path.relative_to(search.path)
        if path.is_file() and is_fetched(part):
            (results / part).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, results / part)
            size += path.stat().st_size
    return results, size


def _link_or_copy(path: Path, target: Path) -> None:
    """Give a file of an ended search a second name, or copy it where a resumed search would change it."""
    if path.suffix not in GROWING:  # other files are replaced, not changed
        with contextlib.suppress(OSError):
            os.link(path, target)
            return
    shutil.copy2(path, target)


def main() -> int:
    folder = Path.cwd()
    request = HeadRequest.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))
    for name in ("data", "runs", "results"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    os.chdir(HOME)
    request.storage = request.storage or os.environ.get("WMLSEARCH_STORAGE") or None
    try:
        if request.verb in ("tune", "resume"):
            tune(request, folder)
        if request.verb == "stop":
            stop(SearchDir(HOME / "runs" / str(request.name)))
        print(f"{ANSWER}{report(request).model_dump_json()}", flush=True)
    except (InputError, StorageError) as error:
        print(f"{ERROR}{error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
