"""`wmlsearch ... --cluster`: the same command on the head of a Ray cluster, as a job of Ray.

`head_job` runs there. The search belongs to the cluster; this module starts, follows, stops and fetches it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from wmlsearch.cluster.dashboard import Dashboard, tunnel_to
from wmlsearch.cluster.fetched import check_replaceable, check_resumable, is_up_to_date, note_fetched, replace
from wmlsearch.cluster.head_job import COLUMNS, ERROR, HeadReport, HeadRequest, SearchState
from wmlsearch.cluster.head_mlflow import DEFAULT_PORT, PORT_FILE
from wmlsearch.cluster.jobs import SearchJob, ask, follow, job_of, lines_of, search_jobs, submit_search
from wmlsearch.cluster.ray_up import ClusterFile, RayCommand, UnreachableError
from wmlsearch.cluster.run_copies import fetch_search, searches
from wmlsearch.cluster.transfer import fingerprint_of, is_fetched, upload_data
from wmlsearch.data.manifest import manifest_sha256
from wmlsearch.data.sealed_test import Opener, record_opening
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir, check_new
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import RUNNING
from wmlsearch.runs.wording import command, duration
from wmlsearch.tracking.server import is_healthy

Say = Callable[[str], None]

CLEAN_END_S = 30.0  # after its search has ended, a process runs the user's command of --on-end
SAY_AFTER_S = 5.0  # of such a process that has not ended
STOP_POLL_S = 1.0
LAST_LINES = 20  # of the log of a search without a run folder, which say why there is none


def tune(
    cluster: str, argv: list[str], data: Path, space: str, name: str, out: Path, storage: str | None, say: Say
) -> int:
    """Run `wmlsearch tune SPACE ARGV` on the head, follow it and fetch its results; return its exit status.

    Ctrl-C ends the following only. A name may be used again if nothing was begun under it. Raises InputError for what
    cannot be run.

    Args:
        cluster: A cluster file, or the address of a dashboard.
        argv: The options, without --data, --name, --out and --storage.
        data: A prepared data set, which is sent unless the head has it.
        space: A file, which is sent, or the name of a built-in search space.
        storage: Storage of the search, if it was given on the command line.
    """
    check_new(out / name)
    fingerprint, checksum = fingerprint_of(data), manifest_sha256(data)
    with Dashboard(cluster) as dashboard:
        storage = storage_of(dashboard, storage)
        job = job_of(search_jobs(dashboard), name)
        find = HeadRequest(verb="find", name=name, fingerprint=fingerprint, manifest_sha256=checksum)
        report = ask(dashboard, find, say)
        if report.search is not None or (job is not None and job.running):
            raise InputError(
                f"{name}: the cluster already has a search of this name (state: {_state(job, report)}); see it with "
                f"`{_command('status', name, dashboard)}`, or give another --name"
            )
        _send_data(dashboard, data, fingerprint, storage, report, say)
        file = Path(space) if Path(space).is_file() else None
        if "--no-baseline" not in argv:  # the head will open the sealed test; the ledger beside `data` must say so
            record_opening(data, Opener(run=name, where=f"the cluster {dashboard.given}"))
        request = HeadRequest(
            verb="tune",
            name=name,
            argv=[*argv, *([] if storage is None else ["--storage", storage])],
            space=space if file is None else file.name,
            fingerprint=fingerprint,
            manifest_sha256=checksum,
            storage=storage,
        )
        return _follow_and_fetch(dashboard, request, file, out, say)


def resume(
    cluster: str,
    argv: list[str],
    data: Path | None,
    name: str,
    out: Path,
    storage: str | None,
    say: Say,
    default_storage: str | None = None,
) -> int:
    """Resume the search `name` on the cluster, follow it and fetch its results; return its exit status.

    `argv` are the options without --resume, --data, --out and --storage. A head that is new gets what it lacks: the run
    folder from the storage, and the data set from there or from `data`. Raises InputError for what cannot be resumed.

    Args:
        storage: Storage given on the command line. None: the storage that the search's job names.
        default_storage: Storage to use if neither is known.
    """
    fingerprint, checksum = (None, None) if data is None else (fingerprint_of(data), manifest_sha256(data))
    with Dashboard(cluster) as dashboard:
        job = job_of(search_jobs(dashboard), name)
        storage = storage_of(dashboard, _storage_of_search(storage, job, default_storage))
        find = HeadRequest(verb="find", name=name, fingerprint=fingerprint, manifest_sha256=checksum)
        report = ask(dashboard, find, say)
        if report.running or (job is not None and job.running):
            raise InputError(f"{name}: already runs; see it with `{_command('status', name, dashboard)}`")
        if report.search is None and storage is None and not report.has_storage:
            if job is None:
                raise _unknown(name, dashboard, report)
            raise InputError(f"{name}: {_nothing_begun(job, _reason_of_end(dashboard, job))}")
        if (out / name).exists():
            check_resumable(SearchDir(out / name), report.search, "the head", storage)
        if data is not None and fingerprint is not None:
            _send_data(dashboard, data, fingerprint, storage, report, say)
        argv = [*argv, *([] if storage is None else ["--storage", storage])]
        request = HeadRequest(
            verb="resume", name=name, argv=argv, fingerprint=fingerprint, manifest_sha256=checksum, storage=storage
        )
        return _follow_and_fetch(dashboard, request, None, out, say)


def stop(cluster: str, name: str | None, say: Say) -> int:
    """End the search `name` (default: the latest) on the cluster cleanly, and say how it ended. Raises InputError."""
    with Dashboard(cluster) as dashboard:
        jobs = search_jobs(dashboard)
        job = job_of(jobs, name)
        if name is None or job is None or not job.running:  # the head may run it without a job
            report = ask(dashboard, _request("find", name, jobs), say)
            job = job_of(jobs, report.name)
            if report.search is None and job is None:
                raise _unknown(name, dashboard, report)
            name = report.name
            if not report.running and (job is None or not job.running):
                raise InputError(f"{name}: has already ended on the head ({_ending(job, report)})")
        say(f"asked {name} to stop; its trials end within seconds ...")
        report = ask(dashboard, HeadRequest(verb="stop", name=name), say)
        if job is not None and job.running:
            _wait_for_end(dashboard, job, report.search is not None, say)
            if report.search is None or report.search.status.state == RUNNING:
                report = ask(dashboard, HeadRequest(verb="find", name=name), say)
        if report.search is None:
            say(f"{name}: ended before it had a run folder, so there is nothing to fetch or to resume")
            return 0
        status = report.search.status
        say(f"{name}: {status.state} ({status.reason or 'it had already ended'})")
        say(f"to fetch its results: {_command('status', name, dashboard)}")
        say(f"to resume it: {command('tune', '--resume', name, '--cluster', dashboard.given)}")
        return 0


def status(
    cluster: str, name: str | None, out: Path, storage: str | None, say: Say, default_storage: str | None = None
) -> int:
    """Say how the search `name` (default: the latest) stands on the head; fetch it into `out` if it has ended.

    Of a cluster that does not answer, its copy in the storage is fetched. Returns an exit status. Raises InputError.

    Args:
        storage: Storage given on the command line. None: the storage that the search's job names.
        default_storage: Storage to use if neither is known.
    """
    columns = shutil.get_terminal_size((120, 40)).columns
    place = storage or default_storage
    try:
        with Dashboard(cluster) as dashboard:
            jobs = search_jobs(dashboard)
            request = _request("report", name, jobs, columns)
            job = job_of(jobs, name)
            if job is not None:  # it says where to look if the head does not answer any more
                name, place = job.name, _storage_of_search(storage, job, default_storage)
            report = ask(dashboard, request, say)
            job = job_of(jobs, report.name)
            place = _storage_of_search(storage, job, default_storage)
            if report.search is None and job is None:
                if place is not None:  # of a head that was lost
                    return _fetch_from_storage(place, name, out, say)
                raise _unknown(name, dashboard, report)
            name = report.name
            if report.search is None and job is not None:  # it is still checked or planned, or was refused
                for line in lines_of(dashboard, job.id)[-LAST_LINES:]:
                    say(line)
            if report.running or (job is not None and job.running):
                since = "" if job is None or not job.running else f" for {duration(time.time() - job.started)}"
                say(f"{name} has run on the head{since}")
            elif _has_copy(out / name, report.search, "the head"):
                say(f"{name} has ended on the head ({_ending(job, report)}); {out / name} is up to date")
            else:
                _fetch(dashboard, job, report, out, place, say)
            return 0
    except UnreachableError as error:
        if place is None:
            raise
        say(f"{error}\nlooking into the storage {without_password(place)} ...")
        return _fetch_from_storage(place, name, out, say)


def ui(cluster: str, port: int, say: Say) -> int:
    """Join 127.0.0.1:PORT with the head's MLflow server until Ctrl-C. Raises InputError if it cannot be reached."""
    dashboard = Dashboard(cluster)
    if dashboard.file is None:
        raise InputError(
            f"--cluster {dashboard.given}: MLflow is not reached through the dashboard; forward its port as well (such "
            "as by `kubectl port-forward POD 5000`), and open that in a browser"
        )
    with tunnel_to(dashboard.file, port, _mlflow_port(dashboard.file)) as tunnel:
        try:
            _wait_for_mlflow(cluster, port, tunnel)
            say(
                f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)\nit asks for a user and a "
                f"password, which `ray exec {shlex.quote(cluster)} 'cat ~/.mlflow/credentials'` shows"
            )
            tunnel.process.wait()
            say("the tunnel has ended: the connection to the head is lost")
            return 1
        except KeyboardInterrupt:
            return 0


