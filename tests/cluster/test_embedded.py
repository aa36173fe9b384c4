"""Where an embedded Ray puts its sockets, logs and objects, and what it tells its processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from wmlsearch.cluster import embedded
from wmlsearch.cluster.embedded import ObjectStore, embedded_variables, explain, object_store, session_parent
from wmlsearch.errors import InputError

MB = 10**6
IN_SHARED_MEMORY = ObjectStore(200 * 2**20, True)
ON_DISK = ObjectStore(80 * 2**20, False)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free bytes by folder; 100 GB elsewhere."""
    sizes: dict[str, int] = {}
    monkeypatch.setattr(embedded, "_free_bytes", lambda folder: sizes.get(str(folder), 100_000 * MB))
    return sizes


@pytest.mark.parametrize(
    ("megabytes", "expected"),
    [
        (24_000, IN_SHARED_MEMORY),
        (150, ObjectStore(135 * MB, True)),
        (64, ON_DISK),  # docker's default
        (0, ON_DISK),
    ],
)
def test_the_object_store_fits_into_shared_memory(megabytes: int, expected: ObjectStore, free: dict[str, int]) -> None:
    free["/dev/shm"] = megabytes * MB  # noqa: S108
    assert object_store() == expected


def test_a_system_without_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "SHARED_MEMORY", tmp_path / "missing")
    assert object_store() == ObjectStore(200 * 2**20, False)


def test_a_long_temporary_folder_is_left_for_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: dict[str, int]
) -> None:
    long = tmp_path / ("ü" * 40)  # 80 bytes
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = session_parent(IN_SHARED_MEMORY)
    assert folder == Path("/tmp")  # noqa: S108
    said: list[str] = []
    explain(IN_SHARED_MEMORY, folder, said.append)
    length = len(os.fsencode(long)) + 1 + 14 + 8 + 64
    assert said == [
        f"note: Ray's sockets and logs are in /tmp, since {long} is too long a path for sockets ({length} of 107 bytes)"
    ]


def test_a_full_disk_is_left_for_another_and_small_shared_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: dict[str, int]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")  # noqa: S108
    free |= {"/tmp": 90 * MB, "/dev/shm": 64 * MB}  # noqa: S108
    folder = session_parent(ON_DISK)
    assert folder == Path("/var/tmp")  # noqa: S108
    said: list[str] = []
    explain(ON_DISK, folder, said.append)
    assert said[0] == "note: Ray's sockets and logs are in /var/tmp, since /tmp has 90 MB free"
    assert said[1].startswith("note: /dev/shm has 64 MB free, so Ray's object store (84 MB) is in /var/tmp; ")


def test_no_folder_is_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: dict[str, int]) -> None:
    monkeypatch.setattr(embedded, "temporary_folders", lambda: [Path("/a" * 30), tmp_path / "missing", Path("/tmp")])  # noqa: S108
    free["/tmp"] = 3 * MB  # noqa: S108
    with pytest.raises(InputError) as caught:
        session_parent(IN_SHARED_MEMORY)
    assert str(caught.value).endswith("; /tmp has 3 MB free; set TMPDIR to such a folder, or mount one at /tmp")
    assert "bytes and 21 MB: /a/a/a" in str(caught.value)


@pytest.mark.usefixtures("free")
def test_the_longest_path() -> None:
    text = "/" + "x" * (embedded.SOCKET_BYTES - len(embedded.LONGEST_SOCKET) - 14 - 8 - 2)
    assert embedded._fault_of(Path(text), 0) == "cannot be written", "there is none, but its path is short enough"
    assert "too long" in embedded._fault_of(Path(text + "x"), 0)


def test_a_token_of_its_own_where_none_can_be_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "RAY_AUTH_TOKEN" not in embedded_variables()
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    token = embedded_variables()["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert embedded_variables()["RAY_AUTH_TOKEN"] == token, "Ray keeps the first one of a process"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert embedded_variables()["RAY_AUTH_TOKEN"] == "mine"  # noqa: S105


def test_rays_memory_monitor_is_off_below_a_limit_that_it_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.Machine, "memory_is_limited", lambda _: False)
    assert "RAY_memory_monitor_refresh_ms" not in embedded_variables()
    monkeypatch.setattr(embedded.Machine, "memory_is_limited", lambda _: True)
    assert embedded_variables()["RAY_memory_monitor_refresh_ms"] == "0"
