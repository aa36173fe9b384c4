"""`wmlsearch ... --cluster FILE`: the same command on the head of a Ray cluster, by Ray's own commands.

`ray exec`, `ray rsync-up` and `ray rsync-down` know how the head is reached (ssh, keys, proxies, containers); at the
far end `wmlsearch.on_head` answers. The search belongs to the head: what happens here starts, follows and fetches it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import yaml

from wmlsearch import __version__
from wmlsearch.config import InputError
from wmlsearch.on_head import MARK
from wmlsearch.runs import check_new, read_json

Say = Callable[[str], None]
Message = dict[str, Any]

ANSWER_S = 90.0  # the first answer: starting `ray`, connecting, starting Python on a small head
GRACE_S = 1.0  # for what an ended process has written and we have not read
SEND_S = 24 * 3600.0
RETRIES, RETRY_S = 40, 15.0  # following: how often a lost connection is tried again before we stop (10 minutes)
RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the command `ray` of this very installation
QUIET = ("--log-style", "pretty", "--log-color", "false")  # else Ray logs each step with a time and a file name
STEP = "start the cluster, or bring it up to date, with `ray up {file}`"


def tune(cluster: Path, argv: list[str], data: Path, space: str, name: str, out: Path, say: Say) -> int:
    """Run `wmlsearch tune SPACE ARGV` on the head of `cluster`, follow it, fetch its results; its exit status.

    `argv` are the options but --data, --name and --out. The prepared `data` are sent unless the head has them. Raises
    InputError for what can't be; Ctrl-C ends the following only.
    """
    check_new(out / name)
    fingerprint = read_json(data / "manifest.json").get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint.isalnum():
        raise InputError(f"{data}: its manifest.json has no fingerprint; make it again with `wmlsearch prepare`")
    head = _Head(cluster)
    there = head.ask("hello", name, fingerprint)
    _check_version(cluster, there)
    if there["state"]["state"] != "unknown":
        raise InputError(
            f"{name}: there is a search of this name on the head already (state: {there['state']['state']}); see it "
            f"with `wmlsearch status {name} --cluster {cluster}`, or choose another --name"
        )
    if there["has_data"]:
        say(f"the head has the prepared data already ({fingerprint[:12]})")
    else:
        _send_data(head, data, f"{there['home']}/data/{fingerprint}", fingerprint, say)
    if Path(space).is_file():
        head.run("exec", f"mkdir -p {shlex.quote(there['home'] + '/jobs/' + name)}")
        head.send(Path(space), f"{there['home']}/jobs/{name}/space.yaml")
        space = f"{there['home']}/jobs/{name}/space.yaml"
    command = ["tune", space, "--data", f"{there['home']}/data/{fingerprint}", "--name", name]
    command += ["--out", f"{there['home']}/runs", *argv]
    started = head.ask("start", name, *command)["state"]
    say(f"{name} runs on the head (process {started.get('pid')}); Ctrl-C ends only the following of it")
    ended = _follow(head, name, say)
    if ended is None:
        say(
            f"{name} goes on on the head: see it with `wmlsearch status {name} --cluster {cluster}`, which also "
            f"fetches what it has found once it has ended; stop it with "
            f"`ray exec {cluster} 'kill -INT {started.get('pid')}'`"
        )
        return 130
    return _finish(head, name, ended, out, say)


def status(cluster: Path, name: str | None, out: Path, say: Say) -> int:
    """Say how the search `name` (default: the latest) stands on the head; fetch it into `out` when it has ended."""
    head = _Head(cluster)
    columns = str(shutil.get_terminal_size((120, 40)).columns)
    messages = head.all("show", name or "", columns)
    answer = messages[0]
    now = answer["state"]
    if now["state"] == "unknown":
        if name is None:
            raise InputError(
                f"{cluster}: no search on this cluster yet; start one with `wmlsearch tune --cluster {cluster}`"
            )
        raise InputError(
            f"{name}: no search of this name on the head of {cluster} (there: {', '.join(answer['names']) or 'none'})"
        )
    for message in messages[1:]:
        say(message["line"])
    if now["state"] == "running":
        say(f"{now['name']} runs on the head, for {_duration(time.time() - now['started'])} (process {now.get('pid')})")
        return 0
    if (out / now["name"]).exists():
        say(f"{now['name']} has ended on the head ({_how(now)}); {out / now['name']} is here already")
        return 0
    _finish(head, now["name"], now, out, say)
    return 0


def ui(cluster: Path, port: int, say: Say) -> int:
    """Join 127.0.0.1:PORT with the head's MLflow server until Ctrl-C. Raises InputError when it can't be reached."""
    head = _Head(cluster)
    with head.stream("exec", _call("tunnel", str(port), module="head_mlflow"), "--port-forward", str(port)) as messages:
        try:
            for message in _until(messages, ANSWER_S):
                if "error" in message:
                    raise InputError(f"{cluster}: {message['error']}; {STEP.format(file=cluster)}")
                if "open" in message:
                    break
            else:
                raise head.silent(messages)
            _wait_healthy(cluster, port, messages)
            say(f"the cluster's MLflow: http://127.0.0.1:{port}  (Ctrl-C ends the tunnel)")
            while messages.next(3600) is not None or messages.alive:
                pass
            say("the tunnel has ended: the connection to the head is gone")
            return 1
        except KeyboardInterrupt:
            return 0


class _Messages:
    """What the far end tells, out of all that Ray, ssh and the shell print; the rest is kept for error messages."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.other: list[str] = []
        self._queue: queue.Queue[Message | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, name="ray-exec", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            place = line.find(MARK)
            if place < 0:
                self.other = [*self.other[-200:], line.strip()]
                continue
            try:
                self._queue.put(json.loads(line[place + len(MARK) :]))
            except ValueError:  # torn by the end of the connection
                self.other.append(line.strip())
        self._queue.put(None)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ended(self) -> bool:
        """Whether the command has ended, or is about to: its end of the pipe may close a moment earlier."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        return not self.alive

    def next(self, timeout_s: float) -> Message | None:
        """The next message; None when the far end has no more, or has said nothing for so long."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                now = time.monotonic()
                if not self.alive:
                    # ssh's connection sharing may keep our pipe open for a while after `ray exec`: don't wait for that
                    until = min(until, now + GRACE_S)
                if now > until:
                    return None

    def last_words(self) -> str:
        """What is likely to say why it failed."""
        self._thread.join(0.5)
        noise = (
            "Shared connection",
            "Connection to",
            "Loaded cached",
            "If you experience",
            "Fetched IP",
            "Error: Command failed",
        )
        words = [line for line in self.other if line and not line.startswith(noise) and "@" + "wmlsearch" not in line]
        return " | ".join(words[-4:])[-600:]


class _Head:
    """The head of the cluster of a file, through Ray's own commands."""

    def __init__(self, cluster: Path) -> None:
        self.cluster = cluster
        try:
            config = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{cluster}: no such cluster file; take cluster.yaml or one of clusters/ as a pattern"
            ) from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{cluster}: can't be read as a cluster file ({' '.join(str(error).split())})") from None
        if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
            raise InputError(f"{cluster}: isn't a cluster file of Ray: `cluster_name` and `provider` are missing")

    @contextlib.contextmanager
    def stream(self, verb: str, *words: str) -> Iterator[_Messages]:
        """Run `ray VERB FILE WORDS`; ended with the block."""
        process = subprocess.Popen(  # noqa: S603 - Ray's own command line, no shell
            [*RAY, verb, *QUIET, str(self.cluster), *words],
            stdin=subprocess.DEVNULL,  # so that ssh leaves our terminal alone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is ours
        )
        try:
            yield _Messages(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def all(self, *words: str) -> list[Message]:
        """What `on_head` answers, whole. Raises InputError when it can't be reached or refuses."""
        with self.stream("exec", _call(*words)) as messages:
            answers = list(_until(messages, ANSWER_S))
            if not answers:
                raise self.silent(messages)
        for answer in answers:
            if "error" in answer:
                raise InputError(f"{self.cluster}: {answer['error']}")
        return answers

    def ask(self, *words: str) -> Message:
        return self.all(*words)[0]

    def run(self, verb: str, *words: str, timeout_s: float = ANSWER_S) -> None:
        """A command of Ray's that answers with its exit status only."""
        with self.stream(verb, *words) as messages:
            until = time.monotonic() + timeout_s
            while messages.alive and time.monotonic() < until:
                messages.next(1.0)
            if messages.process.poll() != 0:
                raise self.silent(messages)

    def send(self, source: Path, target: str) -> None:
        """A file, or the contents of a folder, to the head."""
        slash = "/" if source.is_dir() else ""
        self.run("rsync-up", f"{source}{slash}", f"{target}{slash}", timeout_s=SEND_S)

    def fetch(self, source: str, target: Path) -> None:
        """The contents of a folder, from the head."""
        self.run("rsync-down", f"{source}/", f"{target}/", timeout_s=SEND_S)

    def silent(self, messages: _Messages) -> InputError:
        """What to say when the far end has not answered."""
        words, waited = messages.last_words(), not messages.ended()
        step = STEP.format(file=self.cluster)
        if "not found!" in words and "Head node" in words:
            return InputError(f"{self.cluster}: this cluster is not up; {step}")
        if "No module named" in words or "command not found" in words:
            return InputError(f"{self.cluster}: wmlsearch is not installed on the head ({words}); {step}")
        if waited:
            words = f"no answer within {ANSWER_S:g} s" + (f": {words}" if words else "")
        return InputError(
            f"{self.cluster}: the head can't be reached ({words or 'no reason given'}); "
            f"check it with `ray exec {self.cluster} uptime`, or {step}"
        )


def _call(*words: str, module: str = "on_head") -> str:
    """The command line for the head's shell."""
    return shlex.join(["python", "-m", f"wmlsearch.{module}", *words])


def _until(messages: _Messages, timeout_s: float) -> Iterator[Message]:
    """The messages as they come, until there are no more or none has come for `timeout_s`."""
    while (message := messages.next(timeout_s)) is not None:
        yield message


def _check_version(cluster: Path, there: Message) -> None:
    if there["version"] != __version__:
        raise InputError(
            f"{cluster}: the head has wmlsearch {there['version']}, and here is {__version__}; "
            f"{STEP.format(file=cluster)}"
        )


def _send_data(head: _Head, data: Path, target: str, fingerprint: str, say: Say) -> None:
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    say(f"sending the prepared data to the head, this once ({size / 2**20:.1f} MB) ...")
    began = time.monotonic()
    head.send(data, f"{target}.part")
    head.ask("accept", fingerprint)
    say(f"sent in {_duration(time.monotonic() - began)}")


def _follow(head: _Head, name: str, say: Say) -> Message | None:
    """Say what the search writes, until it has ended: its state then, or None if we were stopped or shut out."""
    offset, failures = 0, 0
    try:
        while failures < RETRIES:
            with head.stream("exec", _call("follow", name, str(offset))) as messages:
                # quiet for an hour is no fault: ssh itself notices a dead connection within seconds
                for message in _until(messages, 3600):
                    failures = 0
                    if "state" in message:
                        return dict(message["state"])
                    say(message["line"])
                    offset = message["offset"]
            failures += 1
            if failures == 1:
                say("the connection to the head is lost; trying again ...")
            time.sleep(RETRY_S if failures > 1 else 1.0)
        say("the head can't be reached any more")
    except KeyboardInterrupt:
        say("stopped following")
    return None


def _finish(head: _Head, name: str, ended: Message, out: Path, say: Say) -> int:
    """Fetch what an ended search has found into `out`; its exit status."""
    packed = head.ask("pack", name)
    if packed["bytes"]:
        out.mkdir(parents=True, exist_ok=True)
        aside = out / f".{name}.part"
        aside.mkdir(exist_ok=True)
        head.fetch(packed["packed"], aside)
        os.replace(aside, out / name)
        say(
            f"fetched from the head into {out / name} ({packed['bytes'] / 2**20:.1f} MB; "
            "the trials' checkpoints stay there)"
        )
    say(f"{name} has ended on the head: {_how(ended)}")
    return int(ended.get("status", 1))


def _how(state: Message) -> str:
    return f"exit status {state['status']}" if "status" in state else "its process died (was the head restarted?)"


def _wait_healthy(cluster: Path, port: int, messages: _Messages) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and messages.alive:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().read() == b"OK":
                return
        except (OSError, HTTPException):
            time.sleep(0.3)
        finally:
            connection.close()
    raise InputError(
        f"{cluster}: the tunnel to the head's MLflow does not answer on 127.0.0.1:{port}; try another --port"
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole} s"
        if whole < 100
        else f"{whole // 60} min"
        if whole < 6000
        else f"{whole // 3600} h {whole % 3600 // 60} min"
    )