def _command(verb: str, name: str, dashboard: Dashboard) -> str:
    """Return the command line of a verb about a search on a cluster, to be pasted. It shows no password."""
    return command(verb, name, "--cluster", dashboard.given)


def _request(
    verb: Literal["find", "report"], name: str | None, jobs: Sequence[SearchJob], columns: int = COLUMNS
) -> HeadRequest:
    """Return the request about a search; without a name, about the latest one of jobs and of folders on the head."""
    latest = job_of(jobs, None) if name is None else None
    if latest is None:
        return HeadRequest(verb=verb, name=name, columns=columns)
    return HeadRequest(verb=verb, latest_job=latest.name, latest_job_started=latest.started, columns=columns)


def _storage_of_search(given: str | None, job: SearchJob | None, default: str | None) -> str | None:
    """Return the storage of a search: the one given for it, else that of its job, else the default one."""
    return given or (job.storage if job is not None else None) or default


def storage_of(dashboard: Dashboard, storage: str | None) -> str | None:
    """Return the storage of a search. Raises InputError if there must be one and there is none."""
    if dashboard.file is None and not storage:
        raise InputError(
            f"--cluster {dashboard.given}: with the address of a dashboard, data and results go through a storage that "
            "this machine and the cluster reach; give --storage (such as s3://bucket/path) or set WMLSEARCH_STORAGE"
        )
    if dashboard.file is None and storage and "://" not in storage and not Path(storage).is_absolute():
        raise InputError(
            f"--storage {storage}: with the address of a dashboard, a folder must be given with its whole path, which "
            f"names the same folder on this machine and on the cluster; here it is {Path(storage).absolute()}"
        )
    return storage or None


