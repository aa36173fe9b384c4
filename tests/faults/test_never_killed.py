"""A search that is killed and resumed makes the same decisions and reports as one that was never killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from processes import wait_for
from search import Record
from whole_search import TRIALS, end, facts, population_command, run, search_command, start, study_trials, tune

from wmlsearch.runs.folders import SearchDir
from wmlsearch.tracking.uri import default_uri

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


def finished(out: Path, command: Callable[[Path, Path], list[str]], prepared: Path) -> SearchDir:
    out.mkdir()
    run(command(out, prepared))
    return SearchDir(out / "s")


def test_search_killed_three_times_resumes(prepared: Path, tmp_path: Path, record: Record) -> None:
    """Kill the search in its first trial, midway, in its first final run and in its last ones.

    Each time with a torn journal line.
    """
    never_killed = finished(tmp_path / "never", search_command, prepared)
    search, command = SearchDir(tmp_path / "s"), search_command(tmp_path, prepared)
    for begun, epochs in ((search.trials, 3), (search.trials, 10), (search.finals, 1), (search.finals, 9)):
        process = start(command)
        wait_for(lambda: process.poll() is not None or sum(len(run.rows()) for run in begun()) >= epochs, 300)  # noqa: B023 - called in this iteration
        assert process.poll() is None, process.communicate()[0]
        end(process)
        assert search.status().state == "running", "a killed search cannot record its end"
        with search.journal.open("a") as journal:  # a torn last line; Optuna alone cannot read past it
            journal.write('{"op_code": 5, "wor')
        command = tune(tmp_path, "--resume", "s")
    output = run(command)
    assert "s is resumed: 8 of 8 trials have ended\n" in output
    assert facts(search) == facts(never_killed)
    assert study_trials(search) == study_trials(never_killed)
    assert search.status().state == "completed"
    client = MlflowClient(default_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    evaluation, other = search.evaluation(), never_killed.evaluation()
    assert evaluation is not None
    assert other is not None
    champion = evaluation.names["champion"]
    assert sorted(run.info.run_name or "" for run in runs) == sorted([
        "baseline (paper)", f"champion ({champion})", "paper-seed2", f"{champion}-seed2",
        "paper-run0", f"{champion}-run0",
        "s",
        *(f"trial-{number:04d}" for number in range(TRIALS)),
    ])  # fmt: skip
    assert evaluation.opened_before == other.opened_before + 1, "each search opens the sealed test once"
    for field in ("names", "models", "verdict"):
        assert getattr(evaluation, field) == getattr(other, field)
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {run.info.run_name: run.info.run_id for run in runs}
    for trial in search.trials() + search.finals():
        history = client.get_metric_history(by_name[trial.record().name], "train_loss")
        assert sorted(point.step for point in history) == [row.epoch for row in trial.rows()]
    record(
        "kill -9 of everything, and a torn journal, `--resume`",
        4,
        observed="same decisions and results as if never killed",
    )


def lineages(search: SearchDir) -> list[Any]:
    names = ("parent", "parent_epoch", "replaces", "rate_factors")
    return [({name: getattr(run.record(), name) for name in names}, run.status().reason) for run in search.trials()]


def test_population_search_killed_during_a_takeover(prepared: Path, tmp_path: Path, record: Record) -> None:
    never_killed = finished(tmp_path / "never", population_command, prepared)
    process, search = start(population_command(tmp_path, prepared)), SearchDir(tmp_path / "s")
    wait_for(lambda: process.poll() is not None or any(run.record().parent is not None for run in search.trials()))
    assert process.poll() is None
    end(process)
    assert search.status().state == "running", "a killed search cannot record its end"
    run(tune(tmp_path, "--resume", "s"))
    assert facts(search) == facts(never_killed)
    assert lineages(search) == lineages(never_killed)
    assert study_trials(search) == study_trials(never_killed)
    assert not any(search.path.rglob("epoch-*"))
    record("kill -9 of everything, `--scheduler pbt`", 1, observed="same decisions and results as if never killed")
