"""Fixtures of the fault tests: seeded random times of faults, and the table of injected faults."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from search import Record

FAULT = "fault"  # name of the user property of a test report that holds rows of the table
SEED_VARIABLE = "WMLSEARCH_FAULTS_SEED"
SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help=f"Seed of the random times of faults; also {SEED_VARIABLE}.")


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--seed")
    if seed is None:
        seed = os.environ.get(SEED_VARIABLE)
    config.stash[SEED] = int(seed) if seed is not None else random.SystemRandom().randrange(2**32)
    os.environ[SEED_VARIABLE] = str(config.stash[SEED])  # for pytest-xdist's processes


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # printed once, not by each of pytest-xdist's processes
        seed = session.config.stash[SEED]
        print(f"the times of faults are drawn with seed {seed}; repeat them with --seed {seed}", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of faults for docs/reliability.md."""
    ended = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    if rows := [row for report in ended for name, row in report.user_properties if name == FAULT]:
        terminalreporter.section(f"faults, seed {config.stash[SEED]}")
        terminalreporter.write_line("| fault | injected | epochs lost | duplicates | observed |")
        terminalreporter.write_line("|---|---|---|---|---|")
        for fault, times, lost, doubled, observed in rows:
            terminalreporter.write_line(f"| {fault} | {times} | {lost} | {doubled} | {observed} |")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """A random generator for one test. The same seed gives the same numbers, independent of the other tests."""
    return random.Random(f"{request.config.stash[SEED]} {request.node.name}")  # noqa: S311 - seeded on purpose


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """`record(fault, times, lost, doubled, observed)` adds a row to the table."""

    def add(fault: str, times: int, lost: int = 0, doubled: int = 0, observed: str = "") -> None:
        request.node.user_properties.append((FAULT, (fault, times, lost, doubled, observed)))

    return add


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"
