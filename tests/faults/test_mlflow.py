"""MLflow's server breaks in every way during one search; afterwards MLflow equals the run folders, row by row."""

from __future__ import annotations

import random
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for
from proxy import Proxy, Server
from search import Lines, Record, Running, begin, check_whole

from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.tracking import connect

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EPOCHS_EACH = 25  # of a phase


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


def sync(out: Path, uri: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wmlsearch", "sync", "s", "--out", str(out), "--mlflow-uri", uri]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def differences(search: SearchDir, store: Path) -> tuple[int, int, list[str]]:
    """Metric rows that MLflow's own database lacks and has too often, and what else is not as in the run folders."""
    client, faults, lacking, doubled = connect(f"sqlite:///{store}"), [], 0, 0
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_key: dict[str, list[Any]] = {}
    for run in runs:
        by_key.setdefault(run.data.tags["wmlsearch.key"], []).append(run)
    with sqlite3.connect(store) as database:
        for part in [search, *search.trials()]:
            found = by_key.pop(part.about()["key"], [])
            if len(found) != 1:
                faults.append(f"{part.path.name}: {len(found)} runs")
                continue
            (run,) = found
            if (run.info.status, run.data.tags["state"]) != ("FINISHED", part.state):
                faults.append(
                    f"{part.path.name}: {run.info.status}, {run.data.tags['state']}, in the folder {part.state}"
                )
            wanted = [] if isinstance(part, SearchDir) else rows_of(part)
            query = "select key, step, timestamp, value from metrics where run_uuid = ? and key != 'best_dice'"
            held = database.execute(query, (run.info.run_id,)).fetchall()
            lacking += len(set(wanted) - set(held))
            doubled += len(held) - len({(name, step) for name, step, *_ in held})
            faults += [f"{part.path.name}: {row} is in no folder" for row in set(held) - set(wanted)]
    return lacking, doubled, faults + [f"a run of nobody: {key}" for key in by_key]


def rows_of(run: RunDir) -> list[tuple[str, int, int, float]]:
    return [
        (name, row["epoch"], int(row["time"] * 1000), float(value))
        for row in run.rows()
        for name, value in row.items()
        if name not in ("epoch", "time", "ended") and value is not None
    ]


def test_a_server_that_breaks_in_every_way(
    prepared: Path, out: Path, server: Server, proxy: Proxy, chance: random.Random, record: Record
) -> None:
    times: dict[str, float] = {}
    words = begin(out, prepared, "--mlflow-uri", proxy.uri, trials=3, epochs=300)
    with Running(out, *words, cores=1) as running, Lines(running.search) as lines:

        def phase(name: str) -> None:
            """Some epochs pass with things as they are; their mean time is noted."""
            lines.look()
            before = set(lines.seen)
            running.until(lambda: lines.count() >= len(before) + EPOCHS_EACH, 240)
            lines.look()
            fresh = [row["epoch_s"] for key, row in lines.seen.items() if key not in before]
            times[name] = statistics.median(fresh)

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
            # MLflow was away: not asked again before a while, however much changes
            proxy.set(mode)
            wait_for(lambda mode=mode: running.ended or proxy.done[mode] >= (1 if mode == "hang" else 2), 120)
            phase(mode)
            injected[mode] = proxy.done[mode]
            proxy.set("pass")
            seen = proxy.done["pass"]
            wait_for(lambda seen=seen: running.ended or proxy.done["pass"] > seen + 3, 120)
        locked = sqlite3.connect(server.store, isolation_level=None)
        locked.execute("begin exclusive")
        phase("database locked")
        locked.execute("rollback")
        locked.close()
        server.kill()  # and it stays away until the end
        assert running.end(600) == 0, running.text()
    lost, doubled = lines.lost_and_doubled()
    check_whole(running.search, trials=3, epochs=300)
    assert "MLflow lacks some of it" in running.text(), running.text()
    server.up()
    done = sync(out, proxy.uri)
    assert done.returncode == 0, done.stderr
    server.kill()
    lacking, rows_doubled, faults = differences(running.search, server.store)
    for name, seconds in times.items():
        print(f"median time of an epoch, {name}: {1000 * seconds:.0f} ms")
        record(f"MLflow: {name}", injected.get(name, 1), lost, doubled, f"{1000 * seconds:.0f} ms an epoch")
    record("MLflow after all of these, and `sync`", 1, lacking, rows_doubled, f"{len(faults)} other differences")
    assert (lost, doubled) == (0, 0)
    assert (lacking, rows_doubled, faults) == (0, 0, [])
