"""Run a function for each of many volumes, in several processes where there is enough to do for them."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

from wmlsearch.errors import InputError
from wmlsearch.runs.machine import available_cpus, free_bytes

CallEach = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]  # function, arguments -> results
MIN_FILE_BYTES = 30_000_000  # below this, starting processes costs more than it saves
MAX_PROCESSES = 8  # unless the user asks for more
PROCESS_BYTES = 250_000_000  # of a process that reads volumes, with all that it imports
VOXEL_BYTES = 28  # at most while a volume is examined, by measurement
M_MMAP_THRESHOLD = -3  # parameter of mallopt(3)
LARGE_BYTES = 2**23  # less than the arrays of a volume


@contextmanager
def worker_pool(jobs: int | None, volumes: int, file_bytes: int, voxels: int = 0) -> Iterator[CallEach]:
    """Yield a function that calls another for each tuple of arguments and yields the results in order.

    Args:
        jobs: Processes that the user asks for; None: by the number of cores, free memory, `file_bytes` and `voxels`.
        volumes: Number of calls; no more processes than that are started.
        file_bytes: Size of the files to be read.
        voxels: Voxels of the largest volume.

    Raises:
        InputError: Where a process is killed.
    """
    processes = min(jobs or min(available_cpus(), MAX_PROCESSES, processes_in_memory(voxels)), volumes)
    return_freed_memory()  # not needed in worker processes, which keep nothing of a volume
    if processes == 1 or (jobs is None and file_bytes < MIN_FILE_BYTES):
        yield lambda function, calls: (function(*arguments) for arguments in calls)
        return
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(began,)) as pool:

        def call_each(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
            pending: deque[Future[Any]] = deque()  # only a few, because each result holds a volume
            for arguments in calls:
                pending.append(pool.submit(function, *arguments))
                if len(pending) > processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

        try:
            yield call_each
        except BrokenProcessPool:
            if not began.is_set():
                raise InputError(
                    "the processes that read volumes ended at their start. Each of them imports the script that calls "
                    'wmlsearch, so a script must do that below `if __name__ == "__main__":`; if yours does, memory '
                    "probably ran out: try --jobs 1 (in Python: jobs=1)"
                ) from None
            raise InputError(
                "a process that reads volumes was killed, probably because memory ran out; try --jobs 1 (in Python: "
                "jobs=1)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def processes_in_memory(voxels: int) -> int:
    """Return how many processes may read volumes of so many voxels at once, at least 1."""
    return max(1, free_bytes() // (PROCESS_BYTES + voxels * VOXEL_BYTES))


def return_freed_memory() -> None:
    """Make this process return the memory of large arrays to the system as soon as they are freed (glibc).

    By default glibc raises its threshold after the first large array and keeps freed volumes on the heap. Small objects
    that are kept of each volume then fragment it, and memory grows with the cohort.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _begin(began: Event) -> None:
    """Tell the parent that this process has imported the parent's script, and leave Ctrl-C to it."""
    began.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
