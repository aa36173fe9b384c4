"""How the head of a Ray cluster is reached: by Ray's own commands, with answers in lines (see `on_head`).

`ray exec`, `ray rsync-up` and `ray rsync-down` know how (ssh, keys, proxies, containers), from the cluster file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from wmlsearch.cluster.head_agent import MARK
from wmlsearch.config import InputError

Message = dict[str, Any]

ANSWER_S = 90.0  # the first answer: starting `ray`, connecting, starting Python on a small head
GRACE_S = 1.0  # for what an ended process has written and we have not read
SEND_S = 24 * 3600.0
RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the command `ray` of this very installation
QUIET = ("--log-style", "pretty", "--log-color", "false")  # else Ray logs each step with a time and a file name
STEP = "start the cluster, or bring it up to date, with `ray up {file}`"


class Messages:
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
        end = time.monotonic() + timeout_s
        while True:
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                now = time.monotonic()
                if not self.alive:
                    # ssh's connection sharing may keep our pipe open for a while after `ray exec`: don't wait for that
                    end = min(end, now + GRACE_S)
                if now > end:
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


class Head:
    """The head of the cluster of a file, through Ray's own commands."""

    def __init__(self, cluster: Path) -> None:
        self.cluster = cluster
        try:
            config = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{cluster}: no such cluster file; take cluster.yaml or one of clusters/ as a pattern"
            ) from None
        except RecursionError:
            raise InputError(f"{cluster}: can't be read as a cluster file (nested too deeply)") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{cluster}: can't be read as a cluster file ({' '.join(str(error).split())})") from None
        if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
            raise InputError(f"{cluster}: isn't a cluster file of Ray: `cluster_name` and `provider` are missing")

    @contextlib.contextmanager
    def stream(self, verb: str, *words: str) -> Iterator[Messages]:
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
            yield Messages(process)
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
        with self.stream("exec", call(*words)) as messages:
            answers = list(until(messages, ANSWER_S))
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
            end = time.monotonic() + timeout_s
            while messages.alive and time.monotonic() < end:
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

    def silent(self, messages: Messages) -> InputError:
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


def call(*words: str, module: str = "head_agent") -> str:
    """The command line for the head's shell."""
    return shlex.join(["python", "-m", f"wmlsearch.cluster.{module}", *words])


def until(messages: Messages, timeout_s: float) -> Iterator[Message]:
    """The messages as they come, until there are no more or none has come for `timeout_s`."""
    while (message := messages.next(timeout_s)) is not None:
        yield message
