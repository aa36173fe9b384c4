"""Jobs whose ids are taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wmlsearch.cluster.dashboard import Dashboard
from wmlsearch.cluster.head_job import HeadRequest
from wmlsearch.cluster.jobs import submit_search
from wmlsearch.errors import InputError

REQUEST = HeadRequest(verb="tune", name="mine")


class Cluster:
    """The Jobs API of a cluster that knows some jobs, and may have others by the time of a submission."""

    def __init__(self, listed: list[str], taken: list[str]) -> None:
        self.jobs = [SimpleNamespace(submission_id=name, metadata=None) for name in listed]
        self.taken = taken

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, submission_id: str, metadata: dict[str, str], **_: object) -> None:
        if submission_id in self.taken:
            self.jobs.append(SimpleNamespace(submission_id=submission_id, metadata={"wmlsearch_submission": "other"}))
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.jobs.append(SimpleNamespace(submission_id=submission_id, metadata=metadata))


def submit(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    dashboard = Dashboard("127.0.0.1:1")
    monkeypatch.setattr(dashboard, "client", lambda: cluster)
    return submit_search(dashboard, REQUEST)


def test_the_id_of_another_programs_job_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(listed=["mine"], taken=[])
    assert submit(cluster, monkeypatch) == "mine@2"
    assert cluster.jobs[1].metadata["wmlsearch_search"] == "mine"


def test_a_search_that_somebody_else_starts_at_the_same_moment_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="somebody else has just started a job mine; run this again"):
        submit(Cluster(listed=[], taken=["mine"]), monkeypatch)
