"""What libraries need of the environment, where a container or batch job lacks it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import wait_for

from wmlsearch.errors import InputError
from wmlsearch.runs import environment
from wmlsearch.runs.environment import hip_devices, loopback_exceptions, prepare_environment

LOOPBACK = "127.0.0.1,localhost,::1"
PRINT = """
import json, os
from wmlsearch.runs.environment import prepare_environment
prepare_environment()
print(json.dumps(dict(os.environ)))
"""


def prepared(variables: dict[str, str], code: str = PRINT) -> dict[str, str]:
    """Return the environment of a process with these variables alone, after the call."""
    python = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env={**python, **variables}, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"no_proxy": "x.org"}, None),
        ({"http_proxy": ""}, None),
        ({"http_proxy": "http://p:1"}, LOOPBACK),
        ({"ALL_PROXY": "socks5://p:1", "no_proxy": "x.org, 10.0.0.0/8"}, f"x.org,10.0.0.0/8,{LOOPBACK}"),
        ({"HTTPS_PROXY": "p:1", "NO_PROXY": "x.org,localhost"}, "x.org,localhost,127.0.0.1,::1"),
        ({"http_proxy": "p:1", "no_proxy": "a.org", "NO_PROXY": "b.org"}, f"a.org,b.org,{LOOPBACK}"),
        ({"http_proxy": "p:1", "no_proxy": "*"}, "*"),
    ],
)
def test_no_proxy_is_asked_for_the_loopback_address(given: dict[str, str], expected: str | None) -> None:
    assert loopback_exceptions(given) == ({} if expected is None else {"no_proxy": expected, "NO_PROXY": expected})


def test_requests_and_urllib_go_past_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.request import proxy_bypass

    from requests.utils import should_bypass_proxies

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not should_bypass_proxies("http://127.0.0.1:5000", no_proxy=None)
    for name, value in loopback_exceptions(os.environ).items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1", "localhost"):
        assert should_bypass_proxies(f"http://{host}:5000", no_proxy=None)
        assert proxy_bypass(f"{host}:5000")
    assert not should_bypass_proxies("http://mlflow.example.org", no_proxy=None)


def test_an_ordinary_environment_stays_as_it_is(tmp_path: Path) -> None:
    given = {"HOME": str(tmp_path), "USER": "anna", "OMP_NUM_THREADS": "3"}
    after = prepared(given)
    assert {name: after.get(name) for name in given} == given
    assert not [name for name in after if "CACHE" in name or "PROXY" in name.upper() or name == "MPLCONFIGDIR"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["missing", "file"])
def test_without_a_home_caches_are_temporary_and_removed(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "t").mkdir()
    given = {"HOME": str(tmp_path / home), "USER": "anna", "TMPDIR": str(tmp_path / "t"), "TRITON_CACHE_DIR": "/mine"}
    after = prepared(given)
    assert (after["HOME"], after["TRITON_CACHE_DIR"]) == (given["HOME"], "/mine"), "nothing of the user is replaced"
    for name in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        assert Path(after[name]).parent.parent == tmp_path / "t"
    assert list((tmp_path / "t").iterdir()) == [], "removed at the end of the process"


PUT_BACK = """
import os
from pathlib import Path
before = dict(os.environ)
import wmlsearch.cluster
from wmlsearch.runs.environment import prepared_environment, users_environment
changed = {name for name in os.environ if os.environ[name] != before.get(name)}
assert all(name.startswith(("RAY_", "TUNE_")) for name in changed), changed
assert users_environment() == before
assert list(Path(os.environ["TMPDIR"]).iterdir()) == []
ours = dict(os.environ)
for _ in range(2):
    with prepared_environment():
        folder = Path(os.environ["MPLCONFIGDIR"]).parent
        assert folder.is_dir() and os.environ["no_proxy"] == "a.org,127.0.0.1,localhost,::1"
        assert users_environment() == before
        os.environ["XDG_CACHE_HOME"] = "/chosen"
        with prepared_environment():
            os.environ["MINE"] = "1"
        assert "MPLCONFIGDIR" in os.environ
        del os.environ["MINE"]
    assert os.environ.pop("XDG_CACHE_HOME") == "/chosen", "what the user has set since stays"
    assert dict(os.environ) == ours
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == [folder]
print("{}")
"""


def test_a_notebook_gets_its_environment_back(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    given = {"HOME": str(tmp_path / "missing"), "USER": "anna", "TMPDIR": str(tmp_path / "t"), "http_proxy": "p:1"}
    assert prepared({**given, "no_proxy": "a.org"}, PUT_BACK) == {}
    assert list((tmp_path / "t").iterdir()) == []


END_AT_ONCE = """
import os, signal
from wmlsearch.runs.environment import prepare_environment
prepare_environment()
print(os.environ["XDG_CACHE_HOME"], flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_caches_are_removed_however_the_process_ends(end: str, tmp_path: Path) -> None:
    python = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = {**python, "HOME": str(tmp_path / "missing"), "USER": "anna", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", END_AT_ONCE.format(end=end)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    folder = Path(result.stdout.strip()).parent
    assert folder.parent == tmp_path
    wait_for(lambda: not folder.exists(), 30)


def test_a_fork_that_ends_leaves_the_caches(tmp_path: Path) -> None:
    code = """
import json, os, sys
from wmlsearch.runs.environment import prepare_environment
prepare_environment()
if os.fork() == 0:
    sys.exit(0)
os.wait()
print(json.dumps({"exists": os.path.isdir(os.path.dirname(os.environ["XDG_CACHE_HOME"]))}))
"""
    given = {"HOME": str(tmp_path / "missing"), "USER": "anna", "TMPDIR": str(tmp_path)}
    assert prepared(given, code) == {"exists": True}
    assert list(tmp_path.iterdir()) == []


NOBODY = """
import os, pwd, getpass, json
def fail(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = fail
from wmlsearch.runs.environment import prepare_environment
prepare_environment()
from pathlib import Path
import tempfile
home = Path.home()
assert home.is_dir() and os.access(home, os.W_OK)
print(json.dumps({"user": getpass.getuser(), "home": str(home)}))
"""


def test_a_user_without_an_entry_and_without_a_home(tmp_path: Path) -> None:
    after = prepared({"TMPDIR": str(tmp_path)}, NOBODY)
    assert after["user"] == f"uid-{os.getuid()}"
    assert Path(after["home"]).parent == tmp_path


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(InputError, match=r"found in \['/tmp'\]; set TMPDIR to a folder that can be written"):
        prepare_environment()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, None),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, "0,1"),
        ({"ROCR_VISIBLE_DEVICES": "GPU-4f1b,GPU-90aa,GPU-77c0", "CUDA_VISIBLE_DEVICES": "4,5,6"}, "0,1,2"),
        ({"ROCR_VISIBLE_DEVICES": ""}, ""),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, ""),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, None),
    ],
)
def test_amd_gpus_are_counted_within_the_selection(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own manager of AMD GPUs refuses an environment that selects them with ROCR_VISIBLE_DEVICES alone."""
    managers = pytest.importorskip("ray._private.accelerators.amd_gpu")
    visible = managers.AMDGPUAcceleratorManager.get_current_process_visible_accelerator_ids
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert hip_devices(given).get("HIP_VISIBLE_DEVICES") == expected
    if expected is not None:
        with pytest.raises(RuntimeError, match="Please use HIP_VISIBLE_DEVICES"):
            visible()
        with environment.prepared_environment():
            assert visible() == [device for device in expected.split(",") if device]
        assert "HIP_VISIBLE_DEVICES" not in os.environ


def test_threads_follow_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(environment, "available_cpus", lambda: 3)
    prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(environment, "available_cpus", lambda: 2)
    prepare_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3", "what is set stays"


def test_nothing_is_written_into_the_package(tmp_path: Path) -> None:
    """A package folder that cannot be written is not asked for: its files keep their times."""
    from wmlsearch import config

    package = Path(config.__file__).parent
    shipped = set((package / "search" / "recorded").glob("*.jsonl"))  # recorded trainings
    of_code = (".py", ".j2", ".pyc", ".typed", ".yaml")
    written = [path for path in package.rglob("*") if path.suffix not in of_code and path not in shipped]
    assert [path for path in written if path.is_file() and not stat.S_ISLNK(path.lstat().st_mode)] == []