def _unknown(name: str | None, dashboard: Dashboard, report: HeadReport) -> InputError:
    cluster = dashboard.given
    if name is None:
        return InputError(
            f"{cluster}: no search on this cluster yet; start one with `{command('tune', '--cluster', cluster)}`"
        )
    names = ", ".join(report.names) or "none"
    return InputError(f"{name}: no search of this name on the head of {cluster} (it has: {names})")


def _nothing_begun(job: SearchJob, reason: str) -> str:
    """Say that a job has ended without a run folder, and how to go on."""
    if job.resumes:
        return (
            f"its folder could not be brought to the head ({reason}); mend that, or give its --storage, and resume it"
        )
    return f"ended before it had a run folder ({reason}); mend that, and start it again, also under this name"


def _reason_of_end(dashboard: Dashboard, job: SearchJob) -> str:
    """Return the error with which a job ended, as its log tells, or else its exit status."""
    lines = lines_of(dashboard, job.id)
    errors = [number for number, line in enumerate(lines) if line.startswith(ERROR)]
    return " ".join(lines[errors[-1] :]).removeprefix(ERROR) if errors else job.ending


def _state(job: SearchJob | None, report: HeadReport) -> str:
    if report.running or (job is not None and job.running):
        return RUNNING
    return "ended" if report.search is None else report.search.status.state


