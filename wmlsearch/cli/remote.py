"""`--cluster FILE`: run a command on the head of a Ray cluster with the options of this command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from wmlsearch.cli import options

cluster = click.option(
    "--cluster",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run the command on the head of this Ray cluster (the file of `ray up`), and follow it from here.",
)


def given(but: Sequence[str] = ("cluster", "data", "name", "out")) -> list[str]:
    """Return the options of this command line, except for those in `but`, as arguments for the head.

    Values from environment variables are left out, since the head has its own environment.
    """
    values = click.get_current_context().params
    words: list[str] = []
    for name, parameter in options.given().items():
        if not isinstance(parameter, click.Option) or name in but:
            continue
        value = values[name]
        if parameter.is_flag:
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            for one in value if parameter.multiple else (value,):
                words += [parameter.opts[0], str(one)]
    return words
