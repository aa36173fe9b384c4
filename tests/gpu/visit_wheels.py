"""Download the wheels that a machine without network lacks: what `pyproject.toml` asks for, less what is there.

nnU-Net, for the stage `nnunet`, is carried too: see `nnunet_wheels`.

pip resolves for the machine's version of Python with the versions of `constraints.txt`. Since pip evaluates the
conditions of requirements (`python_version < "3.12"`) for the Python that runs it, they are evaluated here again.
"""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from visit_parts import VisitError

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = ("pytest", "pytest-timeout")
ALONE = ("monai",)  # of the benchmarks, without what it needs: torch and numpy
NNUNET = "nnunetv2>=2.8.1,<2.9"  # whose calls `benchmarks/nnunet.py` makes
# What is carried without torch, which each of them needs. pip builds wheels of those that are published as source only.
WITH_NNUNET = ("nnunetv2", "acvl-utils", "batchgenerators", "batchgeneratorsv2", "dynamic-network-architectures")
# What they ask for and its 2D configuration does not import: other networks, other image formats, their own tests.
UNUSED = ("timm", "imagecodecs", "unittest2")
WITH_TORCH = ("torch", "triton", "numpy")  # what a machine with PyTorch has; never downloaded unless a list lacks it
OLDEST_GLIBC = 5  # the minor version of manylinux1
ALIASES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}  # by minor version of glibc


@dataclass(frozen=True)
class Target:
    """The machine for which wheels are downloaded."""

    python: str = "3.12"  # major.minor
    glibc: str = "2.28"  # the oldest that it may have
    arch: str = "x86_64"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise VisitError(f"--python must be a version such as 3.12, but got {self.python}")
        if not re.fullmatch(r"2\.\d+", self.glibc):
            raise VisitError(f"--glibc must be a version such as 2.28, but got {self.glibc}")

    @property
    def platforms(self) -> list[str]:
        """The platform tags of wheels that run there, the newest first."""
        tags = []
        for minor in range(int(self.glibc.partition(".")[2]), OLDEST_GLIBC - 1, -1):
            tags += [f"manylinux_2_{minor}_{self.arch}"]
            tags += [f"{ALIASES[minor]}_{self.arch}"] if minor in ALIASES else []
        return tags

    @property
    def pip_options(self) -> list[str]:
        platforms = [word for tag in self.platforms for word in ("--platform", tag)]
        python = ["--python-version", self.python, "--implementation", "cp"]
        return ["--only-binary", ":all:", *python, *platforms, "--constraint", str(REPOSITORY / "constraints.txt")]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the conditions of requirements."""
        return {
            **{name: str(value) for name, value in default_environment().items()},
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "platform_machine": self.arch,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }


@dataclass(frozen=True)
class Distribution:
    """A package that pip has chosen."""

    name: str  # canonical
    version: str
    requires: tuple[Requirement, ...]


def roots() -> list[Requirement]:
    """Return what the project and its tests need, PyTorch excepted."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in [*project["dependencies"], *TESTS]]
    return [requirement for requirement in needed if canonicalize_name(requirement.name) not in WITH_TORCH]


def read_installed(path: Path | None) -> dict[str, str]:
    """Return the packages of the machine by canonical name, with their version or "" if that is not known.

    Args:
        path: Lines such as `scipy==1.17.1` or `scipy`, as `pip freeze` prints them. None: `WITH_TORCH`.
    """
    if path is None:
        return dict.fromkeys(WITH_TORCH, "")
    installed: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:==\s*([^\s;]+)|$|@)", line.strip()):
            installed[canonicalize_name(match[1])] = match[2] or ""
    return {**dict.fromkeys(WITH_TORCH, ""), **installed}


def choose(
    needed: Iterable[Requirement],
    resolved: Mapping[str, Distribution],
    installed: Mapping[str, str],
    environment: Mapping[str, str],
) -> tuple[list[Distribution], list[Requirement]]:
    """Return what the machine lacks, and what pip has not resolved of it because of the conditions.

    Args:
        needed: Requirements of the project.
        resolved: What pip chose, by canonical name.
        installed: The machine's packages and versions, see `read_installed`.
        environment: Of the machine, for conditions.
    """
    chosen: dict[str, Distribution] = {}
    unresolved: dict[str, Requirement] = {}
    seen, left = set[tuple[str, frozenset[str], str]](), list(needed)
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (key := (name, extras, str(requirement.specifier))) in seen:
            continue
        seen.add(key)
        version = installed.get(name)
        there = version is not None and (
            not version or requirement.specifier.contains(version.partition("+")[0], prereleases=True)
        )
        if name not in resolved:
            if not there:
                unresolved[name] = requirement
            continue
        if not there:
            chosen[name] = resolved[name]
        wanted = {*extras} if there else {"", *extras}
        left += [
            needs for needs in resolved[name].requires if any(_applies(needs, extra, environment) for extra in wanted)
        ]
    return sorted(chosen.values(), key=lambda one: one.name), list(unresolved.values())


