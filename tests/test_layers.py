"""The rooms: a module imports only from modules above it in this list, and from outside only what its room allows."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVERYWHERE = {"numpy", *sys.stdlib_module_names}
MOST_LINES = 400

# From the ground up: module, and what it may import from outside beside the standard library and numpy.
ROOMS: dict[str, str] = {
    "wmlsearch": "",
    "wmlsearch.config": "pydantic yaml",
    "wmlsearch.files": "",
    "wmlsearch.objectives": "",
    "wmlsearch.space": "",
    "wmlsearch.data": "",
    "wmlsearch.data.split": "",
    "wmlsearch.data.sources": "",
    "wmlsearch.data.reading": "nibabel PIL",
    "wmlsearch.data.pseudonyms": "",
    "wmlsearch.data.volumes": "nibabel PIL",
    "wmlsearch.data.manifest": "",
    "wmlsearch.data.contact": "PIL",
    "wmlsearch.data.leakage": "PIL",
    "wmlsearch.data.head": "",
    "wmlsearch.data.phantom": "nibabel",
    "wmlsearch.data.pool": "",
    "wmlsearch.data.prepare": "",
    "wmlsearch.data.slices": "torch",
    "wmlsearch.owner": "",
    "wmlsearch.runs": "",
    "wmlsearch.records": "pydantic",
    "wmlsearch.model": "",
    "wmlsearch.model.unet": "torch",
    "wmlsearch.model.casts": "torch",
    "wmlsearch.model.metrics": "torch",
    "wmlsearch.model.steps": "torch",
    "wmlsearch.model.states": "torch",
    "wmlsearch.model.training": "torch",
    "wmlsearch.model.timing": "torch",
    "wmlsearch.model.memory": "torch",
    "wmlsearch.model.inference": "torch",
    "wmlsearch.model.export": "torch safetensors",
    "wmlsearch.model.ensemble": "torch",
    "wmlsearch.search": "",
    "wmlsearch.search.cluster": "ray torch yaml",
    "wmlsearch.search.nodes": "ray",
    "wmlsearch.search.checkpoints": "pyarrow",
    "wmlsearch.search.population": "",
    "wmlsearch.search.forest": "sklearn",
    "wmlsearch.search.suggest": "optuna ray",
    "wmlsearch.search.room": "ray torch",
    "wmlsearch.search.slot": "ray torch pyarrow",
    "wmlsearch.search.group": "ray torch",
    "wmlsearch.search.confirm": "ray torch",
    "wmlsearch.search.rungs": "",
    "wmlsearch.search.measure": "ray torch",
    "wmlsearch.search.packing": "ray torch",
    "wmlsearch.search.plan": "torch",
    "wmlsearch.search.budget": "ray",
    "wmlsearch.search.schedule": "ray",
    "wmlsearch.search.reuse": "ray",
    "wmlsearch.search.trials": "ray",
    "wmlsearch.verdict": "",
    "wmlsearch.verdict.scores": "scipy",
    "wmlsearch.verdict.statistics": "scipy",
    "wmlsearch.verdict.leaderboard": "",
    "wmlsearch.verdict.champion": "",
    "wmlsearch.verdict.seal": "",
    "wmlsearch.verdict.evaluation": "torch",
    "wmlsearch.outlook": "rich",
    "wmlsearch.conclusion": "rich",
    "wmlsearch.verdict.importances": "optuna",
    "wmlsearch.verdict.figures": "matplotlib",
    "wmlsearch.verdict.sealed_figures": "matplotlib",
    "wmlsearch.verdict.examples": "",
    "wmlsearch.verdict.tables": "",
    "wmlsearch.verdict.commands": "yaml",
    "wmlsearch.verdict.report": "jinja2",
    "wmlsearch.store": "mlflow",
    "wmlsearch.registry": "mlflow",
    "wmlsearch.views": "",
    "wmlsearch.tracking": "mlflow",
    "wmlsearch.mirror": "",
    "wmlsearch.jobs": "",
    "wmlsearch.trained": "",
    "wmlsearch.overlay": "PIL",
    "wmlsearch.predictions": "nibabel PIL",
    "wmlsearch.foresight": "",
    "wmlsearch.ending": "",
    "wmlsearch.preflight": "",
    "wmlsearch.study": "",
    "wmlsearch.display": "rich",
    "wmlsearch.on_head": "",
    "wmlsearch.head_mlflow": "",
    "wmlsearch.reach": "yaml",
    "wmlsearch.remote": "",
    "wmlsearch.cli.options": "click rich",
    "wmlsearch.cli.remote": "click rich",
    "wmlsearch.cli.data": "click rich",
    "wmlsearch.cli.runs": "click rich",
    "wmlsearch.cli.plan": "click rich",
    "wmlsearch.cli.mlflow": "click rich",
    "wmlsearch.cli.use": "click rich",
    "wmlsearch.cli.verdict": "click rich",
    "wmlsearch.cli": "click rich",
    "wmlsearch.__main__": "",
}
ORDER = list(ROOMS)


@dataclass(frozen=True)
class Import:
    module: str  # dotted, of ours as far as it is a module
    line: int
    for_types: bool  # under TYPE_CHECKING: never imported when the program runs


def files() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "wmlsearch").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str) -> Iterator[Import]:
    """All imports, those in functions and under TYPE_CHECKING too."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in ROOMS else str(node.module) for name in whole]
        for name in names:
            yield Import(name, getattr(node, "lineno", 0), id(node) in for_types)


def faults(module: str, source: str) -> list[str]:
    found = []
    for it in imports(source):
        package = it.module.split(".")[0]
        if package == "wmlsearch":
            if it.module not in ROOMS:
                found.append(f"{module}:{it.line} imports {it.module}, which has no room")
            elif ORDER.index(it.module) >= ORDER.index(module):
                found.append(f"{module}:{it.line} imports {it.module}, which stands below it")
        elif package not in EVERYWHERE | set(ROOMS[module].split()) and not it.for_types:
            found.append(f"{module}:{it.line} imports {package}; its room allows {ROOMS[module] or 'nothing'}")
    return found


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert sorted(files()) == sorted(ROOMS)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_stays_in_its_room(module: str) -> None:
    assert faults(module, files()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", ORDER)
def test_no_module_is_long(module: str) -> None:
    assert len(files()[module].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_this_test_sees_what_it_should() -> None:
    source = (
        "import os, torch\n"
        "from typing import TYPE_CHECKING\n"
        "from wmlsearch import space, __version__\n"
        "if TYPE_CHECKING:\n"
        "    import ray\n"
        "    from wmlsearch.study import tune\n"
        "def later():\n"
        "    import mlflow.entities\n"
        "    from wmlsearch.data.slices import Slices\n"
        "from wmlsearch.config import TrialConfig\n"
    )
    assert sorted(faults("wmlsearch.runs", source)) == [
        "wmlsearch.runs:1 imports torch; its room allows nothing",
        "wmlsearch.runs:6 imports wmlsearch.study, which stands below it",
        "wmlsearch.runs:8 imports mlflow; its room allows nothing",
    ]
    with pytest.raises(AssertionError, match="a relative import"):
        list(imports("from . import config\n"))
