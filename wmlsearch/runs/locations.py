"""Locations of files: folders, or URIs such as `s3://bucket/path?region=eu-west-1`, which may end in options."""

from __future__ import annotations


def split_options(location: str) -> tuple[str, str]:
    """Return a location without slashes at its end and options, and the options with their "?", or "".

    The name of a folder may have a "?".
    """
    base, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return base.rstrip("/"), mark + options


def location_below(location: str, *parts: str) -> str:
    """Return the location of a folder in this one."""
    base, options = split_options(location)
    return "/".join([base, *parts]) + options
