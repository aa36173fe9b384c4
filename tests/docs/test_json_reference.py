"""docs/reference/json.md documents exactly the fields that the records have, with their types."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any

import pytest
from paths import REPOSITORY

from wmlsearch.workflows import json_results, summaries

TEXT = (REPOSITORY / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
RECORDS = {
    name: record
    for module in (summaries, json_results)
    for name, record in vars(module).items()
    if dataclasses.is_dataclass(record) and record.__module__ == module.__name__ and not record.__subclasses__()
}
NAMES = {str: "string", bool: "boolean", int: "number", float: "number", types.NoneType: "null"}


def documented(record: str) -> dict[str, str]:
    """The type of each field in the table of a record's section."""
    section = re.search(rf"^## {record}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert section, f"{record} has no section"
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section[1], re.MULTILINE))


def in_words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return " or ".join(in_words(arg) for arg in args)
    if origin is list:
        return f"list of {in_words(args[0])}"
    return "object" if origin is dict else NAMES.get(hint) or hint.__name__


@pytest.mark.parametrize("name", RECORDS)
def test_each_field_is_documented(name: str) -> None:
    fields = {field: in_words(hint) for field, hint in typing.get_type_hints(RECORDS[name]).items()}
    assert documented(name) == fields


def test_each_section_is_a_record() -> None:
    assert set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)) == set(RECORDS)
