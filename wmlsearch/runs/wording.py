"""Numbers in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 fault, 2 faults."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def last_line(text: str) -> str:
    """Return the last line of a text, such as the error of a traceback, or "" for an empty one."""
    return (text.strip().splitlines() or [""])[-1]
