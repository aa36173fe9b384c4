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
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_forgiving(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO) -> TextIO:
    """Return a stream to the same file descriptor; one in memory, which has none, is returned as it is."""
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
