"""What a file system can be trusted with: locks, and numbers of files that last."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from wmlsearch.runs.mounts import parse_mounts

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
        for mount in parse_mounts(_MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")):
            # Of two mounts at one point the later counts.
            if real.is_relative_to(mount.point) and len(mount.point) >= closest[0]:
                closest = len(mount.point), mount.type
    return closest[1]
