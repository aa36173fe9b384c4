"""What is checked of a search space before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from wmlsearch.space import SearchSpace
from wmlsearch.workflows.preflight import _most_demanding


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"choices": [None]}, None),
        ({"choices": [None, 0.6, 0.3]}, 0.3),
        ({"low": 0.2, "high": 0.9}, 0.2),
        (1.0, 1.0),
        (None, None),
    ],
)
def test_a_space_is_checked_with_a_share_of_lesions_that_needs_both_kinds_of_slices(entry: Any, wanted: Any) -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}, "lesion_share": entry})
    config = _most_demanding(space)
    assert (config.depth, config.lesion_share) == (4, wanted)
