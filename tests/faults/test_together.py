"""Simultaneous searches: two with the same name, and one whose clock is set back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from search import Lines, Record, Running, differences, sync, tune_arguments
from test_kinds import environment

from wmlsearch.runs.folders import SearchDir
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.uri import default_uri

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EPOCHS = 12


def test_simultaneous_searches(prepared: Path, out: Path, tmp_path: Path, record: Record) -> None:
    clock = tmp_path / "set-back"
    words = tune_arguments(out, prepared, trials=2, epochs=EPOCHS)
    other = tune_arguments(out, prepared, trials=2, epochs=EPOCHS, name="other")
    with (
        Running(out, *words, cores=1) as one,
        Running(out, *words, cores=1) as two,
        Running(out, *other, cores=1, name="other", env=environment(WMLSEARCH_FAULT_CLOCK=str(clock))) as third,
        Lines(third.search) as lines,
    ):
        third.until(lambda: lines.count() >= 3)
        clock.touch()
        ends = {running: running.end(300) for running in (one, two, third)}
    first, second = (one, two) if ends[one] == 0 else (two, one)
    assert (ends[first], ends[second], ends[third]) == (0, 2, 0), second.text()
    assert re.search(
        rf"s: this search is running already \(process {first.process.pid} on \S+\); follow it with "
        r"`wmlsearch status \S+`, or choose another --name",
        second.text(),
    ), second.text()
    for name in ("s", "other"):
        search = SearchDir(out / name)
        assert search.state == "completed"
        for run in search.trials():
            assert [row.epoch for row in run.rows()] == list(range(1, EPOCHS + 1))
    record(
        "two searches of the same name at once", 1, observed="the second one is refused and names the first's process"
    )
    record("two searches of different names at once", 1, *lines.lost_and_doubled(), "both finish")

    search, durations = SearchDir(out / "other"), []
    for status in [search.status(), *(trial.status() for trial in search.trials())]:
        assert status.ended is not None
        durations.append(status.ended - status.started)
    for trial in search.trials():
        times = [row.time for row in trial.rows()]
        assert times == sorted(times)
        assert all((row.metrics["epoch_s"] or 0) >= 0 for row in trial.rows())
    assert min(durations) >= 0
    assert search.usage().seconds >= 0
    client = connect(default_uri(out))
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    assert all(run.info.end_time >= run.info.start_time for run in client.search_runs([experiment.experiment_id]))
    record("clock set back by an hour", 1, *lines.lost_and_doubled(), f"shortest duration {min(durations):.1f} s")
    assert sync(out, default_uri(out)).returncode == 0
    assert differences(SearchDir(out / "s"), out / "mlflow.db")[:2] == (0, 0)
