"""What an addition to the space gains: the small space, and a surrogate that answers a part of its space."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search_quality.additions import ADDITIONS, Narrowed, space_with
from benchmarks.search_quality.sealed_record import HERE, SPACE
from benchmarks.search_quality.surrogate import Recorded, Surrogate
from wmlsearch.config import TrialConfig
from wmlsearch.space import Choices, SearchSpace

WIDE = SearchSpace.read(HERE / SPACE)


@pytest.fixture(scope="module")
def whole() -> Surrogate:
    rng = np.random.default_rng(0)
    curves = [rng.uniform(size=(2, 3)) for _ in range(12)]
    return Surrogate(WIDE, [Recorded(WIDE.sample(rng), curve, curve / 2) for curve in curves])


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_part_of_the_recorded_space_is_searched(name: str) -> None:
    space = space_with([name])
    assert space.mismatches(TrialConfig()) == []
    assert set(space.dimensions) - set(space_with([]).dimensions) <= set(ADDITIONS[name])
    for one, dimension in space.dimensions.items():
        recorded = WIDE.domain(one)
        if isinstance(dimension.domain, Choices):
            assert all(value in recorded for value in dimension.domain.values)
        else:
            assert dimension.domain.low in recorded
            assert dimension.domain.high in recorded


def test_a_narrowed_surrogate_fills_in_the_baselines_values(whole: Surrogate) -> None:
    space = space_with(["optimizer"])
    narrowed = Narrowed(whole, space)
    values = space.sample(np.random.default_rng(1))
    wide = WIDE.active_values(space.config(values))
    assert set(wide) > set(values)
    assert np.array_equal(narrowed.mean_curves([values]), whole.mean_curves([wide]))
    assert narrowed.space is space
