"""The example in docs/verdict.md is the sentence that README.md quotes."""

from __future__ import annotations

import re

from paths import REPOSITORY


def test_the_parts_are_those_of_the_readme() -> None:
    text, readme = (
        " ".join((REPOSITORY / name).read_text(encoding="utf-8").split()) for name in ("docs/verdict.md", "README.md")
    )
    example = text[text.index("### An example") : text.index("### The possible answers")]
    parts = re.findall(r"\| `([^`]+)` \|", example)
    assert len(parts) == 8
    assert [part for part in parts if part not in readme] == []
