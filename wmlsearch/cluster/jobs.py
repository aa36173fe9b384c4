"""Searches as jobs of Ray, by its Jobs API: submit, list, follow.

A job carries the package of this machine, its request (see `head_job`) and the file of the search space in its runtime
environment. Its id, entry point and metadata name the search, and no options: the dashboard shows them to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from wmlsearch.cluster import dependencies
from wmlsearch.cluster.dashboard import Dashboard
from wmlsearch.cluster.head_job import ANSWER, REQUEST, HeadReport, HeadRequest
from wmlsearch.cluster.ray_patches import JOB_STOP_VARIABLE, is_line_of_ray
from wmlsearch.cluster.ray_up import UnreachableError
from wmlsearch.errors import InputError
from wmlsearch.runs.files import write_private
from wmlsearch.space import shipped

Say = Callable[[str], None]

# Metadata of the job of a search: its name, its storage, and "tune" or "resume".
SEARCH, STORAGE, VERB = "wmlsearch_search", "wmlsearch_storage", "wmlsearch_verb"
SUBMISSION = "wmlsearch_submission"  # metadata of each job: a random name, by which its sender knows it again
RESUMED = "@"  # NAME@2 is the job in which the search NAME was resumed first; no name of a search has this character
STOP_S = 600  # time that Ray gives a search to end cleanly after it is stopped in the dashboard
REQUIREMENTS = "requirements.txt"
# `python` is Ray's. Ray sets OMP_NUM_THREADS=1 for its actors, of which the job is a child.
ENTRYPOINT = (
    f"python {Path(dependencies.__file__).name} {REQUIREMENTS} && unset OMP_NUM_THREADS && "
    "exec python -m wmlsearch.cluster.head_job"
)
# After a silence a connection is replaced, since that of a cut network does not say that it is dead. The whole log is
# read again then, so the silence doubles from one time to the next while nothing new comes.
SILENCE_S, LONGEST_SILENCE_S = 30.0, 240.0
FOLLOW_PATIENCE_S = 3600.0  # give up following a search after this long without an answer
ANSWER_PATIENCE_S = 30.0  # give up a request after this long without an answer
RETRY_S = 5.0  # between two attempts to reach a cluster that does not answer
AGENT_PORT = 52365  # Ray's own, for `--dashboard-agent-listen-port`
SUBMIT_S = 120.0  # a head that was just started takes no jobs yet
STATUS_POLL_S = 0.5  # between two requests for the status of a job


@dataclass(frozen=True)
class SearchJob:
    """A job of Ray that runs, or ran, a search.

    Args:
        id: Submission id of the job.
        name: Name of the search.
        storage: Storage of the search; "" if the job does not record it.
        running: Whether the job is running or pending.
        started: When the job started, Unix seconds.
        exit_status: Exit status of the search's process; None if there is none.
        message: Ray's message about a job that ended without an exit status.
        resumes: Whether the job resumed a search; False if the job does not record it.
    """

    id: str
    name: str
    storage: str
    running: bool
    started: float
    exit_status: int | None
    message: str
    resumes: bool = False

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.exit_status is not None:
            return f"exit status {self.exit_status}"
        return f"its process died ({self.message})"


def submit_search(dashboard: Dashboard, request: HeadRequest, space: Path | None = None, storage: str = "") -> str:
    """Submit the job of a search, new or resumed, and return its id.

    Args:
        space: The file of the search space, or None.
        storage: Named in the job's metadata, where results are looked for later; "" if it must not be.

    Raises InputError if Ray refuses it, UnreachableError.
    """
    name = str(request.name)
    used = {job.submission_id for job in dashboard.call(lambda client: client.list_jobs())}  # of other programs too
    job_id = next(job_id for job_id in _ids(name) if job_id not in used)
    about = {SEARCH: name, VERB: request.verb, **({STORAGE: storage} if storage else {})}
    _submit(dashboard, request, about, job_id, space)
    return job_id


def search_jobs(dashboard: Dashboard) -> list[SearchJob]:
    """Return the jobs of searches that the cluster knows, the latest last. Raises UnreachableError."""
    details = dashboard.call(lambda client: client.list_jobs())
    jobs = [_search_job(job) for job in details if SEARCH in (job.metadata or {})]
    return sorted(jobs, key=lambda job: job.started)


def job_of(jobs: Iterable[SearchJob], name: str | None) -> SearchJob | None:
    """Return the latest job of a search, or of all searches if `name` is None."""
    return next((job for job in reversed([*jobs]) if name in (job.name, None)), None)


def ask(dashboard: Dashboard, request: HeadRequest, say: Say) -> HeadReport:
    """Have the head do something short, say what it prints, and return its report.

    Raises InputError if it refuses or fails, UnreachableError.
    """
    lines: list[str] = []
    job_id = f"wmlsearch-{request.verb}-{uuid.uuid4().hex[:12]}"
    _submit(dashboard, request, {}, job_id)
    try:
        job = follow(dashboard, job_id, lines.append, ANSWER_PATIENCE_S)
    finally:
        with contextlib.suppress(InputError, RuntimeError):
            dashboard.call(lambda client: client.delete_job(job_id))
    report = None
    for line in lines:
        if line.startswith(ANSWER):
            report = HeadReport.model_validate_json(line.removeprefix(ANSWER))
        else:
            say(line)
    if report is None:
        why = "it is gone; was the head restarted?" if job is None else job.message or job.ending
        raise InputError(f"{dashboard.given}: the head could not run the request ({' '.join(why.split())[-600:]})")
    return report


def lines_of(dashboard: Dashboard, job_id: str) -> list[str]:
    """Return what a job has printed so far, without the lines of Ray; nothing where Ray has lost its log.

    Raises UnreachableError.
    """
    try:
        text = dashboard.call(lambda client: client.get_job_logs(job_id))
    except RuntimeError:
        return []
    lines: list[str] = []
    log = _Log(lines.append)
    log.add(text)
    log.end()
    return lines


def follow(dashboard: Dashboard, job_id: str, say: Say, patience_s: float = FOLLOW_PATIENCE_S) -> SearchJob | None:
    """Say each line that a job prints, from its first one on, until it has ended; return it, or None if it is gone.

    A lost connection is made anew, and no line is lost or said twice. Raises UnreachableError if the cluster has not
    answered for `patience_s`, and KeyboardInterrupt as it comes.
    """
    log = _Log(say)
    lost_since: float | None = None
    silence_s = SILENCE_S
    while True:
        try:
            client, began = dashboard.client(), time.monotonic()
            complete = asyncio.run(_tail(client, job_id, log, silence_s))
            silence_s = SILENCE_S if log.grew > began else min(2 * silence_s, LONGEST_SILENCE_S)
            if lost_since is not None and log.grew > lost_since:
                lost_since = None
            job = _job(dashboard, job_id)
            if job is None or not job.running:
                if not complete and job is not None:
                    log.restart()
                    log.add(dashboard.call(lambda client: client.get_job_logs(job_id)))
                log.end()
                return job
            lost_since = None
        except (UnreachableError, RuntimeError) as error:
            if lost_since is None:
                lost_since = time.monotonic()
                say("the connection to the cluster is lost; trying again ...")
            if time.monotonic() - lost_since > patience_s:
                raise UnreachableError(str(error)) from None
        time.sleep(STATUS_POLL_S if lost_since is None else RETRY_S)


def _job(dashboard: Dashboard, job_id: str) -> SearchJob | None:
    details = dashboard.call(lambda client: client.list_jobs())
    return next((_search_job(job) for job in details if job.submission_id == job_id), None)


def _is_ours(dashboard: Dashboard, job_id: str, about: dict[str, str]) -> bool:
    """Return whether the job of this id is the one that was submitted with these metadata."""
    details = dashboard.call(lambda client: client.list_jobs())
    submissions = [(job.metadata or {}).get(SUBMISSION) for job in details if job.submission_id == job_id]
    return submissions == [about[SUBMISSION]]


async def _tail(client: Any, job_id: str, log: _Log, silence_s: float) -> bool:
    """Add what a job prints to `log` until the connection ends, or is silent; return whether the job has ended."""
    import aiohttp

    log.restart()
    lines = client.tail_job_logs(job_id)
    try:
        while True:
            try:
                text = await asyncio.wait_for(anext(lines), silence_s)
            except StopAsyncIteration:
                return True
            except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
                return False
            log.add(text)
    finally:
        await lines.aclose()


class _Log:
    """What a job has printed, as lines without those of Ray. It may be read from its beginning again and again."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._known = 0  # characters that were read in all
        self._position = 0  # in the reading that is under way
        self._rest = ""  # of a line that is not complete
        self.grew = 0.0  # when there was something new, by time.monotonic

    def restart(self) -> None:
        """Begin to read the log anew."""
        self._position = 0

    def add(self, text: str) -> None:
        skipped = min(self._known - self._position, len(text))
        self._position += skipped
        text = text[skipped:]
        if text:
            self.grew = time.monotonic()
        self._known += len(text)
        self._position += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._add_line(line)

    def end(self) -> None:
        """Say the last line, which may have no end."""
        if self._rest:
            self._add_line(self._rest)
            self._rest = ""

    def _add_line(self, line: str) -> None:
        if not is_line_of_ray(line):
            self.say(line)


