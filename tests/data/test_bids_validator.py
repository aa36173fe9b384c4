"""The phantom is valid BIDS: the validator of the standard's authors (npm's `bids-validator`) has nothing to say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from wmlsearch.data.phantom import write_phantom

VALIDATOR = "bids-validator@1.15.0"
INSTALL_S, RUN_S = 240, 60  # a first installation loads some hundred small packages


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program: the one on PATH or in BIDS_VALIDATOR, else one that npm installs for this test."""
    if given := os.environ.get("BIDS_VALIDATOR") or shutil.which("bids-validator"):
        return Path(given)
    if not (shutil.which("node") and (npm := shutil.which("npm"))):
        pytest.skip("node and npm are missing, which run the BIDS validator")
    folder = tmp_path_factory.mktemp("npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), VALIDATOR]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {VALIDATOR} within {INSTALL_S} s")
    if done.returncode:
        pytest.skip(f"npm cannot install {VALIDATOR}: {done.stderr.strip()[-200:]}")
    return folder / "node_modules/.bin/bids-validator"


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "timepoints"), [(1, 1), (3, 2)])
def test_the_validator_has_no_error_and_no_warning(
    validator: Path, tmp_path: Path, patients: int, timepoints: int
) -> None:
    root = write_phantom(tmp_path / "raw", patients=patients, timepoints=timepoints, shape=(32, 32, 8))
    found = subprocess.run([validator, root, "--json"], capture_output=True, text=True, timeout=RUN_S)
    issues = json.loads(found.stdout)["issues"]
    told = {kind: [issue["key"] for issue in issues[kind]] for kind in ("errors", "warnings")}
    assert told == {"errors": [], "warnings": []}
