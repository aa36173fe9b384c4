"""What a run folder records of its origin: data, configuration, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch import __version__
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData

if TYPE_CHECKING:
    pass


def versions() -> dict[str, str]:
    """What ran: for the record of a run."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "ray", "optuna", "mlflow")}
    return {"wmlsearch": __version__, "python": platform.python_version(), **packages, "commit": _commit()}


def _commit() -> str:
    """The git commit of a checkout that runs in place, or ""."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607 - whatever git is on the path
    return done.stdout.strip()


def data_record(folder: Path, prepared: PreparedData) -> dict[str, Any]:
    """What a run records of its data; from plane, axis, size, fit and spacing_mm its model knows how to cut others."""
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
    """What a run's folder says of it from its beginning on."""
    return {
        "name": name,
        "kind": kind,
        "config": config.model_dump(),
        "settings": settings.model_dump(),
        "data": data,
        "versions": versions(),
    }
