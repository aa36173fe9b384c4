"""`wmlsearch ... --cluster FILE`: the same command on the head of a Ray cluster.

`head_agent` answers on the head. The search belongs to the head; this module starts, follows, stops and fetches it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from wmlsearch import __version__
from wmlsearch.cluster.messages import (
    RUNNING,
    UNKNOWN,
    DataAccepted,
    Hello,
    JobReport,
    JobState,
    LogLine,
    Packed,
    SearchSummary,
    Started,
    TunnelOpen,
)
from wmlsearch.cluster.ssh import ANSWER_S, NEXT_STEP, Head, MessageStream, head_command
from wmlsearch.config import InputError
from wmlsearch.data.sealed_test import record_opening
from wmlsearch.runs.files import read_json
from wmlsearch.runs.folders import SearchDir, check_new
from wmlsearch.runs.wording import command, duration
from wmlsearch.tracking.server import is_healthy

Say = Callable[[str], None]

RETRIES, RETRY_S = 40, 15.0  # while following: attempts to restore a lost connection, for 10 minutes in all
SILENCE_S = 3600.0  # so long a search may print nothing; ssh itself notices a dead connection within seconds


def _command(verb: str, name: str, cluster: Path) -> str:
    """Return the command of a verb about a search on a cluster, to be pasted."""
    return command(verb, name, "--cluster", cluster)


def tune(cluster: Path, argv: list[str], data: Path, space: str, name: str, out: Path, say: Say) -> int:
    """Run `wmlsearch tune SPACE ARGV` on the head, follow it and fetch its results; return its exit status.

    Ctrl-C ends the following only. Raises InputError for what cannot be run.

    Args:
        argv: The options, without --data, --name and --out.
        data: A prepared data set, which is sent unless the head has it.
        space: A file, which is sent, or the name of a built-in search space.
    """
    check_new(out / name)
    fingerprint = read_json(data / "manifest.json").get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint.isalnum():
        raise InputError(f"{data}: its manifest.json has no fingerprint; make it again with `wmlsearch prepare`")
    head = Head(cluster)
    hello = head.ask(Hello, "hello", name, fingerprint)
    _check_version(cluster, hello)
    if hello.job.state != UNKNOWN:
        raise InputError(
            f"{name}: the head already has a search of this name (state: {hello.job.state}); see it with "
            f"`{_command('status', name, cluster)}`, or give another --name"
        )
    head_data, head_job = f"{hello.home}/data/{fingerprint}", f"{hello.home}/jobs/{name}"
    if hello.has_data:
        say(f"the head already has the prepared data set ({fingerprint[:12]})")
    else:
        _send_data(head, data, head_data, fingerprint, say)
    if Path(space).is_file():
        head.run("exec", f"mkdir -p {shlex.quote(head_job)}")
        head.send(Path(space), f"{head_job}/space.yaml")
        space = f"{head_job}/space.yaml"
    if "--no-baseline" not in argv:  # the head will open the sealed test; the ledger beside `data` must say so
        record_opening(data, {"run": name, "where": f"the head of {cluster.name}"})
    command = ["tune", space, "--data", head_data, "--name", name, "--out", f"{hello.home}/runs", *argv]
    return _follow_and_fetch(head, name, head.ask(Started, "start", name, *command), out, say)


def resume(cluster: Path, argv: list[str], name: str, out: Path, say: Say) -> int:
    """Resume the search `name` on the head, follow it and fetch its results; return its exit status.

    `argv` are the options without --resume and --out. Raises InputError for what cannot be resumed.
    """
    head = Head(cluster)
    hello = head.ask(Hello, "hello", name, "")
    _check_version(cluster, hello)
    _check_known(cluster, name, hello)
    if hello.job.state == RUNNING:
        raise InputError(f"{name}: already runs on the head; see it with `{_command('status', name, cluster)}`")
    if hello.search is None:
        raise InputError(
            f"{name}: ended on the head before its first trial, so there is nothing to resume; start it again with "
            "another --name"
        )
    _has_copy(out / name, hello.search)
    return _follow_and_fetch(head, name, head.ask(Started, "resume", name, *argv), out, say)


def stop(cluster: Path, name: str | None, say: Say) -> int:
    """End the search `name` (default: the latest) on the head cleanly, and say how it ended. Raises InputError."""
    head = Head(cluster)
    with head.stream("exec", head_command("stop", name or "")) as stream:
        first = stream.next(ANSWER_S)
        if first is None:
            raise head.no_answer(stream)
        report = head.expect(JobReport, first)
        _check_known(cluster, name, report)
        name = report.job.name
        if report.job.state != RUNNING:
            raise InputError(f"{name}: has already ended on the head ({_ending(report.job)})")
        say(f"asked {name} to stop; its trials end within seconds ...")
        second = stream.next(SILENCE_S)
    if second is None:
        raise InputError(
            f"{name}: was asked to stop, but the connection to the head is lost; see how it stands with "
            f"`{_command('status', name, cluster)}`"
        )
    search = head.expect(JobReport, second).search
    status = search.status if search is not None else {}
    say(f"{name}: {status.get('state')} ({status.get('reason') or 'it had already ended'})")
    say(f"to fetch its results: {_command('status', name, cluster)}")
    say(f"to resume it: {command('tune', '--resume', name, '--cluster', cluster)}")
    return 0


def status(cluster: Path, name: str | None, out: Path, say: Say) -> int:
    """Say how the search `name` (default: the latest) stands on the head; fetch it into `out` if it has ended."""
    head = Head(cluster)
    columns = str(shutil.get_terminal_size((120, 40)).columns)
    first, *lines = head.answers("show", name or "", columns)
    report = head.expect(JobReport, first)
    _check_known(cluster, name, report)
    for line in lines:
        say(head.expect(LogLine, line).text)
    job = report.job
    if job.state == RUNNING:
        say(f"{job.name} has run on the head for {duration(time.time() - job.started)} (process {job.pid})")
    elif _has_copy(out / job.name, report.search):
        say(f"{job.name} has ended on the head ({_ending(job)}); {out / job.name} is up to date")
    else:
        _fetch(head, job, out, say)
    return 0


def ui(cluster: Path, port: int, say: Say) -> int:
    """Join 127.0.0.1:PORT with the head's MLflow server until Ctrl-C. Raises InputError if it cannot be reached."""
    head = Head(cluster)
    command = head_command("tunnel", str(port), module="head_mlflow")
    with head.stream("exec", command, "--port-forward", str(port)) as stream:
        try:
            first = stream.next(ANSWER_S)
            if first is None:
                raise head.no_answer(stream)
            head.expect(TunnelOpen, first)
            _wait_for_mlflow(cluster, port, stream)
            say(
                f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)\nit asks for a user and a "
                f"password, which `ray exec {shlex.quote(str(cluster))} 'cat ~/.mlflow/credentials'` shows"
            )
            while stream.next(SILENCE_S) is not None or stream.alive:
                pass
            say("the tunnel has ended: the connection to the head is lost")
            return 1
        except KeyboardInterrupt:
            return 0


