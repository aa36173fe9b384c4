"""The documentation site builds without a warning, and its reference lacks no command, option or field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from bs4 import BeautifulSoup
from paths import REPOSITORY
from pydantic import BaseModel

from wmlsearch.cli import main
from wmlsearch.config import RunSettings, TrialConfig


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a warning, such as a broken link, is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def _page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = _page(site, "reference/commands.html")
    for verb, command in main.commands.items():
        section = page.find("section", id=f"wmlsearch-{verb}")
        assert section is not None, verb
        names = {code.get_text().split()[0].rstrip(",") for code in section.find_all(["dt", "code"]) if code.get_text()}
        text = section.get_text()
        for parameter in command.params:
            wanted = (
                parameter.opts if isinstance(parameter, click.Option) else [parameter.make_metavar(_context(command))]
            )
            assert all(name in names or name in text for name in wanted), f"{verb}: {wanted}"
            if isinstance(parameter, click.Option):
                assert (parameter.help or "").split(".")[0].split("`")[0][:40] in text, f"{verb}: {wanted}"


def _context(command: click.Command) -> click.Context:
    # below `wmlsearch` itself: a command keeps the names of its help option from its first context
    parent = main.make_context("wmlsearch", [], resilient_parsing=True)
    return click.Context(command, parent=parent)


@pytest.mark.parametrize(("model", "page"), [(TrialConfig, "hyperparameters"), (RunSettings, "settings")])
def test_the_reference_has_every_field_with_its_meaning(site: Path, model: type[BaseModel], page: str) -> None:
    rows = {
        cells[0]: cells[1:]
        for row in _page(site, f"reference/{page}.html").find_all("tr")
        if len(cells := [cell.get_text(" ", strip=True) for cell in row.find_all("td")]) == 4
    }
    assert list(rows) == list(model.model_fields)
    by_data = {"epochs": "depends on the data, 18 to 200"}  # where the commands compute the default
    for name, (values, default, meaning) in rows.items():
        field = model.model_fields[name]
        assert field.description, f"{name} has no description"
        assert field.description.split("`")[0].strip()[:30] in meaning
        assert values
        wanted = by_data.get(name, str(field.get_default(call_default_factory=True)).lower())
        assert default == "none" or default.lower() == wanted


def test_the_reference_has_every_shipped_file(site: Path) -> None:
    text = _page(site, "reference/search-spaces.html").get_text()
    for path in (REPOSITORY / "search_spaces").glob("*.yaml"):
        assert path.read_text(encoding="utf-8").splitlines()[0] in text
