"""CPUs and memory by the tightest limit, read from the files of a made-up machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from wmlsearch.runs import machine
from wmlsearch.runs.machine import Machine

GIB = 2**30
NO_LIMIT_V1 = "9223372036854771712"  # version 1's "none": the largest number of pages, in bytes
MEMINFO = (
    "MemTotal: 33554432 kB\nMemFree: 1048576 kB\nMemAvailable: 25165824 kB\nCached: 24117248 kB\n"  # 32, 1, 24 GiB
)
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
)


@pytest.fixture(autouse=True)
def _sixteen_cores_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def machine_of(root: Path, files: Mapping[str, str]) -> Machine:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


def v2(group: str, groups: Mapping[str, Mapping[str, str]], mounts: str = V2_MOUNT) -> dict[str, str]:
    """Return the files of a machine with version 2, whose process is in `group`."""
    files = {f"sys/fs/cgroup{path}/{name}": text for path, texts in groups.items() for name, text in texts.items()}
    return {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mounts, **files}


def test_no_limits(tmp_path: Path) -> None:
    whole = machine_of(tmp_path, {})
    assert (whole.cpus(), whole.memory_bytes(), whole.free_bytes()) == (16, 32 * GIB, 24 * GIB)
    assert not whole.memory_is_limited()
    assert whole.memory_kills() == 0


def test_v2_the_tightest_level_counts_wherever_it_is(tmp_path: Path) -> None:
    groups = {
        "/slurm": {"cpu.max": "800000 100000\n", "memory.max": f"{16 * GIB}\n", "memory.current": f"{15 * GIB}\n"},
        "/slurm/job_7": {"cpu.max": "300000 100000\n", "memory.max": "max\n", "memory.current": f"{2 * GIB}\n"},
        "/slurm/job_7/step_0": {"cpu.max": "max 100000\n", "memory.max": f"{12 * GIB}\n", "memory.current": f"{GIB}\n"},
        "/other": {"cpu.max": "100000 100000\n", "memory.max": f"{GIB}\n"},
    }
    limited = machine_of(tmp_path, v2("/slurm/job_7/step_0", groups))
    assert limited.cpus() == 3
    assert limited.memory_bytes() == 12 * GIB
    assert limited.free_bytes() == 1 * GIB, "all jobs of /slurm together have 16 GiB, and 15 are in use"
    assert limited.memory_is_limited()


def test_v2_page_cache_is_free_and_high_is_a_limit(tmp_path: Path) -> None:
    stat = f"anon {2 * GIB}\nfile {5 * GIB}\ninactive_file {3 * GIB}\nactive_file {1 * GIB}\nslab_reclaimable {GIB}\n"
    group = {"memory.max": f"{8 * GIB}", "memory.high": "max", "memory.current": f"{7 * GIB}", "memory.stat": stat}
    assert machine_of(tmp_path / "a", v2("/a", {"/a": group})).free_bytes() == 6 * GIB
    group["memory.high"] = f"{4 * GIB}"
    throttled = machine_of(tmp_path / "b", v2("/a", {"/a": group}))
    assert (throttled.memory_bytes(), throttled.free_bytes()) == (4 * GIB, 2 * GIB)


@pytest.mark.parametrize(
    ("quota", "cpus"), [("50000 100000", 1), ("250000 100000", 2), ("1999000 1000000", 1), ("0 0", 16), ("max", 16)]
)
def test_fractions_of_a_core(quota: str, cpus: int, tmp_path: Path) -> None:
    assert machine_of(tmp_path, v2("/a", {"/a": {"cpu.max": quota}})).cpus() == cpus


def v1(group: str, mounts: str, files: Mapping[str, str]) -> dict[str, str]:
    cgroup = f"9:name=systemd:/init\n4:memory:{group}\n2:cpu,cpuacct:{group}\n0::/\n"
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}


def v1_memory(limit: object, usage: int, inactive: int = 0, active: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{usage}\n",
        "memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n",
    }


def test_v1_nested_groups_below_a_root_without_limits(tmp_path: Path) -> None:
    memory, cpu = "sys/fs/cgroup/memory", "sys/fs/cgroup/cpu,cpuacct"
    files = {
        **{f"{memory}/{name}": text for name, text in v1_memory(NO_LIMIT_V1, 20 * GIB).items()},
        **{f"{memory}/job/{name}": text for name, text in v1_memory(3 * GIB, 2 * GIB, GIB, GIB // 2).items()},
        **{f"{memory}/job/step/{name}": text for name, text in v1_memory(NO_LIMIT_V1, GIB).items()},
        f"{cpu}/job/cpu.cfs_quota_us": "100000\n",
        f"{cpu}/job/cpu.cfs_period_us": "100000\n",
        f"{cpu}/job/step/cpu.cfs_quota_us": "-1\n",
        f"{cpu}/job/step/cpu.cfs_period_us": "100000\n",
    }
    limited = machine_of(tmp_path, v1("/job/step", V1_MOUNTS, files))
    assert (limited.cpus(), limited.memory_bytes()) == (1, 3 * GIB)
    assert limited.free_bytes() == 3 * GIB - (2 * GIB - GIB - GIB // 2)


@pytest.mark.parametrize("group", ["/docker/abc", "/"])
def test_v1_a_container_sees_its_own_group_as_the_root(group: str, tmp_path: Path) -> None:
    """Without and with a cgroup namespace; the limit of the group above is only in the statistics."""
    mounts = V1_MOUNTS.replace(" / /sys/fs/cgroup/", " /docker/abc /sys/fs/cgroup/")
    memory = v1_memory(NO_LIMIT_V1, GIB)
    memory["memory.stat"] += f"hierarchical_memory_limit {6 * GIB}\n"
    files = {f"sys/fs/cgroup/memory/{name}": text for name, text in memory.items()}
    files |= {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    limited = machine_of(tmp_path, v1(group, mounts, files))
    assert (limited.cpus(), limited.memory_bytes(), limited.free_bytes()) == (4, 6 * GIB, 5 * GIB)


def test_a_mount_elsewhere_with_a_space_in_its_path_and_a_foreign_one(tmp_path: Path) -> None:
    mounts = (
        "30 23 0:26 /pods/a /my\\040groups rw - cgroup2 cgroup2 rw\n"
        "31 23 0:26 /pods/b /var/lib/b rw - cgroup2 cgroup2 rw\n"
    )
    files = {
        "proc/self/cgroup": "0::/pods/a/main\n",
        "proc/self/mountinfo": mounts,
        "my groups/memory.max": str(9 * GIB),
        "my groups/main/memory.max": str(10 * GIB),
        "var/lib/b/memory.max": str(GIB),
    }
    assert machine_of(tmp_path, files).memory_bytes() == 9 * GIB, "the group of another container is none of ours"


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = v1("/a", mounts, {f"sys/fs/cgroup/memory/a/{name}": text for name, text in v1_memory(5 * GIB, 0).items()})
    files["proc/self/cgroup"] = files["proc/self/cgroup"].replace("0::/", "0::/b")
    files["sys/fs/cgroup/unified/b/cpu.max"] = "200000 100000"
    limited = machine_of(tmp_path, files)
    assert (limited.cpus(), limited.memory_bytes()) == (2, 5 * GIB)


def test_without_proc_the_usual_folder_is_read(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "150000 50000", "sys/fs/cgroup/memory.max": str(7 * GIB)}
    limited = machine_of(tmp_path, files)
    assert (limited.cpus(), limited.memory_bytes()) == (3, 7 * GIB)


def test_what_cannot_be_read_sets_no_limit(tmp_path: Path) -> None:
    files = v2("/a", {"/a": {"cpu.max": "what\n", "memory.max": "-5\n", "memory.stat": "half a line\n\n:\nx y\n"}})
    files["proc/self/cgroup"] += "nonsense\n5:\n"
    files["proc/self/mountinfo"] += "short - cgroup2\n"
    odd = machine_of(tmp_path, files)
    (tmp_path / "sys/fs/cgroup/a/memory.high").mkdir()  # as unreadable as it gets, for root too
    assert (odd.cpus(), odd.memory_bytes(), odd.free_bytes()) == (16, 32 * GIB, 24 * GIB)


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine_of(tmp_path, {})
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert whole.cpus() == 8, "a batch script has the CPUs of all its tasks"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert whole.cpus() == 2, "a task of a step has its own"
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "many")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "0")
    assert whole.cpus() == 16


def test_kills_for_memory(tmp_path: Path) -> None:
    vmstat = {"proc/vmstat": "nr_free_pages 5\noom_kill 11\n"}
    events = {"memory.events": "low 0\nhigh 4\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n"}
    assert machine_of(tmp_path / "2", {**v2("/a", {"/a": events}), **vmstat}).memory_kills() == 2
    control = {"sys/fs/cgroup/memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}
    assert machine_of(tmp_path / "1", {**v1("/a", V1_MOUNTS, control), **vmstat}).memory_kills() == 3
    assert machine_of(tmp_path / "0", vmstat).memory_kills() == 11


def test_an_old_kernel_without_memavailable(tmp_path: Path) -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\nSReclaimable: 5 kB\nShmem: 7 kB\n"
    assert machine_of(tmp_path, {"proc/meminfo": text}).free_bytes() == 425 * 1024


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5000.
Pages active:                            400000.
Pages inactive:                          100000.
Pages speculative:                         2000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           3000.
"Translation faults":                1234567890.
"""


def test_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 2**20}

    def sysconf(name: str) -> int:
        if name not in sizes:
            raise ValueError("unrecognized configuration name")
        return sizes[name]

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(os, "sysconf", sysconf)
    answer = subprocess.CompletedProcess([], 0, VM_STAT)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: answer)
    mac = Machine(tmp_path)
    assert (mac.cpus(), mac.memory_bytes(), mac.free_bytes()) == (10, 16 * GIB, 110_000 * 16384)
    answer.stdout = "vm_stat: no such thing"
    assert mac.free_bytes() == 16 * GIB
    sizes.clear()
    assert mac.memory_bytes() == 2**63 - 1, "no limit is known"
