"""`tune --on-end COMMAND`: the user's command, run when a search has ended, however it ended.

It reads the JSON of `status --json` on its standard input, in the environment that the user gave `tune`. Nothing that
it does changes the search or its exit status.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from wmlsearch.runs import user_command
from wmlsearch.runs.environment import users_environment
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import signals_as_interrupts
from wmlsearch.runs.json_text import json_text
from wmlsearch.runs.liveness import Liveness, process_left
from wmlsearch.runs.lock import claim_of
from wmlsearch.workflows.summaries import SearchSummary


class CommandAtEnd:
    """The command of a search; None runs nothing. It runs once, after the block, if the search has begun in it.

    The block has released the folder and Ray then, so the command can resume the search or start the next one.
    """

    def __init__(self, search: SearchDir, command: str | None, say: Callable[[str], None]) -> None:
        self.search, self.command, self.say = search, command, say
        self.begun = False
        self._once = threading.Lock()

    def __enter__(self) -> CommandAtEnd:
        return self

    def __exit__(self, *error: object) -> None:
        if self.command and self._is_due():
            run_on_end(self.search, self.command, self.say)

    def run_instead_of_this_process(self, status: int) -> None:
        """End this process, whose folder is free then, and run the command in its place; the exit status is `status`.

        Returns if there is nothing to run.
        """
        if self.command and self._is_due():
            liveness = replace(Liveness.of(self.search), process=process_left(self.search))  # once the command runs
            text = json_text(SearchSummary.of(self.search, liveness))
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            claim = str(claim_of(self.search.path).resolve())
            order = user_command.Order(self.command, text, users_environment(), claim, status)
            user_command.replace_process(order)

    def _is_due(self) -> bool:
        return self.begun and self._once.acquire(blocking=False)


def run_on_end(search: SearchDir, command: str, say: Callable[[str], None]) -> None:
    """Run the command with the summary of the search on its standard input; say what it printed, or why it failed."""
    output = ""
    try:
        with signals_as_interrupts():
            problem, output = user_command.run(command, json_text(SearchSummary.of(search)), users_environment())
    except KeyboardInterrupt as interrupt:
        problem = str(interrupt)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    for line in user_command.lines(problem, output):
        say(line)