def _check_version(cluster: Path, hello: Hello) -> None:
    """Raises InputError if the head has another version of wmlsearch than this machine."""
    if hello.version != __version__:
        raise InputError(
            f"{cluster}: the head has wmlsearch {hello.version}, but this machine has {__version__}; "
            f"{NEXT_STEP.format(file=cluster)}"
        )


def _check_known(cluster: Path, name: str | None, report: Hello | JobReport) -> None:
    """Raises InputError if the head has no job `name`, or none at all."""
    if report.job.state != UNKNOWN:
        return
    if name is None:
        raise InputError(
            f"{cluster}: no search on this cluster yet; start one with `{command('tune', '--cluster', cluster)}`"
        )
    names = ", ".join(report.names) or "none"
    raise InputError(f"{name}: no search of this name on the head of {cluster} (it has: {names})")


def _has_copy(path: Path, search: SearchSummary | None) -> bool:
    """Return whether `path` holds the search as it stands on the head. Raises InputError if it holds another run."""
    if not path.exists() or search is None:
        return False
    local = SearchDir(path)
    if not local.exists() or local.record().key != search.key:
        raise InputError(
            f"{path}: holds another run than the one on the head, and nothing is overwritten; give another --out"
        )
    return SearchSummary.read(path) == search


def _send_data(head: Head, data: Path, target: str, fingerprint: str, say: Say) -> None:
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    say(f"sending the prepared data set to the head ({size / 2**20:.1f} MB), which keeps it ...")
    began = time.monotonic()
    head.send(data, f"{target}.part")
    head.ask(DataAccepted, "accept", fingerprint)
    say(f"sent in {duration(time.monotonic() - began)}")


def _follow_and_fetch(head: Head, name: str, started: Started, out: Path, say: Say) -> int:
    """Follow a job from its start, then fetch its results; return its exit status, or 130 if following ended early."""
    say(f"{name} runs on the head (process {started.job.pid}); Ctrl-C stops following it, not the search")
    ended = _follow(head, name, started.offset, say)
    if ended is None:
        say(
            f"{name} continues on the head: see it with `{_command('status', name, head.cluster)}`, which also "
            f"fetches its results when it has ended; stop it with `{_command('stop', name, head.cluster)}`"
        )
        return 130
    return _fetch(head, ended, out, say)


def _follow(head: Head, name: str, offset: int, say: Say) -> JobState | None:
    """Say what the job prints until it has ended; return its state, or None after Ctrl-C or a lost connection."""
    failures = 0
    try:
        while failures < RETRIES:
            with head.stream("exec", head_command("follow", name, str(offset))) as stream:
                for message in stream.until_silence(SILENCE_S):
                    failures = 0
                    if isinstance(message, JobReport):
                        return message.job
                    line = head.expect(LogLine, message)
                    say(line.text)
                    offset = line.offset
            failures += 1
            if failures == 1:
                say("the connection to the head is lost; trying again ...")
            time.sleep(RETRY_S if failures > 1 else 1.0)
        say("the head can no longer be reached")
    except KeyboardInterrupt:
        say("stopped following")
    return None


def _fetch(head: Head, job: JobState, out: Path, say: Say) -> int:
    """Fetch the results of an ended job into `out`, in place of an older copy; return its exit status."""
    packed = head.ask(Packed, "pack", job.name)
    target = out / job.name
    if packed.size:
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".{job.name}.part"
        partial.mkdir(exist_ok=True)
        head.fetch(packed.folder, partial)
        if target.exists():
            SearchDir(target).replace_with(partial)
        else:
            os.replace(partial, target)
        say(f"fetched from the head into {target} ({packed.size / 2**20:.1f} MB, without the trials' checkpoints)")
    say(f"{job.name} has ended on the head: {_ending(job)}")
    return 1 if job.status is None else job.status


def _ending(job: JobState) -> str:
    """Return in words how a job ended."""
    return "its process died (was the head restarted?)" if job.status is None else f"exit status {job.status}"


def _wait_for_mlflow(cluster: Path, port: int, stream: MessageStream) -> None:
    """Wait until the head's MLflow answers through the tunnel. Raises InputError after half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and stream.alive:
        if is_healthy(port):
            return
        time.sleep(0.3)
    raise InputError(f"{cluster}: the head's MLflow does not answer on 127.0.0.1:{port}; give another --port")
