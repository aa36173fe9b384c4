"""A process that does slow work beside a search: it reads requests from its stdin, and answers on its stdout.

What it gets travels this way and not on its command line, which other users can read.
"""

from __future__ import annotations

import os
import subprocess

from wmlsearch.runs.environment import users_environment
from wmlsearch.runs.python_process import module_command, module_path


def start_helper(module: str) -> subprocess.Popen[str]:
    """Start `python -m MODULE` with pipes for its stdin and stdout."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, with a module of this package
        module_command(module),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the search; the helper still has to say how that ended
    )


def _environment() -> dict[str, str]:
    """Return the environment of a helper: that of this process, but the user's folder for temporary files.

    The folder of a search's temporary files is removed with its Ray, and the helper still has to send the last files.
    """
    temporary = users_environment().get("TMPDIR")
    others = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    return {**others, "PYTHONPATH": module_path(os.environ), **({} if temporary is None else {"TMPDIR": temporary})}