def _ending(job: SearchJob | None, report: HeadReport) -> str:
    """Return in words how a search ended."""
    if report.search is not None and report.search.status.state == RUNNING:  # nobody has recorded its end
        return "its process died (was the head restarted?)"
    return _state(None, report) if job is None else job.ending


def _has_copy(path: Path, search: SearchState | None, where: str) -> bool:
    """Return whether `path` holds the search as it stands elsewhere. Raises InputError if it holds another run."""
    return path.exists() and search is not None and is_up_to_date(SearchDir(path), search, where)


def _send_data(
    dashboard: Dashboard, data: Path, fingerprint: str, storage: str | None, report: HeadReport, say: Say
) -> None:
    """Send a prepared data set unless the cluster has it. Raises InputError, UnreachableError."""
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    began = time.monotonic()
    if dashboard.file is None:
        say(f"copying the prepared data set to the storage ({size / 2**20:.1f} MB), unless it is there ...")
        is_new = upload_data(str(storage), data, fingerprint)
        say(f"copied in {duration(time.monotonic() - began)}" if is_new else "it is there already")
    elif report.has_data:
        say(f"the head already has the prepared data set ({fingerprint[:12]})")
    else:
        say(f"sending the prepared data set to the head ({size / 2**20:.1f} MB), which keeps it ...")
        dashboard.file.send(data, f"{report.home}/data/{fingerprint}.part")
        say(f"sent in {duration(time.monotonic() - began)}")


def _follow_and_fetch(dashboard: Dashboard, request: HeadRequest, space: Path | None, out: Path, say: Say) -> int:
    """Submit a search, follow it, then fetch its results; return its exit status, or 130 if they were not fetched."""
    name, storage = str(request.name), request.storage
    shown = storage if storage is not None and without_password(storage) == storage else ""
    job_id = submit_search(dashboard, request, space, shown)
    say(f"{name} runs on the cluster (job {job_id}); Ctrl-C stops following it, not the search")
    try:
        job = follow(dashboard, job_id, say)
    except (KeyboardInterrupt, UnreachableError) as error:
        say("stopped following" if isinstance(error, KeyboardInterrupt) else str(error))
        say(
            f"{name} continues on the cluster: see it with `{_command('status', name, dashboard)}`, which also fetches "
            f"its results when it has ended; stop it with `{_command('stop', name, dashboard)}`"
        )
        return 130
    try:
        report = ask(dashboard, HeadRequest(verb="report", name=name), lambda _: None)
        return _fetch(dashboard, job, report, out, storage, say)
    except (KeyboardInterrupt, UnreachableError) as error:
        say("stopped" if isinstance(error, KeyboardInterrupt) else str(error))
        ending = "its process died" if job is None else job.ending
        say(
            f"{name} has ended on the cluster ({ending}), but its results are not here yet; fetch them with "
            f"`{_command('status', name, dashboard)}`"
        )
        return 130


