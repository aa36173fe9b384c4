"""The command line: each verb reads its options, calls one thing, and says what came of it."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from wmlsearch.cli import data, evaluate, export, mlflow, plan, predict, report, status, stop, train, tune

HELP_WIDTH = 100


class _Verbs(click.Group):
    """Verbs in the order of use; a known mistake is one message and exit status 2, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("args")
        arguments = sys.argv[1:] if given is None else list(given)
        try:
            _check_words(arguments)
            return super().main(*args, **kwargs)
        except SystemExit:
            raise
        except BaseException as error:
            if "--debug" in arguments:
                traceback.print_exc()
            sys.exit(_explain(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would make "Aborted!" and status 1 of it
            sys.exit(_explain(error))


# A path that can't be what it is used as; anything else that goes wrong with files is no fault of the command line.
_OF_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse an empty word: it stands for a variable of the shell that isn't set, not for a default."""
    if "" in arguments:
        from wmlsearch.config import InputError

        before = " ".join(["wmlsearch", *arguments[: arguments.index("")]])
        raise InputError(f"the word after `{before}` is empty (a variable that isn't set?); give it, or leave it out")


def _printable(text: str) -> str:
    """Names of files may hold what a terminal would obey, or bytes that are no text."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _explain(error: BaseException) -> int:
    from wmlsearch.config import InputError

    if isinstance(error, InputError):
        click.echo(f"wmlsearch: {_printable(str(error))}", err=True)
        return 2
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename is not None:
        path = _printable(os.fsdecode(error.filename))
        click.echo(f"wmlsearch: {path}: {error.strerror}; check the path and its permissions", err=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        click.echo("wmlsearch: stopped by Ctrl-C", err=True)
        return 130
    if isinstance(error, OSError) and error.errno in _FULL:
        where = "" if error.filename is None else f"{_printable(os.fsdecode(error.filename))}: "
        click.echo(
            f"wmlsearch: {where}{error.strerror}; files that were there are whole; free some space (`df` shows where) "
            "and say it again",
            err=True,
        )
        return 1
    if isinstance(error, OSError):
        click.echo(f"wmlsearch: {error}", err=True)
        return 1
    click.echo(f"wmlsearch: unexpected {type(error).__name__}: {error}; `wmlsearch --debug ...` shows where", err=True)
    return 1


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH})
@click.version_option(package_name="wmlsearch", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Find a better U-Net for white matter lesions on your own FLAIR images, and compare it with the published one.

    \b
    On a laptop, with a built-in phantom instead of data:
      wmlsearch tune quick --trials 6
      wmlsearch ui
    On your own data:
      wmlsearch prepare path/to/bids prepared
      wmlsearch tune --data prepared
    """


for verb in (
    data.phantom,
    data.prepare,
    train.train,
    plan.plan,
    tune.tune,
    stop.stop,
    status.status,
    evaluate.evaluate,
    report.report,
    predict.predict,
    export.export,
    mlflow.sync,
    mlflow.ui,
):
    main.add_command(verb)
