"""`--patient-pattern`: the user's regular expression, checked, and matched under a time limit."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from wmlsearch.errors import InputError, short_repr
from wmlsearch.runs.wording import plural

TIMEOUT_S = 10.0  # for the names of all files
EXAMPLE = "'^(p[0-9]+)_'"
_MATCH_SCRIPT = """
import json, re, sys
pattern, names = json.load(sys.stdin)
matches = map(re.compile(pattern).search, names)
json.dump([match and [match.groupdict(), match.groups()] for match in matches], sys.stdout)
"""


def check_pattern(pattern: str) -> None:
    """Raise InputError unless the pattern is valid and has one group, or a group named patient."""
    try:
        regex = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"--patient-pattern: not a regular expression ({reason}), got {short_repr(pattern)}") from None
    if "patient" not in regex.groupindex and regex.groups != 1:
        raise InputError(
            f"--patient-pattern: needs one group, the patient, or groups named patient and timepoint, "
            f"but got {regex.groups} groups in {pattern!r}; write for example {EXAMPLE}"
        )


def match_names(pattern: str, names: list[str]) -> list[dict[str, str | None]]:
    """Return the groups `patient`, and `timepoint` where the pattern has it, for each name; {} for no match.

    The match runs in a process of its own, because a pattern such as (a+)+$ can only be interrupted by ending the
    process. Raises InputError where it takes longer than `TIMEOUT_S`.
    """
    try:
        process = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-I", "-c", _MATCH_SCRIPT],
            input=json.dumps([pattern, names]),
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--patient-pattern {pattern!r}: takes more than {TIMEOUT_S:g} s on {plural(len(names), 'name')}; "
            f"write it without a repetition within a repetition, such as {EXAMPLE}"
        ) from None
    matches = [match or [{}, [None]] for match in json.loads(process.stdout)]
    return [
        named if "patient" in named or not groups[0] else {**named, "patient": groups[0]} for named, groups in matches
    ]
