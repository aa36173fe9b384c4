"""Whether this machine has what wmlsearch depends on: `python dependencies.py FILE`, where wmlsearch may not start.

It is a program of its own, with nothing of wmlsearch: a job runs it before the package, and it says what is missing.
FILE has a requirement a line, such as "torch>=2.6". `packaging` is there wherever Ray is.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement


def missing(requirements: list[str]) -> list[str]:
    """Return what is missing, as "torch>=2.6 (not installed)", of requirements without those of extras."""
    lines = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            lines.append(f"{requirement} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            lines.append(f"{requirement} (installed: {installed})")
    return lines


if __name__ == "__main__":
    if lines := missing(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()):
        sys.exit(
            f"the cluster lacks what wmlsearch depends on: {', '.join(lines)}; install that on all of its machines, as "
            "in `setup_commands` of the cluster file, or in the image of the containers"
        )
