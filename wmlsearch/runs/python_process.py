"""How another Python process runs a module of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def module_command(module: str) -> list[str]:
    """Return the command that runs a module, whatever the user's folder holds, such as a `types.py`."""
    return [sys.executable, "-P", "-m", module]


def module_path(environment: Mapping[str, str]) -> str:
    """Return the PYTHONPATH with which that command finds this package, and all that `environment` names."""
    package_folder = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([package_folder, *filter(None, [environment.get("PYTHONPATH")])])
