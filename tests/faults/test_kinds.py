"""One trial of each kind of failure in one search: run folder, leaderboard and MLflow show each failure."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
from search import Record, Running, tune_arguments

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.uri import default_uri

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
INJECT = Path(__file__).parent / "inject"
FAULTS = {"0001": "raise", "0002": "hang", "0003": "diverge", "0004": "memory"}
NAMES = {"raise": "raises", "hang": "hangs", "diverge": "diverges", "memory": "needs more memory than available"}
TIMEOUT_S = 15
KINDS = {
    "0001": ("failed", "ZeroDivisionError: injected"),
    "0002": ("lost", f"no report for {TIMEOUT_S} s (--trial-timeout) 4 times without a new epoch"),
    "0003": ("diverged", "is not finite in epoch"),
    "0004": ("out_of_memory", "memory"),
}
MEMORY_BYTES = 6_500_000_000  # limit of the address space of each process, as `ulimit -v` sets it


def environment(**more: str) -> dict[str, str]:
    paths = [str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **more}


def test_each_kind_of_failure(prepared: Path, out: Path, record: Record) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, limits[1]))  # inherited by the processes started below
    try:
        words = tune_arguments(out, prepared, "--trial-timeout", TIMEOUT_S, trials=7, epochs=6)
        running = Running(out, *words, env=environment(WMLSEARCH_FAULT_TRIALS=json.dumps(FAULTS)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    with running:
        assert running.end(400) == 0, running.text()
    search = SearchDir(out / "s")
    client = connect(default_uri(out))
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    tags = {
        run.info.run_name: (run.info.status, run.data.tags) for run in client.search_runs([experiment.experiment_id])
    }
    board = {entry.name: entry for entry in leaderboard(search).trials}
    assert len(board) == 7
    for run in search.trials():
        name, status = run.record().name, run.status()
        state, reason = KINDS.get(run.name, ("completed", ""))
        assert (status.state, board[name].state, tags[name][1]["state"]) == (state, state, state), status
        assert tags[name][0] == ("FAILED" if reason else "FINISHED")
        for shown_reason in (status.reason, board[name].reason, tags[name][1]["reason"]):
            assert reason in shown_reason, shown_reason
        if reason:
            assert f"{name} {state.replace('_', ' ')}: " in running.text()
            record(f"a trial that {NAMES[FAULTS[run.name]]}", 1, observed=f"{state}: {reason}")
        else:
            assert [row.epoch for row in run.rows()] == list(range(1, 7))
    assert search.state == "completed"
