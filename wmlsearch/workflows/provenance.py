"""What run folders record of their origin: data, configuration, settings, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from wmlsearch import __version__
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.runs.names import SEARCH
from wmlsearch.workflows.search_plan import SearchPlan


def versions() -> dict[str, str]:
    """Return the versions of wmlsearch, Python and the main libraries, and the git commit."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "ray", "optuna", "mlflow")}
    return {"wmlsearch": __version__, "python": platform.python_version(), **packages, "commit": _commit()}


def _commit() -> str:
    """Return the git commit of a checkout that runs in place, or ""."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607 - whatever git is on the path
    return result.stdout.strip()


def data_record(folder: Path, prepared: PreparedData) -> dict[str, Any]:
    """Return what a run records of its data. A model cuts other images by plane, axis, size, fit and spacing_mm."""
    manifest = prepared.manifest
    return {
        "name": folder.name,
        "fingerprint": manifest.fingerprint,
        "size": manifest.size,
        "plane": manifest.plane,
        "axis": manifest.axis,
        "fit": manifest.fit,
        "spacing_mm": manifest.spacing_mm,
        "split": manifest.split_level,
        "optimistic": manifest.optimistic,
    }


def run_record(
    name: str, kind: str, config: TrialConfig, settings: RunSettings, data: dict[str, Any]
) -> dict[str, Any]:
    """Return what the folder of a run records before its first epoch."""
    return {
        "name": name,
        "kind": kind,
        "config": config.model_dump(),
        "settings": settings.model_dump(),
        "data": data,
        "versions": versions(),
    }


def search_record(name: str, plan: SearchPlan, earlier_trials: int, left_out: Mapping[str, int]) -> dict[str, Any]:
    """Return what `search.json` records before the first trial.

    Args:
        earlier_trials: How many trials of earlier searches the study starts with.
        left_out: How many others it does not start with, by reason.
    """
    return {
        "name": name,
        "kind": SEARCH,
        "space": {"source": plan.space.source, "values": plan.space.mapping()},
        "settings": plan.settings.model_dump(),
        "data": dict(plan.data_record),
        "data_path": str(plan.data.resolve()),
        "warm_start": {"taken": earlier_trials, "left_out": dict(left_out)},
        "shape": plan.placement.shape,
        "storage": plan.placement.storage_without_password,
        "packing": plan.packing.as_dict() if plan.packing else {},
        "certificate": asdict(plan.manifest.certificate),
        "versions": versions(),
    }
