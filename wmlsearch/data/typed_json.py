"""JSON values as frozen dataclasses, checked strictly against the annotated types."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Return a JSON value as the dataclass `kind`.

    Fields may be dataclasses, tuples, dicts by string, optional types and plain values. Raises ValueError that names
    the field (`where` at the top level) for missing and unknown fields and for values of another type.
    """
    return typing.cast(T, _convert(kind, value, where))


@functools.cache
def _hints(dataclass: type) -> dict[str, Any]:
    return typing.get_type_hints(dataclass)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(typing.cast(type, kind))
        if hints.keys() != value.keys():
            odd = ", ".join(sorted(hints.keys() ^ value.keys()))
            raise ValueError(f"{where}: missing or unknown fields: {odd}")
        return typing.cast(Any, kind)(**{name: _convert(hint, value[name], name) for name, hint in hints.items()})
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(arg for arg in args if arg is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, list) and (args[-1] is Ellipsis or len(args) == len(value)):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(arg, item, where) for arg, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _convert(args[1], item, where) for name, item in value.items()}
    if (kind is float and type(value) in (int, float)) or type(value) is kind:
        return value
    raise ValueError(f"{where}: {str(value)[:40]!r} is not of type {getattr(kind, '__name__', kind)}")
