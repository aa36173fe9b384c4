"""`--cluster FILE`: run a command on the head of a Ray cluster with the options of this command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

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
    context = click.get_current_context()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if not isinstance(parameter, click.Option) or name in but or source is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if parameter.is_flag:
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            for one in value if parameter.multiple else (value,):
                words += [parameter.opts[0], str(one)]
    return words
