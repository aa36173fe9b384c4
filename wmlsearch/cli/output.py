"""Standard output and error of a command that outlives its terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_READER_GONE = (errno.EIO, errno.EPIPE)  # the terminal was closed, the reader of the pipe has ended


@contextlib.contextmanager
def survives_its_terminal() -> Iterator[None]:
    """In the block, what is printed to a closed terminal or pipe is lost, and the command goes on.

    A search takes hours, and its results are in its run folder. The file descriptor is replaced by /dev/null at the
    first failed write, so that processes started later and libraries written in C write there too.
    """
    _reserve_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_forgiving(stream) for stream in before)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the command has flushed already, and has said what failed
            flush()
        sys.stdout, sys.stderr = before


def _reserve_descriptors() -> None:
    """Let standard streams that are closed be /dev/null, so that no file of ours gets what libraries print there.

    So too in the processes that are started later.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one. Without the second step, a child would lack it again.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def flush() -> None:
    """Write out what was printed. A closed file descriptor has no stream (None). Raises OSError, as of a full disk."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _forgiving(stream: TextIO) -> TextIO:
    """Return a stream to the same file descriptor; one in memory, or None, has none and is returned as it is."""
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError, AttributeError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )


class _Forgiving(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes
