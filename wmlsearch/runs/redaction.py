"""Texts without home directories and passwords: others read what is logged to MLflow."""

from __future__ import annotations

import os
import re


def without_home(text: str) -> str:
    """Return a text with home directories written as `~`, because they hold people's names."""
    home = re.escape(os.environ.get("HOME", "").rstrip("/") or "/root")
    homes = rf"(?:/(?:home|Users)/[^/\s:'\"]+|(?<!\w)(?:/root|{home}))"
    return re.sub(rf"{homes}(?=[/\s:'\",;)]|$)", "~", text)


def without_password(text: str) -> str:
    """Return a text with the passwords of URIs written as `***`.

    A password can hold any character, so it extends to the last @, over spaces only if the whole text is a URI.
    """
    space = "" if re.match(r"[\w+.-]+://", text) else r"\s"
    names = r"\b(?:[\w.-]*(?:password|passwd|pwd|token|secret)[\w.-]*|sig)"
    text = re.sub(rf"({names}(?:=|%3D))[^&{space}]+", r"\1***", text, flags=re.IGNORECASE)
    return re.sub(rf"(://[^/\s:]*):[^\0{space}]*@", r"\1:***@", text)
