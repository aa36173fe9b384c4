"""The recorded tables of learning curves: a recorded configuration, or the nearest one of the same branch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search_quality.tables import Curves
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.from_mapping(
    {
        "depth": {"choices": [2, 3]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "constant"]},
        "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    }
)
METRICS = (
    "val_dice_patients_best", "val_dice_best", "val_average_precision", "val_soft_dice", "val_dice_patients",
    "val_dice", "val_loss",
)  # fmt: skip
EPOCHS, CONFIGURATIONS = 9, 24


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of configurations that are better near a learning rate of 1e-3. The last one diverges."""
    path = tmp_path_factory.mktemp("replay") / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", *SPACE.dimensions, "epoch", "ended", *METRICS, "epoch_s"])
        writer.writeheader()
        for number in range(CONFIGURATIONS):
            values = SPACE.sample(np.random.default_rng(number))
            quality = 0.8 - abs(np.log10(float(values["learning_rate"])) + 3) / 2
            for epoch in range(1, EPOCHS + 1):
                score = dict.fromkeys(METRICS, quality * (1 - 0.5**epoch))
                diverged = number == CONFIGURATIONS - 1 and epoch == 2
                shown: Mapping[str, Any] = {} if diverged else {**score, "epoch_s": 2.0}
                ended = "diverged" if diverged else "completed" if epoch == EPOCHS else ""
                writer.writerow({"number": number, **values, "epoch": epoch, "ended": ended, **shown})
                if diverged:
                    break
    return path


@pytest.fixture(scope="module")
def curves(table: Path) -> Curves:
    return Curves(table, SPACE)


def test_recorded_configuration_is_nearest_to_itself(curves: Curves) -> None:
    assert len(curves.all) == CONFIGURATIONS
    assert curves.all[-1].diverged
    assert len(curves.all[-1].rows) == 1
    for curve in curves.all:
        assert curves.nearest(curve.values) is curve
    shifted = {**curves.all[0].values, "learning_rate": curves.all[0].values["learning_rate"] * 1.001}
    assert curves.nearest(shifted) is curves.all[0]


def test_nearest_configuration_has_the_same_branch(curves: Curves) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = SPACE.sample(rng)
        assert curves.nearest(values).values["schedule"] == values["schedule"]
