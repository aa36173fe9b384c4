"""Locations below a folder or a URI."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlsearch.errors import InputError
from wmlsearch.runs.locations import location_below, split_options, with_name


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


@pytest.mark.parametrize("part", ["", ".", "..", "s/../t", "/s", "s/"])
def test_a_part_that_is_no_name_is_refused(part: str) -> None:
    """Below it would be the location itself, with all other searches, or a folder outside."""
    with pytest.raises(InputError) as error:
        location_below("s3://bucket/path", part, "run-folder")
    with pytest.raises(InputError):
        location_below("s3://bucket/path", *Path().parts)
    assert (
        str(error.value) == f"{part!r}: is not a valid folder name in a storage; give the name of a search, or its path"
    )


def test_the_folder_that_dots_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "s" / "trials"
    inside.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inside)
    monkeypatch.chdir(tmp_path / "s")
    assert [with_name(Path(path)) for path in (".", "trials/..")] == [tmp_path / "s"] * 2
    assert [with_name(Path(path)) for path in ("..", "../link/..")] == [tmp_path, tmp_path / "s"]
    assert [with_name(Path(path)) for path in ("../s", "trials/.", "../link")] == [
        Path("../s"), Path("trials"), Path("../link"),
    ]  # fmt: skip


def test_options_are_split_off_a_uri_only() -> None:
    assert split_options("gs://bucket/a/?x=1?y") == ("gs://bucket/a", "?x=1?y")
    assert split_options("/data/what?now/") == ("/data/what?now", "")
