"""Volumes are read and cut in some processes at once, where there is enough to do for them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from wmlsearch.config import InputError

Each = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]
SMALL = 30_000_000  # bytes of files: below this a process pool costs more than it saves
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
LARGE = 2**23  # bytes: less than the arrays of a volume


def _ignore_interrupt() -> None:  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def free_at_once() -> None:
    """Have this process give the memory of large arrays back as they are freed (glibc).

    By itself glibc comes to keep freed volumes for later ones. In between come to lie the small objects that are kept
    of each volume, so a later one finds less and less room there: memory would grow with the cohort.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(MMAP_THRESHOLD, LARGE)


@contextmanager
def workers(jobs: int | None, volumes: int, work: int) -> Iterator[Each]:
    """A function that calls another for each of many arguments, in order, in some processes or in this one."""
    count = min(
        jobs or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8),
        volumes,
    )
    free_at_once()  # workers needn't: they keep nothing of a volume
    if count == 1 or (jobs is None and work < SMALL):
        yield lambda function, arguments: (function(*each) for each in arguments)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupt) as pool:

        def in_order(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
            waiting: deque[Future[Any]] = deque()  # a few at a time: each result is a volume
            for each in arguments:
                waiting.append(pool.submit(function, *each))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield in_order
        except BrokenProcessPool:
            raise InputError(
                "a process that reads volumes was killed, probably for want of memory; try --jobs 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
