"""The MLflow store of a search that is named by its path: the one beside it, whatever `--out` is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from records import run_record, search_record

import wmlsearch
from wmlsearch.cli import main
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir, folder_of_all_runs

SERVER = "http://127.0.0.1:9"


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchDir:
    """An interrupted search in `other/runs`, with a trial; the store in `runs` is damaged, and of no account."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("runs").mkdir()
    Path("runs/mlflow.db").write_text("no database")
    made = SearchDir.create(Path("other/runs/s"), search_record())
    RunDir.create(made.trial(0).path, run_record(made.record())).set_status("completed")
    made.set_status("interrupted", "stopped by Ctrl-C")
    return made


@pytest.fixture
def uris(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stores that the commands would copy to, instead of copying."""
    seen: list[str] = []

    def nothing_left(_search: SearchDir, _settings: object, uri: str) -> str:
        seen.append(uri)
        return "nothing is left to do"

    def sync(_run: AnyDir, uri: str, _experiment: str | None) -> int:
        seen.append(uri)
        return 1

    class Mirror:
        def __init__(self, _root: AnyDir, uri: str) -> None:
            seen.append(uri)

        def notify(self, _part: AnyDir) -> None:
            """Copy nothing."""

        def close(self) -> str:
            return ""

    monkeypatch.setattr("wmlsearch.workflows.remaining_work.nothing_left", nothing_left)
    monkeypatch.setattr("wmlsearch.api.searches.nothing_left", nothing_left)
    monkeypatch.setattr("wmlsearch.tracking.sync.sync", sync)
    monkeypatch.setattr("wmlsearch.tracking.mirror.Mirror", Mirror)
    monkeypatch.setattr("wmlsearch.workflows.sealed_test.evaluate_run", lambda *_: (None, Path("test.json")))
    monkeypatch.setattr("wmlsearch.cli.verdict_tables.show_evaluation", lambda *_: None)
    return seen


@pytest.mark.parametrize(
    "words",
    [
        "tune --resume other/runs/s",
        "tune --resume s --out other/runs",
        "sync other/runs/s",
        "sync other/runs/s/trials/0000",
        "sync s --out other/runs",
        "sync --out other/runs",
        "evaluate other/runs/s",
        "evaluate other/runs/s/trials/0000",
        "evaluate s/trials/0000 --out other/runs",
    ],
)
def test_each_command(words: str, search: SearchDir, uris: list[str], tmp_path: Path) -> None:
    for given, expected in (([], f"sqlite:///{tmp_path}/other/runs/mlflow.db"), (["--mlflow-uri", SERVER], SERVER)):
        result = CliRunner().invoke(main, [*words.split(), *given])
        assert (result.exit_code, uris) == (0, [expected]), result.output
        uris.clear()


def test_python_resumes_with_the_same(search: SearchDir, uris: list[str], tmp_path: Path) -> None:
    wmlsearch.resume(search.path, say=lambda _: None)
    assert uris == [f"sqlite:///{tmp_path}/other/runs/mlflow.db"]


def test_folders_that_are_links(search: SearchDir, tmp_path: Path) -> None:
    """The folder of a search is the one that holds its link, if that is named."""
    (tmp_path / "runs" / "linked").symlink_to(search.path.resolve())
    linked = Path("runs/linked")
    assert folder_of_all_runs(SearchDir(linked)) == Path("runs")
    assert folder_of_all_runs(RunDir(linked / "trials" / "0000")) == tmp_path / "runs"
    (tmp_path / "trial").symlink_to(search.trial(0).path.resolve())
    assert folder_of_all_runs(RunDir(Path("trial"))) == tmp_path / "other" / "runs"
    assert folder_of_all_runs(SearchDir(Path("other/runs/s/trials/.."))) == tmp_path / "other" / "runs"
