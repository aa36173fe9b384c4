"""Whole commands where a container, batch job or platform lacks what an ordinary Linux login has."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from processes import wait_for

from wmlsearch.runs.folders import SearchDir

# Without the names and files of Linux, as far as this package asks for them (Ray has its own ways on each platform).
NO_LINUX = """
import builtins, io, os, sys
def sysconf(name, original=os.sysconf):
    if name == "SC_AVPHYS_PAGES":
        raise ValueError("unrecognized configuration name")
    return original(name)
os.sysconf = sysconf
del os.sched_getaffinity, os.sched_setaffinity
def of_this_package():
    frame = sys._getframe(2)
    for _ in range(4):
        if frame is not None and "/wmlsearch/" in frame.f_code.co_filename:
            return True
        frame = frame and frame.f_back
    return False
def opened(file, *arguments, original=io.open, **options):
    name = os.fspath(file) if isinstance(file, (str, os.PathLike)) else ""
    if str(name).startswith(("/proc/", "/sys/")) and of_this_package():
        raise FileNotFoundError(2, "No such file or directory", name)
    return original(file, *arguments, **options)
io.open = builtins.open = opened
"""


def tune(prepared: Path, out: Path) -> list[str]:
    sizes = ["--trials", "1", "--epochs", "1", "--no-baseline", "--no-forecast"]
    command = [sys.executable, "-m", "wmlsearch", "tune", "quick", "--data", str(prepared), "--out", str(out)]
    return [*command, "--name", "s", *sizes]


@pytest.mark.slow
def test_a_search_without_the_linux_names(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_LINUX)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        tune(prepared, tmp_path / "runs"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [run.state for run in SearchDir(tmp_path / "runs" / "s").trials()] == ["completed"]


@pytest.mark.slow
def test_an_unknown_user_without_home_with_a_long_tmpdir_and_a_proxy(prepared: Path, tmp_path: Path) -> None:
    """As `docker run --user 12345` in a batch job. The package folder and the data cannot be written either."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    work = Path("/tmp") / f"wmlsearch-test-{os.getpid()}"  # noqa: S108 - pytest's folder is closed to other users
    long = work / ("a" * 120)
    long.mkdir(parents=True)
    try:
        data = work / "prepared"
        shutil.copytree(prepared, data)
        for folder in (work, long):
            folder.chmod(0o777)
        variables = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            "HOME": "/",
            "TMPDIR": str(long),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        }
        # The capability lets it read an interpreter below /root, and write nothing.
        user = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        done = subprocess.run(
            [*user, *tune(data, work / "runs")], env=variables, cwd=work, capture_output=True, text=True, check=False
        )
        if "setpriv" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [run.state for run in SearchDir(work / "runs" / "s").trials()] == ["completed"]
        assert list(long.iterdir()) == [], "nothing is left"
        said = " ".join(done.stdout.split())
        assert "note: Ray's sockets and logs are in /tmp, since" in said
        assert "MLflow" in said
        assert "MLflow lacks" not in said
        _check_ui([*user, sys.executable, "-m", "wmlsearch", "ui", "--out", str(work / "runs")], variables, work)
    finally:
        shutil.rmtree(work)


def _check_ui(command: list[str], variables: dict[str, str], cwd: Path) -> None:
    """Start the UI, wait until it answers without a proxy, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=variables, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    opener = build_opener(ProxyHandler({}))

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return bool(opener.open(f"http://127.0.0.1:{port}/health", timeout=5).read() == b"OK")
        except OSError:
            return False

    try:
        wait_for(answers, 240, "the UI does not answer")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
