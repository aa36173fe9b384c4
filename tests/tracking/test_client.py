"""MLflow's client: what it sets in the environment, and how long it waits for a database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy
from records import run_record

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir
from wmlsearch.tracking import client
from wmlsearch.tracking.client import CONNECT_S, answers, connected
from wmlsearch.tracking.sync import sync

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
    before = dict(os.environ)
    with connected("https://mlflow.example.org"):
        assert os.environ.get("no_proxy") == expected
        assert os.environ.get("NO_PROXY") == (expected if len(given) > 1 else None)
    assert os.environ == before


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "LocalHost", "[::1]"])
def test_proxies_of_the_system_are_not_asked_for_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS names proxies outside of the environment, and without exceptions for this machine."""
    from requests.utils import get_environ_proxies

    for name in [*PROXIES, *map(str.upper, PROXIES)]:
        monkeypatch.delenv(name, raising=False)
    system = {"http": "http://proxy:1"}
    monkeypatch.setattr(requests.utils, "getproxies", lambda: system)
    monkeypatch.setattr(requests.utils, "proxy_bypass", lambda _host: False)
    uri = f"http://{host}:5000"
    before = dict(os.environ)
    assert get_environ_proxies(uri) == system
    with connected(uri):
        assert get_environ_proxies(uri) == {}
    with connected("http://mlflow.example.org"):
        assert "no_proxy" not in os.environ, "with it, macOS asks none of its proxies"
    assert os.environ == before


@pytest.mark.parametrize("given", [None, "5"])
def test_what_mlflow_is_told_is_put_back(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook uses MLflow itself, with retries."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": given or "10"}
    for name in names:
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
    before = dict(os.environ)
    with contextlib.suppress(ZeroDivisionError), connected("http://127.0.0.1:9"):
        assert {name: os.environ.get(name) for name in names} == names
        raise ZeroDivisionError
    assert os.environ == before


@pytest.mark.parametrize(
    "ask", [lambda uri, _: answers(uri), lambda uri, path: sync(RunDir.create(path / "r", run_record()), uri)]
)
def test_nothing_is_left_in_the_environment(
    ask: Callable[[str, Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    before = dict(os.environ)
    with contextlib.suppress(InputError):
        ask("http://127.0.0.1:9", tmp_path)
    assert os.environ == before


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
