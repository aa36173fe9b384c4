"""The environment that libraries need: set here where a container, login node or batch job lacks it.

Ray, MLflow, PyTorch and matplotlib expect a home that can be written, a user with a name, and a loopback address that
no proxy is asked for. Processes that are started later inherit what is set. What is changed is remembered, so that a
notebook gets its own environment back (`prepared_environment`), and a user's command never sees ours
(`users_environment`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import ipaddress
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.machine import available_cpus
from wmlsearch.runs.scratch import scratch_folder

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
RAY_OF_JOB = "WMLSEARCH_RAY_OF_JOB"  # address of a Ray that ends with its batch job: no search is resumed on it
NO_GPUS = ("", "-1", "NoDevFiles")  # as a variable says that names the GPUs of a process
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_CACHES = {  # each library's variable for its files, and the folder below the common one
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
}


_changes: dict[str, tuple[str | None, str]] = {}  # of each variable: what the user had, and what was set here


def prepare_environment() -> None:
    """Set the variables of this process that libraries need, for good. Nothing that the user has set is replaced.

    - Proxies are not asked for the loopback address: MLflow and Ray run servers there.
    - Without a name of the user (an id without an entry in the list of users), one is made of the id.
    - Without a home that can be written, caches are in a temporary folder, which is removed when this process ends.
    - Ray wants AMD GPUs in another variable than the one that Slurm sets.
    - Where this process may use a part of the CPUs only, libraries start no more threads than that.

    Raises InputError if there is no temporary folder.
    """
    set_variables(_missing_variables())


@contextlib.contextmanager
def prepared_environment() -> Iterator[None]:
    """Do what `prepare_environment` does, and put the variables back at the end of the block. Raises InputError."""
    with variables_set(_missing_variables()):
        yield


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for the block. What the user changes in it stays."""
    before = {name: (_changes.get(name), os.environ.get(name)) for name in variables}
    set_variables(variables)
    try:
        yield
    finally:
        for name, (change, value) in before.items():
            set_here = _changes.pop(name, None)  # None: another thread has put it back
            is_unchanged = set_here is not None and os.environ.get(name) == set_here[1]
            _changes.update({} if change is None else {name: change})
            if is_unchanged:
                del os.environ[name]
                os.environ |= {} if value is None else {name: value}


def set_variables(variables: Mapping[str, str]) -> None:
    """Set variables of this process, and remember what the user had."""
    for name, value in variables.items():
        before = _changes[name][0] if name in _changes else os.environ.get(name)
        _changes[name] = (before, value)
    os.environ |= variables


def users_environment() -> dict[str, str]:
    """Return the environment of this process without what was set here: for commands of the user."""
    environment = dict(os.environ)
    for name, (before, value) in _changes.items():
        if environment.get(name) == value:  # else the user has changed it since
            del environment[name]
            environment |= {} if before is None else {name: before}
    return environment


def _missing_variables() -> dict[str, str]:
    """Return the variables that libraries need and lack. Raises InputError if there is no temporary folder."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"{error.strerror}; set TMPDIR to a folder that can be written and has free space") from None
    missing = loopback_exceptions(os.environ)
    missing = {name: value for name, value in missing.items() if os.environ.get(name) != value}
    missing |= hip_devices(os.environ)
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        missing["LOGNAME"] = f"uid-{os.getuid()}"
    if not home_is_writable() and (caches := [name for name in _CACHES if name not in os.environ]):
        folder = _cache_folder(os.getpid())
        missing |= {name: str(folder / _CACHES[name]) for name in caches}
        if _home() is None:
            missing["HOME"] = str(folder)
    cpus = available_cpus()
    if cpus < (os.cpu_count() or 1) and "OMP_NUM_THREADS" not in os.environ:
        missing["OMP_NUM_THREADS"] = str(cpus)
    return missing


@functools.cache
def _cache_folder(process: int) -> Path:  # noqa: ARG001 - the key of the cache: a fork gets a folder of its own
    """Return the folder for the caches of this process: libraries may keep its name for as long as it lives.

    It is removed when the process ends, however it ends.
    """
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("cache"))
    atexit.register(stack.close)
    return folder


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


def is_loopback(host: str) -> bool:
    """Return whether a host is the loopback address, or its name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOOPBACK_HOSTS


def loopback_exceptions(environment: Mapping[str, str], host: str = "") -> dict[str, str]:
    """Return `no_proxy` and `NO_PROXY` with the loopback address added, or {} if no exceptions are needed.

    Libraries read either of the two, and of both the first one only. With either of them, they ask none of the proxies
    that macOS itself names, so both are left alone unless a proxy is set, or `host` is given.

    Args:
        host: A loopback address that is about to be asked.
    """
    if not host and not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return {}
    given = [name for key in ("no_proxy", "NO_PROXY") for name in environment.get(key, "").split(",")]
    names = list(dict.fromkeys(name.strip() for name in [*given, *_LOOPBACK_HOSTS, host] if name.strip()))
    value = "*" if "*" in names else ",".join(names)
    return {"no_proxy": value, "NO_PROXY": value}


def hip_devices(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `HIP_VISIBLE_DEVICES` for AMD GPUs that `ROCR_VISIBLE_DEVICES` alone selects, as in a Slurm job; else {}.

    Ray does not start with the latter alone. ROCm applies it first, so the former counts its GPUs, from 0 on.
    """
    selected = environment.get("ROCR_VISIBLE_DEVICES")
    if selected is None or "HIP_VISIBLE_DEVICES" in environment:
        return {}
    count = 0 if selected.strip() in NO_GPUS else len(selected.split(","))
    return {"HIP_VISIBLE_DEVICES": ",".join(str(device) for device in range(count))}
