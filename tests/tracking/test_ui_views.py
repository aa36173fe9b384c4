"""MLflow's pages in a real browser: they list, name, rank and compare the runs of a search."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, listening
from records import epoch_row, run_record, search_record

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.evaluation import EvaluationMetrics
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.tracking.mlflow_patches import view_path
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import default_uri

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
TRIALS = 500  # MLflow shows 100 of them at first
SPACE = {"depth": {"choices": [2, 3, 4]}, "dropout": {"low": 0.0, "high": 0.5}, "batch_size": {"low": 4, "high": 16}}

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright (in the extra `dev`)"),
]


def add(
    run: RunDir, name: str, kind: str, config: dict[str, Any], values: list[float], state: str, **more: Any
) -> None:
    about = {"name": name, "kind": kind, "config": TrialConfig(**config).model_dump(), **ABOUT, **more}
    RunDir.create(run.path, run_record(about))
    for epoch, value in enumerate(values, start=1):
        times = {"time": 1_760_000_000.0 + epoch, "ended": None}
        run.append(
            epoch_row({"epoch": epoch, **times, "val_dice_patients_best": value, "val_dice": value / 2, "epoch_s": 1.0})
        )
    run.set_status(state, "worse than the others at epoch 1" if state == "stopped" else "")


ABOUT = {
    "settings": RunSettings(trials=TRIALS).model_dump(),
    "data": {"name": "prepared", "fingerprint": "f00d", "optimistic": False},
    "versions": {"wmlsearch": "0"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a search with 500 trials, on a real MLflow server."""
    out = tmp_path_factory.mktemp("ui")
    about = {"name": "big", "kind": "search", "space": {"source": "here", "values": SPACE}, **ABOUT}
    search = SearchDir.create(out / "big", search_record(about))
    for number in range(TRIALS):
        config = {"depth": 2 + number % 3, "dropout": number % 50 / 100, "batch_size": 4 + number % 13}
        best = 0.6 + number / 5000
        state = "completed" if number % 10 == 0 else "stopped"
        values = [best, best - 0.1] if state == "completed" else [0.3 + number / 5000]
        add(search.trial(number), f"trial-{number:04d}", "trial", config, values, state)
    for role, model, value in (("baseline", "paper", 0.71), ("champion", "trial-0490", 0.72)):
        add(search.model(role), f"{role} ({model})", role, {}, [value], "completed", model=model, members=[])
        tested = EvaluationMetrics(opened=1_760_000_100.0, metrics={"test_dice": value - 0.1})
        search.model(role).set_evaluation(tested)
    search.set_status("completed")
    uri = default_uri(out)
    assert sync(search, uri) == 1 + TRIALS + 2
    command = [sys.executable, "-m", "wmlsearch", "ui", "--out", str(out), "--port", "5600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        address = lines[1].removeprefix("MLflow's UI: ").split("  ")[0]
        assert address.endswith(view_path("1", "big")), lines
        sockets = listening([process.pid, *descendants(process.pid)])
        assert {where for _, where, _ in sockets} == {"127.0.0.1"}
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def view(server: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1800, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots are left: a folder of the test's own, or WMLSEARCH_SCREENSHOTS."""
    given = os.environ.get("WMLSEARCH_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shoot(view: Any, path: Path) -> None:
    view.screenshot(path=path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_tables_of_a_search_in_the_ui(view: Any, server: str, shots: Path) -> None:
    view.goto(server)
    view.get_by_text("champion (trial-0490)").first.wait_for()
    texts = view.locator("[role=columnheader]").all_inner_texts()
    headers = {text.strip() for text in texts} - {"", "Metrics", "Parameters", "Tags"}
    assert headers == {"Run Name", "Created", "Duration", "best_dice", "test_dice", *SPACE, "kind", "state"}
    names = [name for name in view.locator("a[href*='/runs/']").all_inner_texts() if name]
    # ranked by the best epoch, not by the last: the champion's mean is the highest, then the baseline's
    assert names[:3] == ["champion (trial-0490)", "baseline (paper)", "trial-0490"]
    assert view.get_by_text("matching runs").count() == 1
    assert view.get_by_text("stopped", exact=True).count() + view.get_by_text("completed", exact=True).count() > 3
    shoot(view, shots / "mlflow-runs.png")


def test_charts_compare_the_trials(view: Any, server: str, shots: Path) -> None:
    view.goto(f"{server}&compareRunsMode=CHART")
    view.locator("#parcoords, .parcoords").first.wait_for(state="attached")
    for name in (*SPACE, "best_dice"):
        assert view.get_by_text(name, exact=True).count() > 0, name
    assert view.get_by_text("val_dice_patients_best").count() > 0
    shoot(view, shots / "mlflow-charts.png")


def test_trial_page_shows_how_the_trial_ended(view: Any, server: str, shots: Path) -> None:
    view.goto(server)
    view.get_by_role("link", name="trial-0490", exact=True).first.click()
    for text in ("completed", "dropout", "0.698"):  # its state, a parameter, its best_dice
        view.get_by_text(text).first.wait_for()
    shoot(view, shots / "mlflow-trial.png")
