"""The head's end of `wmlsearch ... --cluster`: `wmlsearch.cluster.remote` runs it on the head by `ray exec`.

`python -m wmlsearch.cluster.head_agent VERB ...` answers with the lines of `messages.py`, since Ray and the shell print
lines of their own around them. A search that is started here belongs to the head: it runs in a session of its own and
continues whether or not anyone follows it. Modules that take long to import are imported where they are needed.

    ~/wmlsearch-head/ data/FINGERPRINT/   prepared data sets, each sent once
                      runs/NAME/          the folders of the searches (their --out is runs/)
                      jobs/NAME/          job.json, space.yaml, log.txt, lock (held while the job runs), exit.json
                      mlflow/             the MLflow server's database and log
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmlsearch import __version__
from wmlsearch.cluster.messages import (
    ENDED,
    GONE,
    RUNNING,
    UNKNOWN,
    DataAccepted,
    Failure,
    Hello,
    JobReport,
    JobState,
    LogLine,
    Message,
    Packed,
    SearchSummary,
    Started,
)

HOME = Path("~/wmlsearch-head").expanduser()
RAY_EXEC_VARIABLES = ("OMP_NUM_THREADS", "PYTHONWARNINGS")  # `ray exec` sets them; a search must not inherit them
CHECKPOINT_OF_LAST_EPOCH = "last.pt"
PROCESS_FILES = ("owner", ".owner-claim", "stop")  # files of a search folder that have no meaning on another machine
POLL_S = 0.5
START_GRACE_S = 10.0  # a job that was started so recently may not hold its lock yet


def send(message: Message) -> None:
    """Send one message to the laptop."""
    print(message.line(), flush=True)


def hello(name: str, fingerprint: str) -> None:
    """Tell the laptop what it has to know before it sends anything."""
    for folder in ("data", "runs", "jobs"):
        (HOME / folder).mkdir(parents=True, exist_ok=True)
    has_data = (HOME / "data" / fingerprint).is_dir()
    send(Hello(__version__, str(HOME), has_data, job_state(name), job_names(), search_summary(name)))


def accept(fingerprint: str) -> None:
    """Take the files that were sent as the prepared data set of this fingerprint, if they are complete."""
    from wmlsearch.config import InputError
    from wmlsearch.data.manifest import Manifest

    received, data = HOME / "data" / f"{fingerprint}.part", HOME / "data" / fingerprint
    try:
        manifest = Manifest.read(received)
        manifest.verify(received)
        if manifest.fingerprint != fingerprint:
            raise InputError(f"{received}: is another data set ({manifest.fingerprint})")
    except InputError as error:
        return send(Failure(str(error)))
    os.replace(received, data)
    send(DataAccepted(str(data)))


def start(name: str, command: list[str]) -> None:
    """Start `wmlsearch COMMAND` as job `name`; it outlives this process and the connection."""
    state = job_state(name).state
    if state != UNKNOWN:
        return send(Failure(f"{name}: the head already has a search of this name ({state}); give another --name"))
    _launch(name, command)


def resume(name: str, options: list[str]) -> None:
    """Make `wmlsearch tune --resume NAME OPTIONS` the job of a search that has ended or whose process died."""
    state = job_state(name).state
    if state not in (ENDED, GONE):
        return send(Failure(f"{name}: cannot be resumed on the head ({state})"))
    _launch(name, ["tune", "--resume", name, "--out", str(HOME / "runs"), *options])


def _launch(name: str, command: list[str]) -> None:
    job = HOME / "jobs" / name
    job.mkdir(parents=True, exist_ok=True)
    _write_json(job / "job.json", {"name": name, "command": command, "started": time.time(), "version": __version__})
    (job / "exit.json").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in RAY_EXEC_VARIABLES}
    with open(job / "log.txt", "ab") as log:
        offset = log.tell()
        subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "wmlsearch.cluster.head_agent", "keep", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=HOME,
            env=environment,
            start_new_session=True,
        )
    for _ in range(100):
        if "pid" in _read_json(job / "job.json") or (job / "exit.json").exists():
            break
        time.sleep(0.1)
    send(Started(job_state(name), offset))


def keep(name: str) -> None:
    """Run a job to its end and record its exit status. `start` runs this in a session of its own."""
    from filelock import FileLock

    job = HOME / "jobs" / name
    record = _read_json(job / "job.json")
    with FileLock(job / "lock"):  # waits for another process that only looks at the lock
        environment = {"COLUMNS": "140", "PYTHONUNBUFFERED": "1", **os.environ}
        child = subprocess.Popen([sys.executable, "-m", "wmlsearch", *record["command"]], env=environment)  # noqa: S603 - our own interpreter
        _write_json(job / "job.json", {**record, "pid": child.pid})
        status = child.wait()
        _write_json(job / "exit.json", {"status": status if status >= 0 else 128 - status, "ended": time.time()})


def job_state(name: str) -> JobState:
    """Return how the job `name` stands."""
    job = HOME / "jobs" / name
    if not name or not (job / "job.json").is_file():
        return JobState(name)
    record = _read_json(job / "job.json")
    started_job: dict[str, Any] = {key: record[key] for key in ("name", "started", "pid") if key in record}
    for attempt in range(2):  # the exit status is written just before the lock is released: look again
        if (job / "exit.json").is_file():
            return JobState(**started_job, state=ENDED, **_read_json(job / "exit.json"))
        if _is_locked(job / "lock") or (attempt == 0 and time.time() - record["started"] < START_GRACE_S):
            return JobState(**started_job, state=RUNNING)
    return JobState(**started_job, state=GONE)


def job_names() -> list[str]:
    """Return the names of all jobs, the latest last."""
    jobs = [path.parent for path in (HOME / "jobs").glob("*/job.json")]
    return [job.name for job in sorted(jobs, key=lambda job: float(_read_json(job / "job.json")["started"]))]


def search_summary(name: str) -> SearchSummary | None:
    """Return identity, status and usage of a search on the head; None if it has no folder."""
    return SearchSummary.read(HOME / "runs" / name) if name else None


def follow(name: str, offset: int) -> None:
    """Send the lines of a job's log from byte `offset` on as they come; when the job has ended, its report."""
    log = HOME / "jobs" / name / "log.txt"
    while True:
        job = job_state(name)  # before reading: the log of an ended job is complete
        with open(log, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n") and job.state == RUNNING:
                    break  # the rest of the line is not written yet
                offset += len(line)
                send(LogLine(line.decode(errors="replace").rstrip("\r\n"), offset))
        if job.state != RUNNING:
            return send(JobReport(job, job_names()))
        time.sleep(POLL_S)


def stop(name: str) -> None:
    """Ask a running search (the latest if `name` is empty) to end; report how it stands, then how it has ended."""
    from wmlsearch.runs.folders import SearchDir

    name = name or (job_names() or [""])[-1]
    job = job_state(name)
    send(JobReport(job, job_names()))
    if job.state != RUNNING:
        return
    search = SearchDir(HOME / "runs" / name)
    while job.state == RUNNING:
        if search.is_running():  # else its process is just starting or about to end
            search.request_stop()
        time.sleep(POLL_S)
        job = job_state(name)
    send(JobReport(job, job_names(), search_summary(name)))


def show(name: str, columns: str) -> None:
    """Report a search (the latest if `name` is empty), then send what `wmlsearch status` prints of it."""
    name = name or (job_names() or [""])[-1]
    job = job_state(name)
    send(JobReport(job, job_names(), search_summary(name)))
    if job.state == UNKNOWN:
        return
    command = [sys.executable, "-m", "wmlsearch", "status", name, "--out", str(HOME / "runs")]
    if (HOME / "runs" / name).is_dir():
        environment = {**os.environ, "COLUMNS": columns}
        status = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
        lines = (status.stdout + status.stderr).splitlines()
    else:  # the job ended, or is still at work, before there was a run folder
        lines = (HOME / "jobs" / name / "log.txt").read_text(errors="replace").splitlines()[-20:]
    for line in lines:
        send(LogLine(line))


def pack(name: str) -> None:
    """Gather the files of a search that the laptop fetches: all but the trials' checkpoints and last states."""
    folder, packed = HOME / "runs" / name, HOME / "jobs" / name / "result"
    shutil.rmtree(packed, ignore_errors=True)
    size = 0
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        part = path.relative_to(folder)
        checkpoint = path.suffix == ".pt" and (part.parts[0] != "final" or path.name == CHECKPOINT_OF_LAST_EPOCH)
        if not path.is_file() or checkpoint or path.name in PROCESS_FILES:
            continue
        (packed / part).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, packed / part)  # safe: an ended search's files are replaced, not changed
        except OSError:
            shutil.copy2(path, packed / part)
        size += path.stat().st_size
    send(Packed(str(packed), size))


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file atomically, so that a reader finds the old content or the new one."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(value), encoding="utf-8")
    os.replace(partial, path)


def _is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock; the kernel frees the locks of dead processes."""
    from filelock import FileLock, Timeout

    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0.1, poll_interval=0.01):  # another process that looks holds it for a moment only
            return False
    except Timeout:
        return True


def main(verb: str, *words: str) -> None:
    if verb in ("start", "resume"):
        {"start": start, "resume": resume}[verb](words[0], list(words[1:]))
    elif verb == "follow":
        follow(words[0], int(words[1]))
    else:
        verbs: dict[str, Callable[..., None]] = {
            "hello": hello,
            "accept": accept,
            "keep": keep,
            "stop": stop,
            "show": show,
            "pack": pack,
        }
        verbs[verb](*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
