"""`InputError`, and how its messages show values and names that are wrong.

Every command imports this module, so it imports nothing that takes time to load.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

MAX_SHOWN_CHARACTERS = 500  # a longer value is cut in messages


class InputError(Exception):
    """An error in what the user gave: a headline, and below it one line for each fault.

    The text names the file or option, the rule, the values and the next step. The command line prints it without a
    traceback and exits with status 2.
    """

    def __init__(self, headline: str, faults: Sequence[str] = ()) -> None:
        self.headline, self.faults = headline, tuple(faults)
        super().__init__("\n".join([headline, *(f"  - {fault}" for fault in faults)]))


def short_repr(value: Any) -> str:
    """Return the `repr` of a value for a message, cut after `MAX_SHOWN_CHARACTERS`."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more digits
        return "a number of more than 4300 digits"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(text)} characters)"


def unknown_name(name: object, valid: Sequence[str]) -> str:
    """Return `unknown name 'dropuot': did you mean 'dropout'?`, or all valid names if none is similar."""
    similar = similar_name(name, valid)
    return f"unknown name {short_repr(name)}: " + (
        f"valid names are {', '.join(valid)}" if similar is None else f"did you mean {similar!r}?"
    )


def similar_name(name: object, valid: Sequence[str]) -> str | None:
    """Return the valid name that is most similar to `name`; None if none is similar."""
    similar = difflib.get_close_matches(name, valid, n=1) if isinstance(name, str) else []
    return similar[0] if similar else None
