"""What `--cluster` does with the answers of a cluster: a Jobs API of this process stands for Ray's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from records import search_record

from wmlsearch.cli import main
from wmlsearch.cluster import head_job, jobs, remote
from wmlsearch.cluster.dashboard import Dashboard
from wmlsearch.cluster.head_job import ANSWER, HeadRequest
from wmlsearch.cluster.jobs import SEARCH, STORAGE, VERB
from wmlsearch.cluster.ray_up import UnreachableError
from wmlsearch.cluster.run_copies import CopyWriter
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir

ADDRESS = "127.0.0.1:8265"


class Cluster:
    """The jobs of a cluster and the home of its head. Short requests are answered as by `head_job`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.jobs: dict[str, SimpleNamespace] = {}
        self.logs: dict[str, str] = {}
        self.answers = True  # whether the head does what it is asked
        self.stopped: list[str] = []
        self.run: Callable[[HeadRequest], tuple[int, str]] = lambda _: (0, "")  # a search: exit status and output

    def has_job(self, name: str, *, started: float, log: str = "", status: int | None = 2, **metadata: str) -> None:
        self.jobs[name] = self._job(name, {SEARCH: name, VERB: "tune", **metadata}, started, status)
        self.logs[name] = log

    def _job(self, job_id: str, metadata: dict[str, str], started: float, status: int | None) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=job_id,
            metadata=metadata,
            start_time=1000 * started,
            driver_exit_code=status,
            message="",
            status=SimpleNamespace(is_terminal=lambda: self.jobs[job_id].driver_exit_code is not None),
        )

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def submit_job(
        self, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str], **_: object
    ) -> None:
        request = HeadRequest.model_validate_json((Path(runtime_env["working_dir"]) / "request.json").read_text())
        if request.verb in ("tune", "resume"):
            status, log = self.run(request)
        else:
            if not self.answers:
                raise ConnectionError("Connection reset by peer")
            if request.verb == "stop":
                head_job.stop(SearchDir(self.home / "runs" / str(request.name)))
            status, log = 0, f"{ANSWER}{head_job.report(request).model_dump_json()}\n"
        self.jobs[submission_id], self.logs[submission_id] = self._job(submission_id, metadata, 9e9, status), log

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield self.logs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        return self.logs[job_id]

    def delete_job(self, job_id: str) -> None:
        del self.jobs[job_id]

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.jobs[job_id].driver_exit_code = 130
        return True


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    fake = Cluster(tmp_path / "head")
    monkeypatch.setattr(head_job, "HOME", fake.home)
    for name in ("data", "runs", "results"):
        (fake.home / name).mkdir(parents=True)
    monkeypatch.setattr(head_job, "_show", lambda search, _: print(f"shown: {search.name}"))
    monkeypatch.setattr(Dashboard, "client", lambda _: fake)
    monkeypatch.setattr(jobs, "RETRY_S", 0.01)
    monkeypatch.setattr(jobs, "STATUS_POLL_S", 0.01)
    monkeypatch.setattr(remote, "STOP_POLL_S", 0.01)
    monkeypatch.delenv("WMLSEARCH_STORAGE", raising=False)
    return fake


def on_head(cluster: Cluster, name: str, created: float = 1.0) -> SearchDir:
    search = SearchDir.create(cluster.home / "runs" / name, search_record(name=name, created=created))
    search.set_status("completed")
    return search


