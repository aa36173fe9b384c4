"""`--cluster`: run a command on the head of a Ray cluster with the options of this command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from wmlsearch.cli import options

if TYPE_CHECKING:
    from wmlsearch.cluster.dashboard import Dashboard

cluster = click.option(
    "--cluster",
    metavar="FILE|ADDRESS",
    help="Run the command on the head of this Ray cluster, and show its output here. FILE is the cluster file of `ray "
    "up`. ADDRESS is that of the dashboard, such as http://127.0.0.1:8265; it needs --storage.",
)

storage = click.option(
    "--storage",
    envvar="WMLSEARCH_STORAGE",
    help="With --cluster: the search's storage. Results are fetched from it if --cluster is a dashboard address, or if "
    "the cluster no longer exists. Or set WMLSEARCH_STORAGE.",
)


def given(but: Sequence[str] = ("cluster", "data", "name", "out", "storage")) -> list[str]:
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


def storages(storage: str | None) -> tuple[str | None, str | None]:
    """Return the storage that the option --storage gives, and the one of WMLSEARCH_STORAGE. One of them is None.

    They differ where a search has a storage already: the option changes it, this machine's environment does not.
    """
    return (storage, None) if "storage" in options.given() else (None, storage)


def storages_for(dashboard: Dashboard, storage: str | None) -> tuple[str | None, str | None]:
    """Return the same, for a command that runs a search on a cluster.

    WMLSEARCH_STORAGE counts for the address of a dashboard only: where there is a cluster file, the head has its own.
    """
    given, of_environment = storages(storage)
    return given, of_environment if dashboard.file is None else None
