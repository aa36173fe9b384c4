"""A cluster of `ray up`, by Ray's own commands: `ray dashboard` (a tunnel), `ray rsync-up` and `ray rsync-down`.

From the cluster file they know users, keys, proxies and containers, and reach the head by ssh.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import yaml

from wmlsearch.cluster.ray_patches import RAY_COMMAND as RAY
from wmlsearch.errors import InputError

CONNECT_S = 90.0  # starting `ray`, asking the cloud for the head, connecting
SEND_S = 24 * 3600.0
LOOPBACK = "127.0.0.1"
# How lines begin that Ray and ssh print in any case, and that explain no failure.
ROUTINE_OUTPUT = (
    "Shared connection",
    "Connection to",
    "Loaded cached",
    "If you experience",
    "Fetched IP",
    "Attempting to establish dashboard",
    "Forwarding ports",
    "Error: Failed to forward dashboard",
    "Error: Command failed",
    "1. The remote port",
    "2. The local port",
)


class UnreachableError(InputError):
    """A cluster that does not answer. It may answer later, so that one who follows a search tries again."""


class RayCommand:
    """A command of Ray that runs, and the end of its output."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - Ray's own command line, no shell
            [*RAY, *words],
            stdin=subprocess.DEVNULL,  # so that ssh leaves our terminal alone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only
        )
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, name="ray-command", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines = [*self._lines[-200:], line.strip()]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_lines(self) -> str:
        """Return the last lines that may explain a failure."""
        self._thread.join(0.5)  # not longer: ssh's connection sharing may keep our pipe open after the command
        lines = [line for line in self._lines if line and not line.startswith(ROUTINE_OUTPUT)]
        return " | ".join(lines[-4:])[-600:]

    def end(self) -> None:
        if self.alive:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class ClusterFile:
    """A cluster that is given by its file. Raises InputError if the file is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such cluster file; write one by `wmlsearch cluster-file`, or give the address of "
                "a dashboard, such as http://127.0.0.1:8265"
            ) from None
        except RecursionError:
            raise InputError(f"{path}: cannot be read as a cluster file (nested too deeply)") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as a cluster file ({' '.join(str(error).split())})") from None
        if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
            raise InputError(f"{path}: not a cluster file of Ray: `cluster_name` or `provider` is missing")

    def tunnel(self, port: int, remote_port: int) -> RayCommand:
        """Join a port of this machine's 127.0.0.1 with one of the head's, and return when it accepts connections.

        Raises UnreachableError if the head cannot be reached.
        """
        command = RayCommand("dashboard", str(self.path), "--port", str(port), "--remote-port", str(remote_port))
        deadline = time.monotonic() + CONNECT_S
        try:
            while time.monotonic() < deadline and command.alive:
                with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1.0):
                    return command
                time.sleep(0.1)
            raise self._unreachable(command)
        except BaseException:
            command.end()
            raise

    def send(self, source: Path, target: str) -> None:
        """Copy a file, or the contents of a folder, to the head. Raises UnreachableError."""
        slash = "/" if source.is_dir() else ""
        self._run("rsync-up", f"{source}{slash}", f"{target}{slash}", timeout_s=SEND_S)

    def fetch_folder(self, source: str, target: Path) -> None:
        """Copy the contents of a folder from the head. Raises UnreachableError."""
        self._run("rsync-down", f"{source}/", f"{target}/", timeout_s=SEND_S)

    def fetch_file(self, source: str, target: Path) -> bool:
        """Copy a file from the head, and return whether that succeeded: Ray does not say why it failed."""
        with contextlib.suppress(UnreachableError):
            self._run("rsync-down", source, str(target), timeout_s=CONNECT_S)
        return target.is_file()

    def _run(self, verb: str, *words: str, timeout_s: float) -> None:
        """Run a command of Ray about this cluster to its end. Raises UnreachableError if it fails or takes longer."""
        command = RayCommand(verb, "--log-style", "pretty", "--log-color", "false", str(self.path), *words)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(timeout_s)
            if command.process.poll() != 0:
                raise self._unreachable(command)
        finally:
            command.end()

    def _unreachable(self, command: RayCommand) -> UnreachableError:
        output, waited = command.last_lines(), command.alive
        step = f"start or update the cluster with `ray up {self.path}`"
        if "not found!" in output and "Head node" in output:
            return UnreachableError(f"{self.path}: this cluster is not running; {step}")
        if waited:
            output = f"no answer within {CONNECT_S:g} s" + (f": {output}" if output else "")
        return UnreachableError(
            f"{self.path}: the head cannot be reached ({output or 'no reason given'}); "
            f"check it with `ray exec {self.path} uptime`, or {step}"
        )
