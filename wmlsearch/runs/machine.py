"""What this process may use of its machine: CPUs and memory by the tightest of all limits, and kills for memory.

Limits of a control group (cgroup) hold for the groups in it, so all levels up to the root count. Version 1 has a
hierarchy for each controller, version 2 has one for all, and a machine may have both. A container often sees its own
group as if it were the root, and a process may be in a group that is mounted elsewhere: `/proc/self/mountinfo` tells.
What cannot be read sets no limit. Platforms without these files (macOS) have the limits of the whole machine.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.runs.mounts import parse_mounts

_CGROUPS = "sys/fs/cgroup"
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")  # the page cache: it is freed when memory is needed


def available_cpus() -> int:
    """Return the number of CPU cores that this process may use, at least 1: see `Machine.cpus`."""
    return Machine().cpus()


def machine_bytes() -> int:
    """Return the memory that this process and its children may use together: see `Machine.memory_bytes`."""
    return Machine().memory_bytes()


def free_bytes() -> int:
    """Return the memory that is free or can be freed, within all limits: see `Machine.free_bytes`."""
    return Machine().free_bytes()


def memory_kills() -> int:
    """Return how many processes of this process's control group the system has ended for lack of memory."""
    return Machine().memory_kills()


@dataclass(frozen=True)
class _Group:
    """A control group on the way from this process up to the root, as a folder, and the version of its files."""

    folder: Path
    version: int  # of cgroups: 1 or 2


@dataclass(frozen=True)
class _MemoryLimit:
    """A limit of a group, and what of it is in use without the page cache, in bytes."""

    limit: int
    used: int