def _ids(name: str) -> Iterator[str]:
    yield name
    for number in itertools.count(2):
        yield f"{name}{RESUMED}{number}"


def _search_job(details: Any) -> SearchJob:
    """Return the record of a job as Ray describes it (ray.job_submission.JobDetails)."""
    metadata = details.metadata or {}
    return SearchJob(
        id=details.submission_id,
        name=metadata.get(SEARCH, ""),
        storage=metadata.get(STORAGE, ""),
        running=not details.status.is_terminal(),
        started=(details.start_time or 0) / 1000,
        exit_status=details.driver_exit_code,
        message=details.message or "",
        resumes=metadata.get(VERB) == "resume",
    )


def _submit(
    dashboard: Dashboard, request: HeadRequest, about: dict[str, str], job_id: str, space: Path | None = None
) -> None:
    """Submit a job with these metadata. Raises InputError if Ray refuses it, UnreachableError."""
    about = {**about, SUBMISSION: uuid.uuid4().hex}
    with tempfile.TemporaryDirectory(prefix="wmlsearch-job-") as folder:
        package, work = Path(folder) / "wmlsearch", Path(folder) / "job"
        shutil.copytree(str(resources.files("wmlsearch")), package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(shipped(), package / "search_spaces", dirs_exist_ok=True)
        work.mkdir()
        write_private(work / REQUEST, request.model_dump_json())  # Ray keeps the mode of files
        shutil.copy(dependencies.__file__, work)
        (work / REQUIREMENTS).write_text("\n".join(_requirements()), encoding="utf-8")
        if space is not None:
            shutil.copy(space, work / str(request.space))
        runtime_env = {
            "py_modules": [str(package)],
            "working_dir": str(work),
            "env_vars": {JOB_STOP_VARIABLE: str(STOP_S)},
        }
        deadline = time.monotonic() + SUBMIT_S
        while True:
            try:
                dashboard.call(
                    lambda client: client.submit_job(
                        entrypoint=ENTRYPOINT, submission_id=job_id, runtime_env=runtime_env, metadata=about
                    )
                )
                return
            except RuntimeError as error:
                why = " ".join(str(error).split())[-400:]
            if "already exists" in why:
                if _is_ours(dashboard, job_id, about):  # an answer was lost
                    return
                raise InputError(f"{dashboard.given}: somebody else has just started a job {job_id}; run this again")
            if time.monotonic() > deadline:
                step = (
                    f"; see whether another Ray on the head has its agent's port, {AGENT_PORT}"
                    if "agent" in why
                    else ""
                )
                raise InputError(f"{dashboard.given}: Ray refuses the job ({why}){step}")
            time.sleep(RETRY_S)


def _requirements() -> list[str]:
    """Return what wmlsearch depends on; nothing where it is not installed, but only on Python's path."""
    try:
        return [line for line in requires("wmlsearch") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return []
