"""The command line: each verb reads its options, calls one workflow, and prints the result."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import click

from wmlsearch.cli import (
    cluster_file,
    data,
    describe,
    evaluate,
    export,
    mlflow,
    plan,
    predict,
    report,
    status,
    stop,
    train,
    tune,
)
from wmlsearch.cli.output import flush, survives_its_terminal
from wmlsearch.errors import InputError
from wmlsearch.runs.interrupts import end_of, exit_status, signals_as_interrupts

HELP_WIDTH = 100
ALIKE = 0.64  # ratio of `SequenceMatcher` from which on an option is suggested; click's is 0.6


class _Verbs(click.Group):
    """Lists the verbs in the order of use. A mistake of the user is one message and exit status 2, no traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("args")
        arguments = sys.argv[1:] if given is None else list(given)
        with survives_its_terminal():
            try:
                _check_no_empty_argument(arguments)
                with signals_as_interrupts():
                    try:
                        return super().main(*args, **kwargs)
                    finally:
                        flush()  # a full disk is an error of this command
            except SystemExit:
                raise
            except BaseException as error:
                if "--debug" in arguments:
                    traceback.print_exc()
                sys.exit(_print_error(error, arguments))

    def invoke(self, ctx: click.Context) -> Any:
        from wmlsearch.runs.environment import prepare_environment

        prepare_environment()
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            alike = _alike(error.option_name, error.possibilities or ())
            raise click.NoSuchOption(error.option_name, possibilities=alike, ctx=error.ctx) from None
        except KeyboardInterrupt as error:  # click would print "Aborted!" and exit with status 1
            sys.exit(_print_error(error))


# What helps against errors of a path that was given; other errors of files are no mistake of the user.
_PATH_ERRORS = {
    errno.ENOTDIR: "a file is in the way; name another path",
    errno.EEXIST: "a file is in the way; name another path",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; name the file that they should lead to",
    errno.EACCES: "`ls -ld` shows who may read and write it; ask its owner, or name another path",
    errno.EROFS: "its file system can only be read; name a path on another one",
}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _check_no_empty_argument(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, which comes from an unset shell variable. Raises InputError."""
    if "" in arguments:
        before = " ".join(["wmlsearch", *arguments[: arguments.index("")]])
        raise InputError(
            f"the argument after `{before}` is empty (an unset variable?); give a value, or leave the argument out"
        )


def _alike(option: str, suggested: Sequence[str]) -> list[str]:
    """Return the options that a mistyped one may mean. Click also suggests `--patient-pattern` for `--orientation`."""
    return [other for other in suggested if SequenceMatcher(None, option, other).ratio() >= ALIKE]


def _printable(text: str) -> str:
    """Escape control characters and invalid text, which file names may have."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _print_error(error: BaseException, arguments: Sequence[str] = ()) -> int:
    """Print an error of a command line in one message and return the exit status."""
    if isinstance(error, InputError):
        _complain(_printable(str(error)))
        return 2
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename is not None:
        path = _printable(os.fsdecode(error.filename))
        _complain(f"{path}: {error.strerror}; {_PATH_ERRORS[error.errno]}")
        return 2
    if isinstance(error, KeyboardInterrupt):
        end = end_of(error)
        _complain(end.text)
        return exit_status(end)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        where = "" if error.filename is None else f"{_printable(os.fsdecode(error.filename))}: "
        _complain(
            f"{where}{error.strerror}; existing files are intact; free some space (see `df`) and run the command again"
        )
        return 1
    if isinstance(error, ConnectionError):
        _complain(str(error))
        return 1
    if isinstance(error, OSError):
        _complain(f"{error}; check this disk or mount, then run the command again")
        return 1
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.runs.wording import command

    again = command("--debug", *(without_password(argument) for argument in arguments))
    _complain(f"unexpected {type(error).__name__}: {error}; for the traceback, to report it: {again}")
    return 1


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be on the full disk; the exit status tells too
        click.echo(f"wmlsearch: {text}", err=True)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH})
@click.version_option(package_name="wmlsearch", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Print the traceback of an error.")
def main(debug: bool) -> None:
    """Search for a better U-Net for white matter lesions on your own FLAIR images, and compare it with the published
    one.

    \b
    Try it on a laptop, with the built-in phantom:
      wmlsearch tune quick --trials 6
      wmlsearch ui
    On your own data:
      wmlsearch prepare path/to/bids prepared
      wmlsearch tune --data prepared
    """


for verb in (
    data.phantom,
    data.prepare,
    describe.describe,
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
    cluster_file.cluster_file,
):
    main.add_command(verb)
