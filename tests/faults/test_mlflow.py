"""Faults of MLflow's server during a search: afterwards MLflow equals the run folders, row by row."""

from __future__ import annotations

import random
import sqlite3
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_for
from proxy import Proxy, Server
from search import Lines, Record, Running, differences, sync, tune_arguments

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EPOCHS_EACH = 10  # epochs of a phase
ENDLESS = 50_000  # epochs of a trial, more than the test waits for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


def test_server_faults(
    prepared: Path, out: Path, server: Server, proxy: Proxy, chance: random.Random, record: Record
) -> None:
    times: dict[str, float] = {}
    words = tune_arguments(out, prepared, "--mlflow-uri", proxy.uri, trials=2, epochs=ENDLESS)
    with Running(out, *words, cores=1) as running, Lines(running.search) as lines:

        def phase(name: str) -> None:
            """Wait for some epochs, and store their median time."""
            lines.look()
            before = set(lines.seen)
            running.until(lambda: lines.count() >= len(before) + EPOCHS_EACH, 240)
            lines.look()
            epoch_times = [row.metrics["epoch_s"] or 0.0 for key, row in lines.seen.items() if key not in before]
            times[name] = statistics.median(epoch_times)
            print(f"{name}: {1000 * times[name]:.0f} ms an epoch, {lines.count()} epochs so far", flush=True)

        phase("down from the start")
        server.up()
        wait_for(lambda: running.ended or proxy.done["pass"] > 10, 120)
        phase("no fault")
        for turn in range(2):
            server.kill()
            phase(f"killed ({turn + 1})")
            server.up()
        injected = {}
        for mode in chance.sample(["500", "429", "hang", "cut"], 4):
            # The mirror waits before it contacts MLflow again after a failure, even if the search reports changes.
            proxy.set(mode)
            wait_for(lambda mode=mode: running.ended or proxy.done[mode] >= (1 if mode == "hang" else 2), 120)
            phase(mode)
            injected[mode] = proxy.done[mode]
            proxy.set("pass")
            passed = proxy.done["pass"]
            wait_for(lambda passed=passed: running.ended or proxy.done["pass"] > passed + 3, 120)
        locked = sqlite3.connect(server.store, isolation_level=None)
        locked.execute("begin exclusive")
        phase("database locked")
        locked.execute("rollback")
        locked.close()
        server.kill()  # until the end of the search
        running.search.request_stop()
        assert running.end(120) == 130, running.text()
    lost, doubled = lines.lost_and_doubled()
    assert running.search.state == "interrupted"
    assert "MLflow does not have all results" in running.text(), running.text()
    server.up()
    done = sync(out, proxy.uri)
    assert done.returncode == 0, done.stderr
    server.kill()
    missing, rows_doubled, faults = differences(running.search, server.store)
    for name, seconds in times.items():
        record(f"MLflow: {name}", injected.get(name, 1), lost, doubled, f"{1000 * seconds:.0f} ms an epoch")
    record("MLflow after all of these, and `sync`", 1, missing, rows_doubled, f"{len(faults)} other differences")
    assert (lost, doubled) == (0, 0)
    assert (missing, rows_doubled, faults) == (0, 0, [])
