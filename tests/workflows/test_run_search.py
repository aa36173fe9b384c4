"""The steps at the end of a search, apart from the searches of test_endings.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from wmlsearch.workflows.run_search import _release


def _fail() -> None:
    raise RuntimeError("the head node does not answer")


def _hang_until_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the signal was only noted")


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (_fail, "warning: Ray was not shut down in order (RuntimeError: the head node does not answer); the result is "
                "not affected"),
        (_hang_until_ctrl_c, "the shutdown of Ray was cut short (stopped by Ctrl-C)"),
    ],
)  # fmt: skip
def test_whatever_the_shutdown_of_ray_does_the_search_goes_on_to_its_report(
    release: Callable[[], None], message: str
) -> None:
    lines: list[str] = []
    _release(release, lines.append)
    assert lines == [message]
