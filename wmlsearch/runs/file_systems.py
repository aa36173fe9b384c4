"""What a file system can be trusted with: locks, and numbers of files that last."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF)
# Types whose files keep their inode numbers, on all machines that mount them. Others (FUSE, SMB, 9p, FAT) may number a
# file anew on each machine, or after a while.
_WITH_LASTING_INODES = {
    "bcachefs", "beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gfs2", "gpfs", "jfs", "lustre", "nfs",
    "nfs4", "ocfs2", "overlay", "tmpfs", "xfs", "zfs",
}  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")


def lasting_inode(descriptor: int, path: Path) -> int | None:
    """Return the inode number of an open file, or None if its file system is not known to keep it."""
    return os.fstat(descriptor).st_ino if _type_at(path) in _WITH_LASTING_INODES else None


def _type_at(path: Path) -> str:
    """Return the type of the file system that a path is in, or "" where the system does not tell (macOS)."""
    closest: tuple[int, str] = (0, "")
    with contextlib.suppress(OSError):
        real = path.resolve()
        for line in _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")  # proc(5): mount point is field 5, the type follows the dash
            point = re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), before.split()[4])
            if (
                after and real.is_relative_to(point) and len(point) >= closest[0]
            ):  # of two at one place the later counts
                closest = len(point), after.split()[0]
    return closest[1]
