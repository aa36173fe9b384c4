"""Locations below a folder or a URI."""

from __future__ import annotations

import pytest

from wmlsearch.runs.locations import location_below, split_options


@pytest.mark.parametrize(
    ("location", "below"),
    [
        ("/data/runs/", "/data/runs/s/trials"),
        ("/data/what?now", "/data/what?now/s/trials"),
        ("s3://bucket/path", "s3://bucket/path/s/trials"),
        ("s3://bucket/path/?region=eu-west-1", "s3://bucket/path/s/trials?region=eu-west-1"),
    ],
)
def test_a_folder_below(location: str, below: str) -> None:
    assert location_below(location, "s", "trials") == below


def test_options_are_split_off_a_uri_only() -> None:
    assert split_options("gs://bucket/a/?x=1?y") == ("gs://bucket/a", "?x=1?y")
    assert split_options("/data/what?now/") == ("/data/what?now", "")