def fetched_from(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return where results are going to be fetched from: storage and name of the search."""
    fetched: list[tuple[str, str]] = []

    def fetch(storage: str, name: str, target: Path) -> SearchDir:
        fetched.append((storage, name))
        return SearchDir.create(target, search_record(name=name, key="k"))

    monkeypatch.setattr(remote, "fetch_search", fetch)
    return fetched


@pytest.mark.parametrize(
    ("words", "in_environment", "storage"),
    [
        ([], None, "/of-the-job"),
        ([], "/of-this-machine", "/of-the-job"),
        (["--storage", "/given"], "/of-this-machine", "/given"),
    ],
)
def test_results_come_from_the_storage_of_the_search(
    words: list[str],
    in_environment: str | None,
    storage: str,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """WMLSEARCH_STORAGE may be meant for other searches."""
    fetched = fetched_from(monkeypatch)
    on_head(cluster, "one")
    cluster.has_job("one", started=0.0, status=0, **{STORAGE: "/of-the-job"})
    if in_environment is not None:
        monkeypatch.setenv("WMLSEARCH_STORAGE", in_environment)
    arguments = ["status", "one", "--cluster", ADDRESS, "--out", str(tmp_path / "runs"), *words]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert fetched == [(storage, "one")]
    requests: list[HeadRequest] = []
    cluster.run = lambda request: (requests.append(request), (0, ""))[1]  # type: ignore[func-returns-value]
    arguments = ["tune", "--resume", "one", "--cluster", ADDRESS, "--out", str(tmp_path / "again"), *words]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert [request.storage for request in requests] == [storage]


def test_the_storage_of_the_environment_where_the_job_names_none(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetched_from(monkeypatch)
    on_head(cluster, "one")
    assert remote.status(ADDRESS, "one", tmp_path / "runs", None, print, "/of-this-machine") == 0
    assert fetched == [("/of-this-machine", "one")]


def test_the_latest_search_may_have_been_started_on_the_head_itself(cluster: Cluster, tmp_path: Path) -> None:
    """Three searches: a job with a folder, one without a job, then a job that has no folder yet."""

    def latest() -> str:
        with Dashboard(ADDRESS) as dashboard:
            request = remote._request("find", None, jobs.search_jobs(dashboard))
            return jobs.ask(dashboard, request, pytest.fail).name

    assert latest() == ""
    cluster.has_job("first", started=10.0, status=0)
    on_head(cluster, "first", created=11.0)
    assert latest() == "first"
    on_head(cluster, "second", created=20.0)
    assert latest() == "second"
    cluster.has_job("third", started=30.0, status=None)
    assert latest() == "third"
    cluster.has_job("first@2", started=40.0, status=None, **{SEARCH: "first", VERB: "resume"})
    assert latest() == "first"


@pytest.mark.parametrize("breaks", ["connection", "Ctrl-C"])
def test_a_search_that_has_ended_is_not_said_to_continue(
    breaks: str, cluster: Cluster, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks when the search has ended, before its results are fetched."""
    ask = remote.ask

    def ask_and_break(dashboard: Dashboard, request: HeadRequest, say: remote.Say) -> head_job.HeadReport:
        if request.verb == "report":
            raise KeyboardInterrupt if breaks == "Ctrl-C" else UnreachableError("the network is cut")
        return ask(dashboard, request, say)

    monkeypatch.setattr(remote, "ask", ask_and_break)
    said: list[str] = []
    storage = str(tmp_path / "storage")
    Path(storage).mkdir()
    assert remote.tune(ADDRESS, [], prepared, "quick", "one", tmp_path / "runs", storage, said.append) == 130
    assert said[-2:] == [
        "stopped" if breaks == "Ctrl-C" else "the network is cut",
        "one has ended on the cluster (exit status 0), but its results are not here yet; fetch them with "
        f"`wmlsearch status one --cluster {ADDRESS}`",
    ]


def test_results_do_not_replace_a_search_that_went_on_here(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, out, storage = on_head(cluster, "one"), tmp_path / "runs", str(tmp_path / "storage")
    writer = CopyWriter(search, storage, "session", "process 7 on head", lambda: None)
    (tmp_path / "storage" / "one").mkdir(parents=True)

    def status(out: Path) -> str:
        said: list[str] = []
        assert remote.status(ADDRESS, "one", out, storage, said.append) == 0
        return said[0] if len(said) == 1 else said[-2]

    for seconds in (10, 20):
        search.update_usage(seconds=seconds)
        search.set_status("interrupted", "stopped by Ctrl-C")
        writer.copy_all()
        assert status(out) == f"fetched from the storage into {out}/one, without the trials' checkpoints"
    assert status(out).endswith(f"{out}/one is up to date")
    here = SearchDir(out / "one")
    here.update_usage(seconds=30)
    search.update_usage(seconds=40)
    search.set_status("completed")
    writer.copy_all()
    with pytest.raises(InputError, match="one: the search was trained or evaluated here since it was fetched"):
        status(out)
    with pytest.raises(InputError, match="one: the search was trained or evaluated here since it was fetched"):
        remote.resume(ADDRESS, [], None, "one", out, storage, pytest.fail)
    (cluster.home / "runs").rename(cluster.home / "gone")

    def unreachable(_: Dashboard) -> Any:
        raise UnreachableError("the head is gone")

    monkeypatch.setattr(remote, "search_jobs", unreachable)
    with pytest.raises(InputError, match="one: the search was trained or evaluated here since it was fetched"):
        status(out)
    assert here.usage().seconds == 30
    for text in (
        "fetched from the storage into {}/one, without the trials' checkpoints",
        "{}/one has all that the storage has",
    ):
        assert status(tmp_path / "other") == text.format(tmp_path / "other")


REFUSAL = "wmlsearch: a trial does not fit on the machines of the cluster\n"


def test_a_search_that_the_head_refuses(cluster: Cluster, prepared: Path, tmp_path: Path) -> None:
    """Its job was accepted, but it cannot run there: each verb says why, and the name may be used again."""
    out, storage = tmp_path / "runs", tmp_path / "storage"
    storage.mkdir()
    said: list[str] = []

    def tune() -> int:
        return remote.tune(ADDRESS, [], prepared, "quick", "one", out, str(storage), said.append)

    cluster.run = lambda _: (2, f"2026-11-29 12:00:00,000\tINFO job_manager.py:1 -- of Ray\n{REFUSAL}")
    assert tune() == 2
    step = "one: ended before it had a run folder ({}); mend that, and start it again, also under this name"
    assert said[-2:] == [REFUSAL.strip(), step.format("exit status 2")]
    said.clear()
    assert remote.status(ADDRESS, None, out, None, said.append) == 0
    assert said == [REFUSAL.strip(), step.format("exit status 2")]
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster_name: test\nprovider: {type: local}\n")
    cluster.jobs["one"].metadata.pop(STORAGE)
    with pytest.raises(InputError) as refused:
        remote.resume(str(file), [], None, "one", out, None, said.append)
    assert str(refused.value) == step.format(REFUSAL.strip().removeprefix("wmlsearch: "))
    with pytest.raises(InputError, match="one: has already ended on the head"):
        remote.stop(ADDRESS, "one", said.append)
    cluster.run = lambda _: (0, "")
    assert tune() == 0
    assert "one runs on the cluster (job one@2); Ctrl-C stops following it, not the search" in said
    on_head(cluster, "one")
    with pytest.raises(InputError, match="one: the cluster already has a search of this name"):
        tune()


def test_a_search_without_a_run_folder_gets_its_signal_at_once(cluster: Cluster) -> None:
    said: list[str] = []
    cluster.has_job("one", started=10.0, status=None)
    assert remote.stop(ADDRESS, None, said.append) == 0
    assert cluster.stopped == ["one"]
    assert said == [
        "asked one to stop; its trials end within seconds ...",
        "one has no run folder yet; its process gets a signal to end ...",
        "one: ended before it had a run folder, so there is nothing to fetch or to resume",
    ]


def test_a_process_that_does_not_end_is_told_of_before_it_gets_a_signal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CLEAN_END_S", 0.2)
    monkeypatch.setattr(remote, "SAY_AFTER_S", 0.0)
    said: list[str] = []
    cluster.has_job("one", started=0.0, status=None)
    on_head(cluster, "one")
    assert remote.stop(ADDRESS, "one", said.append) == 0
    assert cluster.stopped == ["one"]
    assert said[1:3] == [
        "the process of one is still at work; it gets a signal after 0.2 s ...",
        "one: completed (it had already ended)",
    ]


def test_an_address_is_shown_without_its_password(tmp_path: Path) -> None:
    for given in ("http://me:open-sesame@127.0.0.1:1", "me:open-sesame@127.0.0.1:1"):
        with pytest.raises(InputError) as error:
            remote.status(given, None, tmp_path, None, print)
        shown = given.replace("open-sesame", "***")
        assert str(error.value).startswith(f"{shown}: no dashboard answers there (")
        assert "open-sesame" not in str(error.value)
        with pytest.raises(InputError, match=r"^--cluster \S*me:\*\*\*@127.0.0.1:1: MLflow is not reached"):
            remote.ui(given, 5000, print)
    with pytest.raises(InputError, match=r"^--cluster ray://me:\*\*\*@head:10001: ray:// is not a dashboard address"):
        Dashboard("ray://me:open-sesame@head:10001")


def test_what_is_fetched_does_not_change_when_the_search_is_resumed(cluster: Cluster) -> None:
    """Lines are appended to the files of a search that goes on; other files are replaced."""
    search = on_head(cluster, "one")
    search.journal.write_text("1\n")
    results, _ = head_job._gather(search)
    with search.journal.open("a") as journal:
        journal.write("2\n")
    assert (results / search.journal.name).read_text() == "1\n"
    assert (results / "search.json").samefile(search.file("record"))
