"""The environment that libraries need: set here where a container, login node or batch job lacks it.

Ray, MLflow, PyTorch and matplotlib expect a home that can be written, a user with a name, and a loopback address that
no proxy is asked for. Processes that are started later inherit what is set.
"""

from __future__ import annotations

import atexit
import getpass
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.runs.machine import available_cpus

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CACHES = {  # each library's variable for its files, and the folder below the common one
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}


def prepare_environment() -> None:
    """Set the variables of this process that libraries need. Nothing that the user has set is replaced.

    - Proxies are not asked for the loopback address: MLflow and Ray run servers there.
    - Without a name of the user (an id without an entry in the list of users), one is made of the id.
    - Without a home that can be written, caches are in a temporary folder, which is removed at the end.
    - Where this process may use a part of the CPUs only, libraries start no more threads than that.

    Raises InputError if there is no temporary folder.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written and has free space") from None
    os.environ |= loopback_exceptions(os.environ)
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
    if not home_is_writable() and (missing := [name for name in _CACHES if name not in os.environ]):
        folder = Path(tempfile.mkdtemp(prefix="wmlsearch-cache-"))
        atexit.register(_remove_by, os.getpid(), folder)
        for name in missing:
            os.environ[name] = str(folder / _CACHES[name])
        if _home() is None:
            os.environ["HOME"] = str(folder)
    cpus = available_cpus()
    if cpus < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus))


def home_is_writable() -> bool:
    """Return whether the home of this user is a folder that can be written."""
    home = _home()
    return home is not None and home.is_dir() and os.access(home, os.W_OK | os.X_OK)


def _home() -> Path | None:
    """Return the home of this user by HOME or the list of users, or None if neither has one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def loopback_exceptions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `no_proxy` and `NO_PROXY` with the loopback address added, or {} if no proxy is set.

    Libraries read either of the two, and of both the first one only.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return {}
    given = [name for key in ("no_proxy", "NO_PROXY") for name in environment.get(key, "").split(",")]
    names = list(dict.fromkeys(name.strip() for name in [*given, *_LOOPBACK] if name.strip()))
    value = "*" if "*" in names else ",".join(names)
    return {"no_proxy": value, "NO_PROXY": value}


def _remove_by(process: int, folder: Path) -> None:
    if os.getpid() == process:  # not by its forks
        shutil.rmtree(folder, ignore_errors=True)
