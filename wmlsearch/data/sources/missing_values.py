"""How tables and lists say that a value is missing: an empty cell, or what pandas, R, Excel and BIDS write instead."""

from __future__ import annotations

_WORDS = ("", "n/a", "#n/a", "na", "<na>", "nan", "none", "null", "-")


def is_missing(text: str) -> bool:
    """Whether a cell holds no value: it is empty, or a word such as NaN or n/a in any case."""
    return text.strip().casefold() in _WORDS


def text_or_empty(text: str) -> str:
    """Return a cell's text; "" where its value is missing."""
    return "" if is_missing(text) else text
