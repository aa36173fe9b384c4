"""The keywords of the Python API, typed, so that editors complete them and type checkers check them.

The field of the same name in `PrepareOptions` or `RunSettings` documents the meaning and the default.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from wmlsearch.errors import InputError

AnyPath = str | os.PathLike[str]
Say = Callable[[str], None]
_REST = inspect.Parameter.VAR_KEYWORD
RUNS = "runs"  # the folder of all runs, as on the command line


class PrepareKeywords(TypedDict, total=False):
    """Keywords of `wmlsearch.prepare`: the options of `wmlsearch prepare`."""

    plane: Literal["sagittal", "axial", "coronal", "native"] | None
    size: int
    keep: Literal["brain", "lesion", "all"]
    fit: Literal["crop", "resize"]
    split: Literal["patient", "image"]
    train_patients: Sequence[str] | None
    val_patients: Sequence[str] | None
    test_patients: Sequence[str] | None
    folds: int | None
    allow_leakage: bool
    mask_threshold: float | None
    lesion_labels: Sequence[float] | None
    ignore_labels: Sequence[float] | None
    nan_background: bool
    select: Sequence[str] | None
    mask_select: Sequence[str] | None
    seed: int
    protocol: Literal["paper"] | None
    patient_pattern: str | None
    jobs: int | None
    pseudonyms: str | Path | None


class BudgetKeywords(TypedDict, total=False):
    """Keywords of `wmlsearch.resume`: the settings that may change when a search is resumed."""

    trials: int
    max_hours: float | None
    max_gpu_hours: float | None
    max_epochs_total: int | None
    target_dice: float | None
    max_checkpoint_gb: float | None
    trial_timeout: float | None


class SettingKeywords(BudgetKeywords, total=False):
    """Keywords of `wmlsearch.tune`: the settings of a search."""

    epochs: int | None
    seed: int
    precision: Literal["auto", "bfloat16", "float32"]
    objective: str
    objectives: Sequence[str]
    sampler: Literal["forest", "tpe", "gp", "random", "qmc", "cmaes"]
    scheduler: Literal["asha", "predictive", "hyperband", "median", "none", "pbt"]
    experience: bool
    portfolio: int
    grace_epochs: int
    reduction_factor: int
    baseline: bool
    confirm_top: int
    confirm_seeds: int
    final_runs: int
    postprocessing: Literal["auto", "none"]
    forecast: bool


def check_keywords(function: Callable[..., object], given: Mapping[str, Any], allowed: type) -> None:
    """Raise InputError for keywords that a function does not have.

    Args:
        function: A function with `**keywords`.
        given: The keywords that it was called with.
        allowed: TypedDict of the keywords that it accepts besides its named parameters.
    """
    named = [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind != _REST]
    allowed_names = {*named, *allowed.__annotations__}
    unknown = [name for name in given if name not in allowed.__annotations__]
    if not unknown:
        return
    suggestions = {name: difflib.get_close_matches(name, allowed_names, n=1) for name in unknown}
    shown = [f"{name!r}" + "".join(f" (did you mean {other!r}?)" for other in suggestions[name]) for name in unknown]
    all_keywords = "" if all(suggestions.values()) else f"; it has {', '.join(sorted(allowed_names))}"
    raise InputError(f"wmlsearch.{function.__name__}() has no keyword {', '.join(shown)}{all_keywords}")
