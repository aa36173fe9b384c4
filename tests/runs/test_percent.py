"""Shares in words."""

from __future__ import annotations

import pytest

from wmlsearch.runs.wording import percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.00123, "0.12 %"),
        (0.0432, "4.3 %"),
        (0.68, "68 %"),
        (0.994, "99 %"),
        (0.9962, "99.62 %"),
        (0.99999, "99.99 %"),
        (1, "100 %"),
        (1.5, "150 %"),
    ],
)
def test_shares_have_two_digits_and_are_never_in_powers_of_ten(share: float, text: str) -> None:
    assert percent(share) == text
