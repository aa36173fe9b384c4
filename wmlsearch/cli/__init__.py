"""The command line: each verb reads its options, calls one thing, and says what came of it."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from wmlsearch.cli import data, mlflow, plan, runs, use, verdict

HELP_WIDTH = 100


class _Verbs(click.Group):
    """Verbs in the order of use; a known mistake is one message and exit status 2, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("args")
        arguments = sys.argv[1:] if given is None else list(given)
        try:
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


def _explain(error: BaseException) -> int:
    from wmlsearch.config import InputError

    if isinstance(error, InputError):
        click.echo(f"wmlsearch: {error}", err=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        click.echo("wmlsearch: stopped by Ctrl-C", err=True)
        return 130
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
    runs.train,
    plan.plan,
    runs.tune,
    runs.stop,
    runs.status,
    verdict.evaluate,
    verdict.report,
    use.predict,
    use.export,
    mlflow.sync,
    mlflow.ui,
):
    main.add_command(verb)
