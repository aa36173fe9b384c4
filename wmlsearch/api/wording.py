"""Messages for Python: the options that they name become keywords. Commands to paste stay as they are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Literal, get_args, get_origin, get_type_hints

from wmlsearch.api.keywords import PrepareKeywords, Say, SettingKeywords
from wmlsearch.errors import InputError

_COMMAND = r"`[^`]*`|\bwmlsearch [a-z]+[^;)\n]*"
_VALUE = r"-?[0-9.]+(?:e-?[0-9]+)?\b|'[^']*'|[a-z0-9-]+=[\w.-]+|[a-z0-9]+\b|[A-Z]+\b"
_OPTION = re.compile(rf"(?P<command>{_COMMAND})|(?<![\w-])--(?P<name>[a-z][a-z-]*[a-z])(?: (?P<value>{_VALUE}))?")
_NEGATIVE = {"no_baseline": "baseline", "no_experience": "experience", "no_forecast": "forecast"}
_OTHER_NAMES = {"lesion_label": "lesion_labels", "ignore_label": "ignore_labels"}
_ARGUMENTS = (
    "data", "name", "out", "warm_start", "workers_per_trial", "gpus_per_worker", "trials_per_gpu", "ray_address",
    "storage", "mlflow_uri", "experiment", "threshold",
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(_ARGUMENTS, object),
    **get_type_hints(PrepareKeywords),
    **get_type_hints(SettingKeywords),
}  # of each keyword


def in_python(text: str) -> str:
    """Return a message of a workflow with keywords instead of options: `folds=3` for `--folds 3`.

    An option of commands alone stays, such as `--dry-run`.
    """
    text = re.sub(r"\b(RAW|OUT)\b(?=[^`]*(?:`[^`]*`[^`]*)*$)", lambda word: word[1].lower(), text)
    return _OPTION.sub(_keyword, text)


def _keyword(match: re.Match[str]) -> str:
    option, value = (match["name"] or "").replace("-", "_"), match["value"]
    rest = "" if value is None else f" {value}"
    if match["command"] is not None:
        return match[0]
    if option in _NEGATIVE:
        return f"{_NEGATIVE[option]}=False{rest}"
    name = _OTHER_NAMES.get(option, option)
    if name not in _TYPES:
        return match[0]
    if _TYPES[name] is bool:
        return f"{name}=True{rest}"
    if value is None or not _is_value(name, value):
        return f"{name}{rest}"
    shown = value if value[0] in "'-.0123456789" or value.isupper() else repr(value)
    return f"{name}=[{shown}]" if _takes_several(name) else f"{name}={shown}"


def _is_value(name: str, word: str) -> bool:
    """Whether the word after an option is its value, and not the next word of the sentence."""
    return not word.isalpha() or (word.isupper() and word != "REGEX") or word in _choices(name)


def _choices(name: str) -> tuple[object, ...]:
    """Return the words that a keyword takes."""
    kinds = [_TYPES[name], *get_args(_TYPES[name])]
    return tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


def _takes_several(name: str) -> bool:
    return "Sequence" in str(_TYPES[name])


def says_in_python(say: Say) -> Say:
    """Return `say` for the messages of workflows."""
    return lambda text: say(in_python(text))


@contextlib.contextmanager
def raises_in_python() -> Iterator[None]:
    """Let the InputErrors of a block, or of a function that this decorates, name keywords."""
    try:
        yield
    except InputError as error:
        raise InputError(in_python(error.headline), [in_python(fault) for fault in error.faults]) from None
