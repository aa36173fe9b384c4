"""wmlsearch: distributed hyperparameter search for white matter lesion segmentation.

The names below are the Python API (`wmlsearch/api/`). They are loaded when they are first used, so `import wmlsearch`
takes no time.
"""

from __future__ import annotations

import typing as _typing

if _typing.TYPE_CHECKING:
    from wmlsearch.api import (
        Champion,
        InputError,
        Model,
        Prediction,
        Search,
        Verdict,
        load_model,
        load_search,
        phantom,
        prepare,
        resume,
        tune,
    )

__version__ = "0.2.0"
__all__ = [
    "Champion",
    "InputError",
    "Model",
    "Prediction",
    "Search",
    "Verdict",
    "load_model",
    "load_search",
    "phantom",
    "prepare",
    "resume",
    "tune",
]


def __getattr__(name: str) -> _typing.Any:
    """Load the Python API when one of its names is used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("wmlsearch.api"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
