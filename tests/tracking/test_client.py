"""MLflow's client: what it sets in the environment, and how long it waits for a database."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
import sqlalchemy

from wmlsearch.tracking import client
from wmlsearch.tracking.client import CONNECT_S, connect

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"no_proxy": "x.org"}, "x.org"),
        (
            {"https_proxy": "http://p:1", "no_proxy": "a.org", "NO_PROXY": "b.org"},
            "a.org,b.org,127.0.0.1,localhost,::1",
        ),
    ],
)
def test_proxies_are_not_asked_for_this_machine(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in every process of wmlsearch: nothing is set where there is no proxy, and no host of the user is lost."""
    for name in [*PROXIES, *map(str.upper, PROXIES)]:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    connect("http://127.0.0.1:9")
    assert os.environ.get("no_proxy") == expected
    assert os.environ.get("NO_PROXY") == (expected if len(given) > 1 else None)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql+psycopg2://db/m", {"connect_timeout": CONNECT_S}),
        ("postgresql+psycopg://db/m", {"connect_timeout": CONNECT_S}),
        ("mysql+pymysql://db/m", {"connect_timeout": CONNECT_S}),
        ("mysql://db/m", {"connect_timeout": CONNECT_S}),
        ("postgresql+pg8000://db/m", {}),  # it takes `timeout`
        ("mssql+pyodbc://db/m", {}),
        ("mssql+pymssql://db/m", {}),
    ],
)
def test_only_drivers_that_know_it_get_a_connect_timeout(
    uri: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, int]] = []

    class Engine:
        def connect(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    def create_engine(_uri: str, poolclass: Any, connect_args: dict[str, int]) -> Engine:
        given.append(connect_args)
        return Engine()

    monkeypatch.setattr(sqlalchemy, "create_engine", create_engine)
    client._check_connection(uri)
    assert given == [expected]
