"""The benchmark's simulated search: the nearest recorded row answers a proposal, and every epoch is counted."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search_quality import compare
from benchmarks.search_quality.replay import Curves, search
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


class Scripted:
    """Proposes recorded configurations in turn, and stops each after its second epoch."""

    signal = "val_loss"

    def __init__(self, curves: Curves, stop: bool) -> None:
        self.curves, self.stop = curves, stop
        self.log: list[tuple[int, str, int]] = []

    def propose(self, number: int) -> Mapping[str, Any]:
        return self.curves.all[number % CONFIGURATIONS].values

    def report(self, number: int, epoch: int, value: float) -> bool:
        assert value == self.curves.all[number % CONFIGURATIONS].rows[epoch - 1]["val_loss"]
        return self.stop and epoch == 2

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        self.log.append((number, state, epoch))


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, EPOCHS)])
def test_every_epoch_is_counted(curves: Curves, stop: bool, epochs: int) -> None:
    method = Scripted(curves, stop)
    trace = search(method, curves, max_epochs=400, enough=2.0)
    word = "stopped" if stop else "completed"
    assert method.log[:4] == [(number, word, epochs) for number in range(4)], "four at a time"
    assert {state for number, state, _ in method.log if number % CONFIGURATIONS == CONFIGURATIONS - 1} == {"diverged"}
    assert trace.seconds == pytest.approx(400 * 2 / 4, rel=0.1)
    spent = [epoch for epoch, _ in trace.improvements]
    best = [value for _, value in trace.improvements]
    assert spent == sorted(spent)
    assert best == sorted(best)
    assert trace.epochs_to(best[-1]) == spent[-1]
    assert trace.epochs_to(2.0) == np.inf
    assert trace.at(np.array([0, spent[0], 10_000])).tolist() == [0.0, best[0], best[-1]]


@pytest.mark.parametrize("name", list(compare.methods()))
def test_each_method_finds_a_good_configuration(name: str, curves: Curves) -> None:
    traces = [
        search(compare.methods()[name](SPACE, EPOCHS, seed), curves, max_epochs=600, enough=curves.best - 0.01)
        for seed in (0, 1)
    ]
    for trace in traces:
        assert trace.epochs_to(curves.best - 0.01) < np.inf
    again = search(compare.methods()[name](SPACE, EPOCHS, 1), curves, max_epochs=600, enough=curves.best - 0.01)
    assert again.improvements == traces[1].improvements, "the seed determines all randomness"


def test_ranks_of_signals_and_intervals(curves: Curves) -> None:
    ranks = compare.signal_ranks(curves)
    assert set(ranks) == set(compare.SIGNALS)
    assert ranks["val_dice"] == pytest.approx([1.0] * EPOCHS)
    assert ranks["val_loss"] == pytest.approx([-1.0] * EPOCHS), "here it rises with the score"
    rng = np.random.default_rng(0)
    assert compare.median_interval([3.0] * 9, rng) == (3.0, 3.0, 3.0)
    ratio, low, high = compare.ratio_interval([1.0, 2.0, 3.0] * 9, [4.0] * 9, rng)
    assert ratio == 0.5
    assert low <= 0.5 <= high < 1