def _applies(requirement: Requirement, extra: str, environment: Mapping[str, str]) -> bool:
    if requirement.marker is None:
        return not extra
    if extra and "extra" not in str(requirement.marker):
        return False
    return requirement.marker.evaluate({**environment, "extra": extra})


def resolve(requirements: Sequence[Requirement], target: Target) -> dict[str, Distribution]:
    """Return what pip would install for some requirements, by canonical name. Raises VisitError."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["--dry-run", "--ignore-installed", "--report", str(report), "--target", f"{folder}/site"]
        _pip(
            "install",
            *words,
            *target.pip_options,
            *(f"{one.name}{_extras(one)}{one.specifier}" for one in requirements),
        )
        rows: list[dict[str, Any]] = [row["metadata"] for row in json.loads(report.read_text())["install"]]
    found = [
        Distribution(
            canonicalize_name(row["name"]), row["version"], tuple(map(Requirement, row.get("requires_dist", [])))
        )
        for row in rows
    ]
    return {one.name: one for one in found}


def nnunet_wheels(folder: Path, environment: Mapping[str, str]) -> list[Requirement]:
    """Make the wheels of nnU-Net and of what it needs with torch in a folder, and return what else they need.

    `environment` is that of the machine, for conditions. Raises VisitError where a wheel cannot be made here for it.
    """
    left, seen, others = [Requirement(NNUNET)], set[str](), list[Requirement]()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in (*WITH_TORCH, *UNUSED) or not _applies(requirement, "", environment):
            continue
        if name not in WITH_NNUNET:
            others.append(requirement)
        elif name not in seen:
            seen.add(name)
            _pip("wheel", "--no-deps", "--wheel-dir", str(folder), f"{requirement.name}{requirement.specifier}")
            (wheel,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
            if not wheel.stem.endswith("-none-any"):
                raise VisitError(f"{wheel.name}: runs on machines like this one only")
            left += requires(wheel)
    return others


def requires(wheel: Path) -> list[Requirement]:
    """Return the requirements of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        about = email.message_from_bytes(archive.read(name))
    return [Requirement(text) for text in about.get_all("Requires-Dist", [])]


def download(folder: Path, target: Target, installed: Mapping[str, str], nnunet: bool = True) -> list[Path]:
    """Download what the machine lacks into `folder/downloads`, and return the wheels. Raises VisitError.

    Where nnU-Net cannot be carried, a line says why, and the rest is downloaded.
    """
    downloads, chosen = folder / "downloads", None
    if nnunet and "nnunetv2" not in installed:
        try:
            _empty(downloads)
            chosen = select([*roots(), *nnunet_wheels(downloads, target.environment)], target, installed)
        except VisitError as error:
            print(f"note: nnU-Net is left out ({error}); the stage `nnunet` will say that it isn't installed")
    if chosen is None:
        _empty(downloads)
        chosen = select(roots(), target, installed)
    pins = [f"{one.name}=={one.version}" for one in chosen]
    pins += [name for name in ALONE if name not in installed]
    if pins:
        _pip("download", "--no-deps", "--dest", str(downloads), *target.pip_options, *pins)
    return sorted(downloads.glob("*.whl"))


def select(needed: Sequence[Requirement], target: Target, installed: Mapping[str, str]) -> list[Distribution]:
    """Return what the machine lacks of some requirements, and of what these need. Raises VisitError."""
    resolved = resolve(needed, target)
    chosen, unresolved = choose(needed, resolved, installed, target.environment)
    while unresolved:
        needed = [*needed, *unresolved]
        before, resolved = resolved, resolve(needed, target)
        if resolved.keys() == before.keys():
            raise VisitError(f"pip does not resolve {', '.join(map(str, unresolved))}")
        chosen, unresolved = choose(needed, resolved, installed, target.environment)
    return chosen


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # pip has its own cache
    folder.mkdir(parents=True)


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _pip(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]], check=False
    )
    if done.returncode:
        raise VisitError(f"pip {words[0]} ended with status {done.returncode}; its output is above")
