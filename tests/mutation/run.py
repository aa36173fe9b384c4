"""`make mutation-test`: change one operator or constant of the split and the leakage guard at a time; a test must fail.

cosmic-ray writes each change into the file, so it works in a copy. Prints the changes that no test noticed, and exits
with status 1 if there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = "tests/mutation/cosmic-ray.toml"
LIMIT_S = 5400
COPIED = ("wmlsearch", "tests", "pyproject.toml")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="wmlsearch-mutation-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, copy / name)
        tool(copy, "cosmic-ray", "init", CONFIG, "session.sqlite")
        tool(copy, "cr-filter-operators", "session.sqlite", CONFIG)
        tool(copy, "cr-filter-pragma", "session.sqlite")
        tool(copy, "cosmic-ray", "baseline", CONFIG)
        tool(copy, "cosmic-ray", "exec", CONFIG, "session.sqlite")
        print(tool(copy, "cr-report", "--surviving-only", "--show-diff", "session.sqlite"))
        return subprocess.run(
            [command("cr-rate"), "--fail-over", "0", "session.sqlite"], cwd=copy, check=False
        ).returncode


def command(name: str) -> str:
    """Return the path of a command beside this Python."""
    return str(Path(sys.executable).with_name(name))


def tool(copy: Path, name: str, *words: str) -> str:
    """Run a command of cosmic-ray in the copy, and return its output. The tests run on this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "tests")])}
    done = subprocess.run(
        [command(name), *words],
        cwd=copy,
        env=environment,
        check=True,
        timeout=LIMIT_S,
        text=True,
        stdout=subprocess.PIPE,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
