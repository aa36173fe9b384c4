"""Simulated machines for the cluster test, made of namespaces: each has a network, processes, /tmp, home and sshd.

`world` is the outermost namespace (started by tests/cluster/run). It contains the laptop (itself), the bridge and the
hosts. When its first process ends, the kernel ends every process in it and removes all links, mounts and namespaces,
so nothing has to be cleaned up. The network has no connection to the outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
LAPTOP_IP, NETWORK = "10.77.0.1", 24
HOME = Path.home()
# Private folders of every machine: in memory and empty at first. /mnt is shared, like a network file system.
PRIVATE = (Path("/tmp"), HOME, Path("/dev/shm"), Path("/run"), Path("/var/log"))  # noqa: S108 - that is the point
SHARED = Path("/mnt/storage")
VISIBLE = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))  # readable on every machine: Python, packages, code
HIDDEN_FOLDERS = ("runs", "data", "prepared", "demo")  # a developer's folders in the repository, hidden from the hosts
SSHD = "/usr/sbin/sshd"
INFRASTRUCTURE = ("sshd", f"{sys.executable} {__file__}")


def sh(*words: Any, **options: Any) -> str:
    done = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, **options)
    return done.stdout


class Host:
    """A machine that is connected to the bridge."""

    def __init__(self, name: str, ip: str, public_key: str) -> None:
        self.name, self.ip = name, ip
        about = {"name": name, "ip": ip, "public_key": public_key}
        namespaces = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self.process = subprocess.Popen(
            ["unshare", *namespaces, sys.executable, __file__, "host", json.dumps(about)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        self.link = f"to-{name}"
        until = time.monotonic() + 10
        while Path(f"/proc/{self.process.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            assert time.monotonic() < until, f"{name} has no network namespace"
            time.sleep(0.01)  # the kernel announces no new namespace: look again until the time is over
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "eth0", "netns", self.process.pid)
        sh("ip", "link", "set", self.link, "master", "lan", "up")

    def unplug(self) -> None:
        """Simulate a power cut: the host goes silent, and the other hosts do not see its connections close."""
        sh("ip", "link", "set", self.link, "down")
        self.process.kill()
        self.process.wait()

    def cut(self, seconds: float) -> None:
        """Disconnect the host from the network for some seconds. Packets sent meanwhile are lost."""
        sh("ip", "link", "set", self.link, "down")
        time.sleep(seconds)  # the duration of the fault
        sh("ip", "link", "set", self.link, "up")

    def processes(self) -> list[str]:
        """Return the command lines of the host's processes, without its sshd and first process."""
        namespace = self._namespace()
        commands = [words for pid, words in _commands() if _namespace(pid) == namespace]
        return [words for words in commands if not words.startswith(INFRASTRUCTURE)]

    def exec(self, *words: Any, environment: Mapping[str, str] | None = None) -> str:
        """Run a command on this host without ssh, and return its output."""
        inside = ["nsenter", "--target", self._first(), "--mount", "--net", "--pid", "--uts", "--ipc", f"--wd={HOME}"]
        done = subprocess.run(
            [str(word) for word in (*inside, *words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        assert done.returncode == 0, f"{self.name}: {words}: {done.stdout}"
        return done.stdout

    def is_up(self) -> bool:
        """Return whether the host has its private folders, its network and its sshd."""
        return self.file("/run/sshd/pid").exists()

    def file(self, path: str | Path) -> Path:
        """Return the path in the outermost namespace of a file of this host."""
        return Path(f"/proc/{self._first()}/root") / str(path).replace("~", str(HOME)).lstrip("/")

    def _first(self) -> int:
        """Return the id of the host's first process; 0 if the host has ended."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return int(children[0]) if children else 0
        return 0

    def _namespace(self) -> str:
        return _namespace(self._first()) or "none"


def _commands() -> list[tuple[int, str]]:
    """Return process id and command line of all processes."""
    commands = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                commands.append((int(entry.name), words))
    return commands


def _namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    return ""


def make_private() -> None:
    """Mount empty folders in memory over PRIVATE. The VISIBLE paths below them stay visible, read-only."""
    descriptors = {path: os.open(path, os.O_PATH) for path in VISIBLE}
    for folder in PRIVATE:
        sh("mount", "-t", "tmpfs", "-o", "mode=1777" if folder.name in ("tmp", "shm") else "mode=755", "tmpfs", folder)
    for path, descriptor in descriptors.items():
        if any(path.is_relative_to(folder) for folder in PRIVATE) or path == REPOSITORY:
            path.mkdir(parents=True, exist_ok=True)
            sh("mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{descriptor}", path, pass_fds=[descriptor])
            sh("mount", "-o", "remount,bind,ro", path)
    for name in HIDDEN_FOLDERS:
        if (REPOSITORY / name).is_dir():
            sh("mount", "-t", "tmpfs", "tmpfs", REPOSITORY / name)
    (HOME / ".bashrc").touch()
    Path("/var/log/lastlog").touch()  # sshd reads it


def world(command: list[str]) -> int:
    """Prepare the outermost namespaces, run `command`, and reap orphans. This is the first process in them."""
    make_private()
    sh("mount", "-t", "tmpfs", "tmpfs", SHARED.parent)
    SHARED.mkdir()
    names = Path("/run/resolv.conf")
    names.write_text("")  # no name server, so a look-up fails at once instead of waiting
    sh("mount", "--bind", names, "/etc/resolv.conf")
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "lan", "type", "bridge")
    sh("ip", "address", "add", f"{LAPTOP_IP}/{NETWORK}", "dev", "lan")
    sh("ip", "link", "set", "lan", "up")
    environment = {"PATH": os.environ["PATH"], "HOME": str(HOME), "LANG": "C.UTF-8", "WMLSEARCH_CLUSTER_TEST": "1"}
    return _reap_until(subprocess.Popen(command, cwd=REPOSITORY, env=environment))


def host(about: dict[str, str]) -> int:
    """Prepare a host, run its sshd, and reap orphans. This is the first process of the host."""
    make_private()
    sh("hostname", about["name"])
    names = Path("/run/hosts")
    names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {about['name']}\n")  # as Debian's installer writes it
    sh("mount", "--bind", names, "/etc/hosts")
    sh("ip", "link", "set", "lo", "up")
    until = time.monotonic() + 30
    while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True, check=False).returncode:
        assert time.monotonic() < until, "eth0 has not appeared"
        time.sleep(0.05)  # between two looks, until the time is over
    sh("ip", "address", "add", f"{about['ip']}/{NETWORK}", "dev", "eth0")
    sh("ip", "link", "set", "eth0", "up")
    sh(
        "ip", "route", "add", "default", "dev", "eth0"
    )  # it leads nowhere, but Ray finds the host's own address by the default route
    folder = Path("/run/sshd")
    folder.mkdir(mode=0o755)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")
    (folder / "authorized_keys").write_text(about["public_key"])
    settings = {
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "ListenAddress": about["ip"],
        "PidFile": folder / "pid",
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "UseDNS": "no",
        "PrintLastLog": "no",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    return _reap_until(subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")]))


def _reap_until(main: subprocess.Popen[bytes]) -> int:
    """Reap children until `main` ends, and return its exit status.

    Orphans become children of the first process of a namespace. An orphan that is not reaped stays as a zombie.
    """
    while True:
        pid, status = os.wait()
        if pid == main.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(world(sys.argv[2:]) if sys.argv[1] == "world" else host(json.loads(sys.argv[2])))