@dataclass(frozen=True)
class Machine:
    """The machine as its files below `root` describe it. Tests give another root."""

    root: Path = Path("/")

    def cpus(self) -> int:
        """Return the whole CPU cores that this process may use, at least 1.

        The smallest of its affinity, the quotas of its groups and what Slurm has given to its step. A quota of 2.5
        cores counts as 2, one of half a core as 1.
        """
        limits: list[float] = [_affinity(), *self._quotas()]
        limits += [cpus for cpus in (_slurm_cpus("SLURM_CPUS_ON_NODE"),) if cpus]
        if "SLURM_STEP_ID" in os.environ:  # a batch script itself has the CPUs of all its tasks
            limits += [cpus for cpus in (_slurm_cpus("SLURM_CPUS_PER_TASK"),) if cpus]
        return max(1, int(min(limits) + 1e-6))

    def memory_bytes(self) -> int:
        """Return the memory of the machine, or the smallest limit of a group, in bytes."""
        return min([self._total_bytes(), *(level.limit for level in self._memory_limits())])

    def memory_is_limited(self) -> bool:
        """Return whether a group limits memory to less than the machine has."""
        return self.memory_bytes() < self._total_bytes()

    def free_bytes(self) -> int:
        """Return the memory that is free, or is freed as soon as it is needed, within the limits of all groups.

        The page cache counts as free: the system drops it before a process lacks memory.
        """
        free = [level.limit - level.used for level in self._memory_limits()]
        return max(0, min([self._available_bytes(), *free]))

    def memory_kills(self) -> int:
        """Return how many processes of this group the system has ended for lack of memory; 0 where nothing counts it.

        Outside of groups, processes of the whole machine are counted.
        """
        for group in self._groups("memory"):
            file = "memory.events" if group.version == 2 else "memory.oom_control"
            count = self._fields(group.folder / file).get("oom_kill")
            if count is not None:
                return count
        return self._fields(self.root / "proc/vmstat").get("oom_kill", 0)

    def _quotas(self) -> Iterator[float]:
        """Yield the CPU quotas of all groups, in cores."""
        for group in self._groups("cpu"):
            if group.version == 2:  # "max 100000", or quota and period in microseconds
                quota, period, *_ = [*_read(group.folder / "cpu.max").split(), "", ""]
            else:  # -1 means none
                quota = _read(group.folder / "cpu.cfs_quota_us").strip()
                period = _read(group.folder / "cpu.cfs_period_us").strip()
            if quota.isdigit() and period.isdigit() and int(period) and int(quota):
                yield int(quota) / int(period)

    def _memory_limits(self) -> Iterator[_MemoryLimit]:
        """Yield the memory limits of all groups. "max" and version 1's huge number are none."""
        for group in self._groups("memory"):
            folder, stat = group.folder, self._fields(group.folder / "memory.stat")
            if group.version == 2:  # beyond `high` processes are slowed down until they stand still
                limits = [_number(_read(folder / name)) for name in ("memory.max", "memory.high")]
                usage, prefix = _number(_read(folder / "memory.current")), ""
            else:  # a container sees the limit of a group above it only in the statistics
                limits = [_number(_read(folder / "memory.limit_in_bytes")), stat.get("hierarchical_memory_limit")]
                usage, prefix = _number(_read(folder / "memory.usage_in_bytes")), "total_"
            reclaimable = sum(stat.get(prefix + name, 0) for name in _RECLAIMABLE)
            for limit in limits:
                if limit is not None and limit < 2**60:
                    yield _MemoryLimit(limit, max(0, (usage or 0) - reclaimable))

    def _groups(self, controller: str) -> list[_Group]:
        """Return the groups of this process that a controller knows, from its own one up to the root."""
        groups = []
        for version, name in ((2, ""), (1, controller)):
            path, mounts = self._group_path(name), self._mounts(name)
            above = [mount for mount in mounts if path is not None and _is_below(path, mount[0])]
            for mount_root, point in above or mounts:
                # The path is that of the whole hierarchy, and the mount may show a part of it: without a common
                # beginning, a container has mounted its own group.
                rest = posixpath.relpath(path, mount_root) if path is not None and above else "."
                folder = self.root / point.lstrip("/") / rest
                top = self.root / point.lstrip("/")
                levels = [folder, *folder.parents]
                groups += [_Group(level, version) for level in levels[: levels.index(top) + 1]]
        seen_as_root = [(2, _CGROUPS), (1, f"{_CGROUPS}/{controller}"), (1, f"{_CGROUPS}/cpu,cpuacct")]
        groups += [_Group(self.root / path, version) for version, path in seen_as_root]
        return list(dict.fromkeys(groups))

    def _group_path(self, controller: str) -> str | None:
        """Return the path of this process's group in the hierarchy of a controller, "" for that of version 2."""
        for line in _read(self.root / "proc/self/cgroup").splitlines():  # 4:memory:/user/1000
            number, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controller in controllers.split(",") if controller else (number, controllers) == ("0", ""):
                return path if path.startswith("/") and ".." not in path.split("/") else None
        return None

    def _mounts(self, controller: str) -> list[tuple[str, str]]:
        """Return the path within its hierarchy and the folder of each mount of a controller's hierarchy.

        A later mount on a folder hides an earlier one.
        """
        mounts: dict[str, str] = {}
        for mount in parse_mounts(_read(self.root / "proc/self/mountinfo")):
            mounts.pop(mount.point, None)
            is_version_2 = mount.type == "cgroup2"
            if is_version_2 if controller == "" else mount.type == "cgroup" and controller in mount.options:
                mounts[mount.point] = mount.root
        return [(mount_root, point) for point, mount_root in mounts.items()]

    def _fields(self, path: Path) -> dict[str, int]:
        """Return the whole numbers of a file with lines such as `oom_kill 3` or `MemTotal: 123 kB`."""
        lines = (line.replace(":", " ").split() for line in _read(path).splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) >= 2 and words[1].isdigit()}

    def _total_bytes(self) -> int:
        if total := self._fields(self.root / "proc/meminfo").get("MemTotal"):
            return total * 1024
        with contextlib.suppress(ValueError, OSError, AttributeError):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return 2**63 - 1

    def _available_bytes(self) -> int:
        fields = self._fields(self.root / "proc/meminfo")
        if (available := fields.get("MemAvailable")) is not None:
            return available * 1024
        if "MemFree" in fields:  # Linux before 3.14
            return sum(fields.get(name, 0) for name in ("MemFree", "Buffers", "Cached", "SReclaimable")) * 1024
        return _available_on_macos() or self._total_bytes()


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS has none
        return os.cpu_count() or 1


def _available_on_macos() -> int:
    """Return the memory that macOS can give to a program, in bytes, as `vm_stat` counts it; 0 if that is unknown."""
    if sys.platform != "darwin":
        return 0
    try:
        text = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    size = re.search(r"page size of (\d+) bytes", text)  # then lines such as `Pages free:   12345.`
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size else 0


def _slurm_cpus(name: str) -> int:
    """Return a number of CPUs that Slurm sets in the environment of a job, or 0."""
    return _number(os.environ.get(name, "")) or 0


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]+", text := text.strip()) else None


def _read(path: Path) -> str:
    """Return the text of a file, "" if it is missing or cannot be read."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