def _fetch(
    dashboard: Dashboard, job: SearchJob | None, report: HeadReport, out: Path, storage: str | None, say: Say
) -> int:
    """Fetch the results of an ended search into `out`, in place of an older copy; return its exit status."""
    if report.search is not None:
        where = "the head" if dashboard.file is not None else "the storage"
        with _partial_copy(out, report.name) as partial:
            if dashboard.file is not None:
                if (out / report.name).exists():  # before much is fetched
                    check_replaceable(SearchDir(out / report.name), report.search, where)
                partial.mkdir()
                dashboard.file.fetch_folder(str(report.results), partial)
            else:
                fetch_search(str(storage_of(dashboard, storage)), report.name, partial)
            _move_to(out / report.name, partial, where)
        say(f"fetched from {where} into {out / report.name}, without the trials' checkpoints")
    if report.search is None and job is not None:
        say(f"{report.name}: {_nothing_begun(job, job.ending)}")
    else:
        say(f"{report.name} has ended on the head: {_ending(job, report)}")
    return 1 if job is None or job.exit_status is None else job.exit_status


def _fetch_from_storage(storage: str, name: str | None, out: Path, say: Say) -> int:
    """Fetch the copy of a search (default: the one that was copied last) from the storage. Raises InputError."""
    copies = searches(storage)
    if not copies:
        raise InputError(f"--storage {without_password(storage)}: has no copy of a search")
    name = name or max(copies, key=lambda copy: copy.written).name
    with _partial_copy(out, name) as partial:
        search = fetch_search(storage, name, partial)
        state = search.status()
        if _has_copy(out / name, SearchState.of(search), "the storage"):
            say(f"{out / name} has all that the storage has")
        else:
            _move_to(out / name, partial, "the storage")
            say(f"fetched from the storage into {out / name}, without the trials' checkpoints")
    say(f"{name}: {state.state} {state.reason}".rstrip())
    return 0


@contextlib.contextmanager
def _partial_copy(out: Path, name: str) -> Iterator[Path]:
    """Yield a path for the copy of a search, which does not exist. What is left there is removed."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=out) as folder:
        yield Path(folder) / name


def _move_to(target: Path, partial: Path, where: str) -> None:
    """Put a fetched copy of a search in its place, or in that of an older one. Raises InputError as `replace` does."""
    for path in partial.rglob("*"):
        if path.is_file() and not is_fetched(path.relative_to(partial)):
            path.unlink()
    if target.exists():
        replace(SearchDir(target), partial, where)
    else:
        note_fetched(SearchDir(partial))
        os.replace(partial, target)


def _wait_for_end(dashboard: Dashboard, job: SearchJob, has_folder: bool, say: Say) -> None:
    """Wait until a job that was asked to stop has ended.

    Its process gets a signal if there is no run folder, which it would find the request in. Otherwise it gets one after
    CLEAN_END_S: it has ended its search, or is just about to resume it.
    """
    requested_at, wait_s = time.monotonic(), CLEAN_END_S if has_folder else 0.0
    announced = signalled = False
    while any(each.id == job.id and each.running for each in search_jobs(dashboard)):
        waited = time.monotonic() - requested_at
        if not announced and waited >= min(wait_s, SAY_AFTER_S):
            announced = True
            if has_folder:
                say(f"the process of {job.name} is still at work; it gets a signal after {wait_s:g} s ...")
            else:
                say(f"{job.name} has no run folder yet; its process gets a signal to end ...")
        if not signalled and waited >= wait_s:
            signalled = dashboard.call(lambda client: client.stop_job(job.id))
        time.sleep(STOP_POLL_S)


def _mlflow_port(file: ClusterFile) -> int:
    """Return the port of the head's MLflow server, which it writes into a file when it starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "port"
        return int(path.read_text()) if file.fetch_file(PORT_FILE, path) else DEFAULT_PORT


def _wait_for_mlflow(cluster: str, port: int, tunnel: RayCommand) -> None:
    """Wait until the head's MLflow answers through the tunnel. Raises InputError after half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and tunnel.alive:
        if is_healthy(port):
            return
        time.sleep(0.3)
    raise InputError(f"{cluster}: the head's MLflow does not answer; start it by `ray up {cluster}` again")
