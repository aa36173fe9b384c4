"""A search on a cluster that begins without machines: Ray's own autoscaler starts them, and stops them again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.schema import GOOD

SCRIPT = Path(__file__).with_name("autoscaling.py")
# What runs in it has process ids of its own, and ends with its first process.
NAMESPACE = ["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]


def has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_namespaces(), reason="needs PID namespaces: Linux, and root")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_grows_from_no_machine_to_two_and_back(tmp_path: Path, workers: int) -> None:
    """Trials of one worker need both machines at once, and so does a trial of two. Final runs begin without any."""
    write_phantom(tmp_path / "raw", patients=8, timepoints=1, shape=(48, 48, 12), lesion_size=3)
    prepare(tmp_path / "raw", tmp_path / "data", PrepareOptions(size=32, fit="resize", jobs=1))
    folder = Path(tempfile.mkdtemp(prefix="w", dir="/tmp"))
    epochs = 30 if workers == 1 else 8  # long enough for the second machine to come
    words = ["--trials", 4 // workers, "--epochs", epochs, "--scheduler", "none", "--no-forecast", "--seed", 1]
    words += ["--confirm-top", 1, "--confirm-seeds", 1, "--final-runs", 1, "--workers-per-trial", workers]
    done = subprocess.run(
        [*NAMESPACE, sys.executable, SCRIPT, folder, tmp_path / "data", *(str(word) for word in words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["status"] == 0, seen["log"]
        assert (seen["began_with"], seen["left"]) == (0, 0), seen["log"]
        # A machine that ends is listed until Ray has noticed it, beside the one that comes in its place.
        assert seen["most"] >= 2, seen["log"]
        assert set(seen["groups"]) == {"REMOVED"}
        assert f"0 of {2 // workers} slot" in seen["log"]
        assert "waiting for the cluster to start machines for a trial of" in seen["log"]
        assert "machines for the first trial are ready (" in seen["log"]
        search = SearchDir(folder / "runs" / "s")
        assert len(search.trials()) == 4 // workers
        assert {run.state for run in (*search.trials(), *search.finals())} <= set(GOOD)
        selection = search.selection()
        assert selection is not None
        assert (search.evaluation() is None) == (selection.champion == PAPER), (
            "the baseline needs no comparison with itself"
        )
        assert search.usage().slots == search.usage().slots_waiting == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
