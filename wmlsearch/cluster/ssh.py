"""SSH to the head of a cluster, by Ray's own commands: `ray exec`, `ray rsync-up` and `ray rsync-down`.

From the cluster file they know users, keys, proxies and containers. What `head_agent` answers is read as typed messages
(see `messages`) from the lines that Ray, ssh and the shell print.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml

from wmlsearch import __version__
from wmlsearch.cluster.messages import MARK, Failure, Message, read_message
from wmlsearch.cluster.ray_patches import RAY_COMMAND as RAY
from wmlsearch.config import InputError

Answer = TypeVar("Answer", bound=Message)

ANSWER_S = 90.0  # for the first answer: starting `ray`, connecting, starting Python on a small head
GRACE_S = 1.0  # for what an ended process has written and we have not read
SEND_S = 24 * 3600.0
PLAIN_OUTPUT = ("--log-style", "pretty", "--log-color", "false")  # else Ray prefixes lines with a time and a file name
NEXT_STEP = "start or update the cluster with `ray up {file}`"
# How lines begin that Ray and ssh print in any case, and that explain no failure.
ROUTINE_OUTPUT = (
    "Shared connection",
    "Connection to",
    "Loaded cached",
    "If you experience",
    "Fetched IP",
    "Error: Command failed",
)


class MessageStream:
    """The messages in a command's output. Its other lines are kept for error messages."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.other_lines: list[str] = []
        self._queue: queue.Queue[Message | None] = queue.Queue()  # None: the output has ended
        self._thread = threading.Thread(target=self._read, name="ray-exec", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            start = line.find(MARK)
            if start < 0:
                self.other_lines = [*self.other_lines[-200:], line.strip()]
                continue
            try:
                self._queue.put(read_message(line[start + len(MARK) :]))
            except ValueError:  # torn by the end of the connection
                self.other_lines.append(line.strip())
        self._queue.put(None)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def has_ended(self) -> bool:
        """Return whether the command has ended, or ends within GRACE_S: its end of the pipe may close earlier."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        return not self.alive

    def next(self, timeout_s: float) -> Message | None:
        """Return the next message; None if there are no more, or if none comes within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                now = time.monotonic()
                if not self.alive:
                    # ssh's connection sharing may keep our pipe open for a while after `ray exec`: do not wait for it
                    deadline = min(deadline, now + GRACE_S)
                if now > deadline:
                    return None

    def until_silence(self, timeout_s: float) -> Iterator[Message]:
        """Yield messages until there are no more, or none comes for `timeout_s`."""
        while (message := self.next(timeout_s)) is not None:
            yield message

    def last_lines(self) -> str:
        """Return the last lines that may explain a failure."""
        self._thread.join(0.5)
        lines = [
            line
            for line in self.other_lines
            if line and not line.startswith(ROUTINE_OUTPUT) and MARK.strip() not in line
        ]
        return " | ".join(lines[-4:])[-600:]


class Head:
    """The head of a cluster, given by its cluster file. Raises InputError if the file is not one."""

    def __init__(self, cluster: Path) -> None:
        self.cluster = cluster
        try:
            config = yaml.safe_load(cluster.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{cluster}: no such cluster file; start from cluster.yaml or a file in clusters/"
            ) from None
        except RecursionError:
            raise InputError(f"{cluster}: cannot be read as a cluster file (nested too deeply)") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{cluster}: cannot be read as a cluster file ({' '.join(str(error).split())})") from None
        if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
            raise InputError(f"{cluster}: not a cluster file of Ray: `cluster_name` or `provider` is missing")

    @contextlib.contextmanager
    def stream(self, verb: str, *words: str) -> Iterator[MessageStream]:
        """Run `ray VERB FILE WORDS`; the command ends with the block."""
        process = subprocess.Popen(  # noqa: S603 - Ray's own command line, no shell
            [*RAY, verb, *PLAIN_OUTPUT, str(self.cluster), *words],
            stdin=subprocess.DEVNULL,  # so that ssh leaves our terminal alone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only
        )
        try:
            yield MessageStream(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def answers(self, *words: str) -> list[Message]:
        """Run `head_agent WORDS` and return its answers. Raises InputError if it refuses or cannot be reached."""
        with self.stream("exec", head_command(*words)) as stream:
            messages = list(stream.until_silence(ANSWER_S))
            if not messages:
                raise self.no_answer(stream)
        for message in messages:
            if isinstance(message, Failure):
                raise InputError(f"{self.cluster}: {message.error}")
        return messages

    def ask(self, form: type[Answer], *words: str) -> Answer:
        """Run `head_agent WORDS` and return its first answer. Raises InputError as `answers` does."""
        return self.expect(form, self.answers(*words)[0])

    def expect(self, form: type[Answer], message: Message) -> Answer:
        """Return `message`, which must be of type `form`. Raises InputError if it is not."""
        if isinstance(message, Failure):
            raise InputError(f"{self.cluster}: {message.error}")
        if not isinstance(message, form):
            raise InputError(
                f"{self.cluster}: the head sent {type(message).__name__} where {form.__name__} was expected; "
                + NEXT_STEP.format(file=self.cluster)
            )
        return message

    def run(self, verb: str, *words: str, timeout_s: float = ANSWER_S) -> None:
        """Run a command of Ray's to its end. Raises InputError if it fails or takes longer than `timeout_s`."""
        with self.stream(verb, *words) as stream:
            deadline = time.monotonic() + timeout_s
            while stream.alive and time.monotonic() < deadline:
                stream.next(1.0)
            if stream.process.poll() != 0:
                raise self.no_answer(stream)

    def send(self, source: Path, target: str) -> None:
        """Copy a file, or the contents of a folder, to the head."""
        slash = "/" if source.is_dir() else ""
        self.run("rsync-up", f"{source}{slash}", f"{target}{slash}", timeout_s=SEND_S)

    def fetch(self, source: str, target: Path) -> None:
        """Copy the contents of a folder from the head."""
        self.run("rsync-down", f"{source}/", f"{target}/", timeout_s=SEND_S)

    def no_answer(self, stream: MessageStream) -> InputError:
        """Return the error for a head that has not answered."""
        output, waited = stream.last_lines(), not stream.has_ended()
        step = NEXT_STEP.format(file=self.cluster)
        if "not found!" in output and "Head node" in output:
            return InputError(f"{self.cluster}: this cluster is not running; {step}")
        if re.search(r"No module named '?wmlsearch\.", output):
            return InputError(
                f"{self.cluster}: the head has another version of wmlsearch than this machine, which has {__version__} "
                f"({output}); {step}"
            )
        if "No module named" in output or "command not found" in output:
            return InputError(f"{self.cluster}: wmlsearch is not installed on the head ({output}); {step}")
        if waited:
            output = f"no answer within {ANSWER_S:g} s" + (f": {output}" if output else "")
        return InputError(
            f"{self.cluster}: the head cannot be reached ({output or 'no reason given'}); "
            f"check it with `ray exec {self.cluster} uptime`, or {step}"
        )


def head_command(*words: str, module: str = "head_agent") -> str:
    """Return the command line that runs a module of this package in the head's shell."""
    return shlex.join(["python", "-m", f"wmlsearch.cluster.{module}", *words])
