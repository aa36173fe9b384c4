"""The hyperparameter files that ship with the package, and files by their name or path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from wmlsearch.errors import InputError


def space_file(name_or_path: str | Path) -> Path:
    """Return the path of a hyperparameter file, given by its path, or by its name if it is shipped (`paper`, `unet`).

    Raises InputError if there is none. A shipped file wins over a folder of the same name.
    """
    path = Path(name_or_path)
    name = str(name_or_path).removesuffix(".yaml")
    if not path.is_file() and "/" not in name and (shipped() / f"{name}.yaml").is_file():
        return shipped() / f"{name}.yaml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in shipped().glob("*.yaml")))
        raise InputError(f"{name_or_path}: no such file, and not one of the shipped search spaces: {names}")
    return path


def shipped() -> Path:
    """Return the folder of the shipped hyperparameter files: in the wheel, or `search_spaces/` of a checkout."""
    installed = Path(str(resources.files("wmlsearch"))) / "search_spaces"
    return installed if installed.is_dir() else installed.parents[1] / "search_spaces"
