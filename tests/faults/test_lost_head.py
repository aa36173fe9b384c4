"""The head of a search dies with its disk: the search goes on elsewhere from its storage."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import s3_storage
from processes import wait_for
from search import Record
from whole_search import end, facts, run, search_command, start, study_trials, tune

from wmlsearch.cluster.run_copies import searches
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import UNFINISHED
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import default_uri

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    """The same search without a storage, that nothing disturbs."""
    out = tmp_path_factory.mktemp("never")
    run(search_command(out, prepared))
    return SearchDir(out / "s")


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        with s3_storage() as location:
            yield location
    else:
        yield str(tmp_path / "storage")


def test_search_whose_head_died_with_its_disk(
    prepared: Path, undisturbed: SearchDir, storage: str, tmp_path: Path, chance: random.Random, record: Record
) -> None:
    """Kill all processes in the trials and in the final runs, each time with the loss of the run folder."""
    lost = 0
    total = sum(len(each.rows()) for each in undisturbed.trials() + undisturbed.finals())
    moments = sorted(chance.sample(range(1, total - 1), 1 if storage.startswith("s3:") else 2))
    heads = [tmp_path / f"head-{number}" for number in range(len(moments) + 1)]
    for head in heads:
        head.mkdir()
    command = [*search_command(heads[0], prepared), "--storage", storage]
    for number, epochs in enumerate(moments):
        process, search = start(command), SearchDir(heads[number] / "s")

        def trained(search: SearchDir = search) -> int:
            return sum(len(each.rows()) for each in search.trials() + search.finals())

        wait_for(lambda: process.poll() is not None or trained() >= epochs, 300)  # noqa: B023 - called in this iteration
        assert process.poll() is None, process.communicate()[0]
        wait_for(lambda: process.poll() is not None or bool(searches(storage)), 60)  # noqa: B023
        end(process)
        before = trained()
        shutil.rmtree(heads[number])
        command = tune(heads[number + 1], "--resume", "s", "--storage", storage)
        lost += before
    output = run(command)
    search = SearchDir(heads[-1] / "s")
    assert f"s is restored from {storage}: process " in output
    assert facts(search) == facts(undisturbed)
    assert study_trials(search) == study_trials(undisturbed)
    assert search.state == "completed"
    evaluation, other = search.evaluation(), undisturbed.evaluation()
    assert evaluation is not None
    assert other is not None
    assert (evaluation.names, evaluation.verdict) == (other.names, other.verdict)
    assert [(each.state, each.complete) for each in searches(storage)] == [("completed", True)]
    check_new_mlflow(search, tmp_path / "new.db")
    assert not [each for each in search.all_runs() if each.state in UNFINISHED]
    record("kill -9 of everything, and the disk lost; resumed from the storage", len(moments), observed=f"{lost}")


def check_new_mlflow(search: SearchDir, store: Path) -> None:
    """Check that `sync` gives a new MLflow the runs of the search that the first one has, with the same metrics."""
    assert sync(search, f"sqlite:///{store}") == 1 + len(search.all_runs())
    first, new = (runs_of(uri) for uri in (default_uri(search.path.parent), f"sqlite:///{store}"))
    assert new == first


def runs_of(uri: str) -> dict[str, tuple[str, dict[str, float]]]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags["wmlsearch.key"]: (run.info.status, dict(run.data.metrics)) for run in runs}
