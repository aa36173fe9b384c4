"""Numbers, and commands to paste, in words."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from wmlsearch.runs.locations import with_name

DIGITS = {"images_per_s": 1, "epoch_s": 2, "peak_memory_mb": 1}  # after the decimal point; other metrics: 4
DEFAULT_OUT = Path("runs")  # --out and --runs where they are not given


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 42 s, 3 min 20 s, 2 h 5 min."""
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60} s"
    return f"{whole_s // 3600} h {whole_s % 3600 // 60} min"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 fault, 2 faults."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def be(count: int) -> str:
    """Return the verb of so many things: is or are."""
    return "is" if count == 1 else "are"


def percent(share: float) -> str:
    """Return a share with two digits: 0.12 %, 4.3 %, 68 %; 99.6 % and more is 100 % only where nothing is missing."""
    if 0.995 <= share < 1:
        return f"{min(99.99, 100 * share):.4g} %"
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def number(value: Any, digits: int = 0) -> str:
    """Return a value as a cell: 0.6123, 0.00313, 16, bce; "-" for None."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if digits else f"{value:.3g}"


def rounded_beside(value: float, border: float, form: str) -> str:
    """Return a number rounded as `form` says, with up to six more digits where that would put it onto a border.

    A p of 0.0496 is shown as 0.0496 beside the border 0.05, and the bound 0.0002 of an interval as 0.0002 beside 0.

    Args:
        value: The number.
        border: A number that it is compared with, which rounding to some digits leaves as it is.
        form: A format with a number of digits, such as ".2g" or "+.3f".
    """
    sign, digits, kind = form[: form.index(".")], int(form[form.index(".") + 1 : -1]), form[-1]
    texts = [f"{value:{sign}.{digits + more}{kind}}" for more in range(7)]
    return next((text for text in texts if float(text) != border), texts[0]) if value != border else texts[0]


def score(name: str, value: Any) -> str:
    """Return a metric with the digits that it needs: 0.6123, or 81.4 images/s."""
    return number(value, DIGITS.get(name, 4))


def last_line(text: str) -> str:
    """Return the last line of a text, such as the error of a traceback, or "" for an empty one."""
    return (text.strip().splitlines() or [""])[-1]


def command(*words: str | Path) -> str:
    """Return `wmlsearch WORDS` quoted for a shell, so that it can be pasted.

    A Path that begins with a dash gets `./` before it, since it would be read as an option.
    """
    texts = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(["wmlsearch", *texts])


def run_words(folder: Path, option: str = "--out") -> list[str | Path]:
    """Return the words that name the run folder `folder` on a command line: its name, and `--out` unless it is `runs`.

    Args:
        option: `--out`, or `--runs` for the commands that call it so.
    """
    folder = with_name(folder)
    out = folder.parent
    words: list[str | Path] = [Path(folder.name)]
    return words if out == DEFAULT_OUT else [*words, option, out]
