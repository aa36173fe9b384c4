"""Names and words that do not say what they mean are not used in `wmlsearch`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from paths import REPOSITORY

NAMES = frozenset(
    ["it", "its", "found", "known", "there", "told", "own", "theirs", "ours", "mine", "said", "most", "here", "alone"]
)
WORDS = re.compile(r"\bmind:|\bforet[eo]l[ld]|\bcrown", re.IGNORECASE)  # DESIGN has others: note:, predict, select
SOURCES = sorted(path for path in (REPOSITORY / "wmlsearch").rglob("*") if path.suffix in (".py", ".j2"))


def names_of(node: ast.AST) -> Iterator[str | None]:
    """Yield the names that a node of the syntax tree gives to something."""
    match node:
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.Attribute(ctx=ast.Store()):
            yield node.attr
        case ast.arg():
            yield node.arg
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.ExceptHandler() | ast.MatchAs():
            yield node.name
        case ast.alias():
            yield node.asname or node.name


def test_names() -> None:
    vague = [
        f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}: {name}"
        for path in SOURCES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in names_of(node)
        if name in NAMES
    ]
    assert vague == [], "a variable, argument, function, class or attribute needs a noun of the domain"


def test_words() -> None:
    old = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WORDS.search(line)
    ]
    assert old == []


@pytest.mark.parametrize(
    "code",
    ["its = 1", "for a, found in b: pass", "def f(*, here): pass", "x.known = 1", "def own(): pass", "[i for it in x]"],
)
def test_each_kind_of_name_is_checked(code: str) -> None:
    assert NAMES & {name for node in ast.walk(ast.parse(code)) for name in names_of(node)}
