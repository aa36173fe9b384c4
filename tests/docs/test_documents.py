"""README, CONTRIBUTING and docs/ agree with the repository: paths, links, tests and commands that they name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from paths import REPOSITORY

from wmlsearch.cli import main

README = REPOSITORY / "README.md"
DOCUMENTS = sorted(
    [
        README,
        *(REPOSITORY / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        *(path for path in (REPOSITORY / "docs").rglob("*.md") if "_build" not in path.parts),
    ]
)
ROOTS = (REPOSITORY, REPOSITORY / "wmlsearch", REPOSITORY / "tests")  # where a path in a document may begin
OURS = r"(?:wmlsearch|tests|docs|benchmarks|search_spaces|clusters|\.ci)"
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def test_the_readme_fits_one_screen() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text) <= 7500


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    missing = [path for path in _paths(document.read_text(encoding="utf-8")) if not _exists(path)]
    assert not missing


def _paths(text: str) -> set[str]:
    """The paths of this repository in the inline code of a document: by their first folder, or as a Python file."""
    words = {word.split("::")[0].rstrip(",") for code in CODE.findall(text) for word in code.split()}
    words = {word for word in words if not re.search(r"[*<>{}]|^docs/_build/", word)}  # `make docs` makes docs/_build
    return {word for word in words if re.fullmatch(rf"{OURS}/[\w./-]*|(?:\w+/)*\w+\.py", word)}


def _exists(path: str) -> bool:
    if "/" in path:
        return any((root / path).exists() for root in ROOTS)
    return any(any((REPOSITORY / folder).rglob(path)) for folder in ("wmlsearch", "tests", "benchmarks"))


def test_every_folder_of_the_readmes_tree_exists() -> None:
    tree = re.search(r"## Where things are\n+```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert tree
    folder, listed = REPOSITORY, set()
    for line in tree[1].splitlines():
        names = re.match(r"\s*((?:[\w.]+/?(?:, )?)+)", line)
        assert names, line
        folder = REPOSITORY / "wmlsearch" if line.startswith(" ") else REPOSITORY
        for name in names[1].strip().split(", "):
            assert (folder / name).exists(), line
            listed.add((folder / name).resolve())
        for name in re.findall(r"([\w/]+\.(?:py|yaml))", line[names.end() :]):
            inside = folder / names[1].strip().split(", ")[0] / name
            assert inside.exists(), f"{name} in {line!r}"
    packages = {path.resolve() for path in (REPOSITORY / "wmlsearch").iterdir() if (path / "__init__.py").exists()}
    assert packages <= listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in LINK.findall(_without_code_blocks(document.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), target


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _without_code_blocks(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    code = " ".join(CODE.findall(document.read_text(encoding="utf-8")))
    metrics = set(
        re.findall(r"\btest_\w+", (REPOSITORY / "wmlsearch" / "tracking" / "sync.py").read_text())
    )  # of MLflow
    names = set(re.findall(r"\btest_\w+\b(?!\.py|/)", code)) - {"test_dice", "test_openings"} - metrics
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert not {name for name in names if f"def {name}(" not in sources}


def _command_lines(text: str) -> list[list[str]]:
    """The words of each `wmlsearch ...` in the code of a document, without a comment behind it."""
    lines = [line.removeprefix("$ ") for block in _blocks(text) for line in block.splitlines()]
    commands = [line for line in (*lines, *CODE.findall(_without_code_blocks(text))) if line.startswith("wmlsearch ")]
    return [shlex.split(command, comments=True)[1:] for command in commands]


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```(?:console|text)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_and_option_that_a_document_shows_exists(document: Path) -> None:
    for words in _command_lines(document.read_text(encoding="utf-8")):
        verb, options = words[0], [word.partition("=")[0] for word in words if word.startswith("--")]
        if verb.startswith("-"):
            continue
        if not re.fullmatch("[a-z-]+", verb):
            assert verb in ("...", "COMMAND"), words
            continue
        assert verb in main.commands, words
        known = {name for option in main.commands[verb].params for name in option.opts}
        assert set(options) - {"--help"} <= known, words


@pytest.mark.parametrize("document", [README, REPOSITORY / "docs" / "getting-started.md"], ids=lambda path: path.name)
def test_the_command_lines_of_the_first_pages_are_complete(document: Path) -> None:
    blocks = "\n".join(_blocks(document.read_text(encoding="utf-8"))).splitlines()
    lines = [shlex.split(line) for line in blocks if line.startswith("$ wmlsearch ")]
    assert len(lines) >= 3
    for _, _, verb, *words in lines:
        main.commands[verb].make_context(
            verb, words, parent=main.make_context("wmlsearch", [], resilient_parsing=True)
        )  # raises for a missing argument or a wrong value


def test_the_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for words in re.findall(r"(?:`|^\$ )make ([a-z -]+?)(?:`|$)", text, re.MULTILINE):
            assert set(words.split()) <= targets, f"{document}: make {words}"


def test_every_command_has_a_place_in_the_pages() -> None:
    """The generated reference lists all of them; a page in prose should too."""
    pages = [path for path in DOCUMENTS if path.parent == REPOSITORY / "docs"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    assert not [verb for verb in main.commands if f"wmlsearch {verb}" not in text]
    assert isinstance(main, click.Group)
