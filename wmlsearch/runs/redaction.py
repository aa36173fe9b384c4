"""Texts without home directories and passwords: others read what is logged to MLflow."""

from __future__ import annotations

import os
import re


def without_home(text: str) -> str:
    """A text in which home directories are `~`: they have people's names, and others read what is sent to MLflow."""
    own = re.escape(os.environ.get("HOME", "").rstrip("/") or "/root")
    homes = rf"(?:/(?:home|Users)/[^/\s:'\"]+|(?<!\w)(?:/root|{own}))"
    return re.sub(rf"{homes}(?=[/\s:'\",;)]|$)", "~", text)


def without_password(text: str) -> str:
    """A text that is to be shown, without the password of any URI in it, wherever that stands.

    A password may hold any sign, so all up to the last @ is taken for it; spaces only where the text is a URI alone.
    """
    space = "" if re.match(r"[\w+.-]+://", text) else r"\s"
    names = r"\b(?:[\w.-]*(?:password|passwd|pwd|token|secret)[\w.-]*|sig)"
    text = re.sub(rf"({names}(?:=|%3D))[^&{space}]+", r"\1***", text, flags=re.IGNORECASE)
    return re.sub(rf"(://[^/\s:]*):[^\0{space}]*@", r"\1:***@", text)
