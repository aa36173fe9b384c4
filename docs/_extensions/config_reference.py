"""Sphinx directives that write the reference of hyperparameters, settings and search spaces from the code."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from wmlsearch import config
from wmlsearch.space import SearchSpace

BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
REPOSITORY = Path(__file__).resolve().parents[2]


class ConfigTable(SphinxDirective):
    """A table of a model's fields in `wmlsearch.config`: `{config-table} TrialConfig`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        model: type[BaseModel] = getattr(config, self.arguments[0])
        self.env.note_dependency(str(config.__file__))
        rows = [f"| `{name}` | {values(field)} | {default(field)} | {field.description} |"
                for name, field in model.model_fields.items()]  # fmt: skip
        table = ["| name | values | default | meaning |", "|---|---|---|---|", *rows]
        return self.parse_text_to_nodes("\n".join(table))


class SearchSpaces(SphinxDirective):
    """Each shipped hyperparameter file under a heading, with the comment that it begins with."""

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for path in sorted((REPOSITORY / "search_spaces").glob("*.yaml")):
            self.env.note_dependency(str(path))
            space = SearchSpace.read(path)
            kind = (
                "one configuration"
                if space.is_single_configuration
                else f"{len(space.dimensions)} searched hyperparameters"
            )
            text += [f"## `{path.stem}`: {kind}", "", "```yaml", path.read_text().rstrip(), "```", ""]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def default(field: FieldInfo) -> str:
    """The default value of a field as a hyperparameter file writes it, or what the field says of it."""
    if isinstance(field.json_schema_extra, dict) and "default_shown" in field.json_schema_extra:
        return str(field.json_schema_extra["default_shown"])
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == []:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def values(field: FieldInfo) -> str:
    """The values that a field may have: its choices, or its type and bounds."""
    rules = (*field.metadata, *_rules(field.annotation))
    bounds = [
        f"{word} {getattr(rule, name):,}"
        for name, word in BOUNDS.items()
        for rule in rules
        if getattr(rule, name, None) is not None
    ]
    return " ".join([" or ".join(_types(field.annotation)), *bounds])


def _types(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield ", ".join(f"`{value}`" for value in arguments)
    elif origin is typing.Annotated:
        yield from _types(arguments[0])
    elif origin in (types.UnionType, typing.Union):
        for part in arguments:
            if part is not type(None):
                yield from _types(part)
    elif origin is list:
        yield "list of " + " or ".join(_types(arguments[0]))
    else:
        yield TYPES[annotation]


def _rules(annotation: Any) -> Iterator[Any]:
    """The pydantic rules inside `Annotated[...] | None`."""
    for part in typing.get_args(annotation):
        if typing.get_origin(part) is typing.Annotated:
            for rule in typing.get_args(part)[1:]:
                yield from getattr(rule, "metadata", [rule])


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("config-table", ConfigTable)
    app.add_directive("search-spaces", SearchSpaces)
    return {"parallel_read_safe": True}
