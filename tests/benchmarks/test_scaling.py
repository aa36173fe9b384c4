"""docs/scaling.md holds the tables of the model, and the model is consistent."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.scaling import DOCS, GPUS, SEARCH, TABLES, filled, max_gpus, need, stored
from wmlsearch.cli.live_display import REDRAWS_PER_S
from wmlsearch.config import RunSettings

CONSTANTS = stored(DOCS / "scaling.json")


def test_document_contains_the_tables_of_the_stored_constants() -> None:
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert filled(text, CONSTANTS) == text
    assert all(table(CONSTANTS) in text for table in TABLES.values())
    assert (DOCS / "images" / "scaling.png").is_file()


def test_doubling_gpus_doubles_rates_and_keeps_totals() -> None:
    one, two = need(CONSTANTS, SEARCH, GPUS, 5.0), need(CONSTANTS, SEARCH, 2 * GPUS, 5.0)
    table = REDRAWS_PER_S * CONSTANTS.redraw_ms / 1000  # the live table is drawn as often, however many there are
    assert two.cores - table == pytest.approx(2 * (one.cores - table))
    assert two.checkpoint_bytes_per_s == pytest.approx(2 * one.checkpoint_bytes_per_s)
    assert (two.reports, two.journal_bytes, two.mlflow_rows) == (one.reports, one.journal_bytes, one.mlflow_rows)


def test_max_gpus_saturates_one_core() -> None:
    limit = max_gpus(CONSTANTS, SEARCH, 5.0)
    assert need(CONSTANTS, SEARCH, limit, 5.0).cores <= 1 < need(CONSTANTS, SEARCH, limit + 1, 5.0).cores


def test_one_driver_keeps_500_gpus_busy() -> None:
    """With epochs of 5 seconds, the live table on, and checkpoints on an object store."""
    assert max_gpus(CONSTANTS, SEARCH, 5.0) >= 500


def test_a_search_without_scheduler_reports_each_epoch_of_each_trial() -> None:
    settings = RunSettings(trials=100, epochs=18, scheduler="none")
    free = dataclasses.replace(CONSTANTS, folder_bytes_per_trial=0.0, folder_bytes_per_report=10.0)
    assert need(free, settings, GPUS, 5.0).reports == 1800
    assert need(free, settings, GPUS, 5.0).folder_bytes == 18_000
