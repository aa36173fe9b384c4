"""Locations of files: folders, or URIs such as `s3://bucket/path?region=eu-west-1`, which may end in options."""

from __future__ import annotations

from pathlib import Path

from wmlsearch.errors import InputError


def split_options(location: str) -> tuple[str, str]:
    """Return a location without slashes at its end and options, and the options with their "?", or "".

    The name of a folder may have a "?".
    """
    base, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return base.rstrip("/"), mark + options


def location_below(location: str, *parts: str) -> str:
    """Return the location of a folder in this one. Raises InputError for a part that would stay here or leave it."""
    for part in parts or ("",):
        if any(name in ("", ".", "..") for name in part.split("/")):
            raise InputError(
                f"{part!r}: is not a valid folder name in a storage; give the name of a search, or its path"
            )
    base, options = split_options(location)
    return "/".join([base, *parts]) + options


def with_name(path: Path) -> Path:
    """Return the path of a folder that ends in the folder's name, which "." and ".." do not: they are resolved."""
    return path.resolve() if path.name in ("", "..") else path
