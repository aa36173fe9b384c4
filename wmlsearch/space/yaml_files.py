"""How YAML files are read: with strict rules, and errors that name the file and the place."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from wmlsearch.errors import InputError, short_repr

MAX_YAML_BYTES = 1_000_000  # a hyperparameter file has a few hundred bytes; more is a mistake or an attack


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-3` as a number and refuses duplicate names and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.YAMLError(
                    f"line {node.start_mark.line + 1}: a name must be text, but got {short_repr(name)}"
                )
            if name in names:
                raise yaml.YAMLError(f"{short_repr(name)} is given twice; keep one")
            names.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


# PyYAML raises these, not YAMLError, for values that only look like a date, a number or a set: 2001-99-99, !!set [1]
_CONSTRUCTOR_ERRORS = (ValueError, TypeError, LookupError, AttributeError)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises InputError that names the file and the place."""
    try:
        with path.open("rb") as file:  # its size may be wrong: that of /dev/zero is 0
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise InputError(f"{path}: more than {MAX_YAML_BYTES:,} bytes; is this a hyperparameter file?")
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; give each hyperparameter a value or a range, one per line")
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, *_CONSTRUCTOR_ERRORS) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold one `name: value` per line, but holds a {type(values).__name__}")
    return values
