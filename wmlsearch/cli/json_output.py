"""`--json`: a command prints one JSON object on standard output, and all else on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object for scripts; notes and progress go to standard error.",
)


@contextlib.contextmanager
def only_json(requested: bool) -> Iterator[Callable[[Any], None]]:
    """Yield the function that prints a record as JSON. If requested, what else is printed goes to standard error.

    That holds for libraries written in C too, which print to the file descriptor.
    """
    if not requested:
        yield lambda record: _print_record(record, sys.stdout)
        return
    with _standard_output_moved() as original, contextlib.redirect_stdout(sys.stderr):
        yield lambda record: _print_record(record, original)


def _print_record(record: Any, stream: Any) -> None:
    from wmlsearch.runs.json_text import json_text

    if stream is not None:  # else standard output is closed
        stream.write(json_text(record))
        stream.flush()


@contextlib.contextmanager
def _standard_output_moved() -> Iterator[Any]:
    """Let file descriptor 1 be standard error in the block; yields a stream to what it was before."""
    stream = sys.stdout
    try:
        stream.flush()
        is_descriptor = stream.fileno() == 1
    except (OSError, ValueError, AttributeError):  # a stream in memory, or none
        is_descriptor = False
    if not is_descriptor:
        yield stream
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as original:
            yield original
    finally:
        os.dup2(kept, 1)
        os.close(kept)
