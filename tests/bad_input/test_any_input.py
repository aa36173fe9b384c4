"""Hypothesis generates input: it is accepted, or refused by InputError, and nothing else happens."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.examine import examine
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sources import Source, survey
from wmlsearch.errors import InputError
from wmlsearch.inference.export import load_exported
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.runs.checks import validate_folder
from wmlsearch.runs.files import read_json, read_lines
from wmlsearch.runs.folders import SearchDir
from wmlsearch.space import SearchSpace
from wmlsearch.space.yaml_files import read_yaml
from wmlsearch.tracking.uri import check_uri

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=300)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*TrialConfig.model_fields, "choices", "low", "high", "log", "when"])
    | st.sampled_from([1, -1]).map(lambda sign: sign * 10**5000)
    | st.dates()
    | st.binary(max_size=5)
)
NAMES = st.sampled_from([*TrialConfig.model_fields, "choices", "low", "high", "log", "when"]) | st.text(max_size=12)
THINGS = st.recursive(
    LEAVES, lambda values: st.lists(values, max_size=4) | st.dictionaries(NAMES, values, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(NAMES, THINGS, max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=12), values, max_size=4),
    max_leaves=10,
)


@contextlib.contextmanager
def taken_or_refused(max_length: int = 100_000) -> Iterator[None]:
    """Accept no exception but an InputError whose message can be printed and is not too long."""
    message = "taken"
    try:
        yield
    except InputError as error:
        message = str(error)
    assert 0 < len(message) < max_length
    message.encode(errors="backslashreplace")


@MANY
@given(values=MAPPINGS)
def test_any_mapping_as_a_space_and_a_configuration(values: dict[str, Any]) -> None:
    with taken_or_refused():
        space = SearchSpace.from_mapping(values)
        assert SearchSpace.from_mapping(space.to_mapping()) == SearchSpace.from_mapping(space.to_mapping())
        if space.is_single_configuration:
            space.single_configuration()
    with taken_or_refused():
        TrialConfig.from_mapping(values)


@FEW
@given(
    values=st.dictionaries(st.sampled_from(list(RunSettings.model_fields)) | st.text(max_size=8), THINGS, max_size=6)
)
def test_any_settings(values: dict[str, Any]) -> None:
    with taken_or_refused():
        RunSettings.from_mapping(values)


@MANY
@given(text=st.text(max_size=200) | st.text("{}[]:,&*!?|>-#%@`'\"\n ablowhighxn01.e", max_size=60))
def test_any_text_as_yaml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with taken_or_refused():
        SearchSpace.read(path)


@FEW
@given(content=st.binary(max_size=300))
def test_any_bytes_as_any_text_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    for read in (read_yaml, read_json, read_lines, lambda raw: survey(raw).check()):
        with taken_or_refused():
            read(path)


@FEW
@given(value=PLAIN)
def test_any_json_as_manifest_and_exported_model(value: Any, tmp_path: Path) -> None:
    for name in ("manifest.json", "model.json"):
        (tmp_path / name).write_text(json.dumps(value))
    for value_of in (Manifest.read, load_exported):
        with taken_or_refused():
            value_of(tmp_path)


def damaged(content: bytes, place: int, new: bytes, cut: int) -> bytes:
    place %= len(content)
    result = content[:place] + new + content[place + len(new) :]
    return result[: len(result) - cut % len(result)] if cut else result


DAMAGE = {
    "place": st.integers(0, 400) | st.integers(0, 10**6),
    "new": st.binary(min_size=1, max_size=8),
    "cut": st.just(0) | st.integers(0, 10**6),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that the header makes infinite
@FEW
@given(**DAMAGE, outer=st.booleans())
def test_any_damage_of_a_volume(place: int, new: bytes, cut: int, outer: bool, raw: Path, tmp_path: Path) -> None:
    content = next(raw.glob("sub-01/**/*_FLAIR.nii.gz")).read_bytes()
    path = tmp_path / "x_FLAIR.nii.gz"
    path.write_bytes(
        damaged(content, place, new, cut)
        if outer
        else gzip.compress(damaged(gzip.decompress(content), place, new, cut), 1)
    )
    facts, faults = examine(Source("", "", tmp_path, (path,)), 2)
    assert (facts is None) == bool(faults)


@FEW
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff", b"BM"]),
)
def test_any_bytes_as_a_picture(content: bytes, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(start + content)
    facts, faults = examine(Source("", "", tmp_path, (path,)), None)
    assert facts is None
    assert faults


@FEW
@given(**DAMAGE)
def test_any_damage_of_a_checkpoint(place: int, new: bytes, cut: int, searched: SearchDir, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(damaged(searched.trial(0).best.read_bytes(), place, new, cut))
    with taken_or_refused():
        load_checkpoint(path)
    with taken_or_refused():
        TrainedModel.load(path)


@FEW
@given(
    name=st.sampled_from(["config", "seed", "report", "threshold", "model", "format", "rate_factors"]),
    value=PLAIN | st.builds(torch.zeros, st.integers(0, 3)),
)
def test_any_value_in_a_checkpoint(name: str, value: Any, searched: SearchDir, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({**torch.load(searched.trial(0).best, weights_only=True), name: value}, path)
    with taken_or_refused():
        TrainedModel.load(path)


FILES = (
    "search.json", "status.json", "trials/0000/config.json", "trials/0000/status.json", "models/champion/config.json",
    "trials/0000/metrics.jsonl", "test.json", "mlflow.json", "used.json", "forecast.json", "earlier.jsonl",
    "selection.json",
)  # fmt: skip


@MANY
@given(name=st.sampled_from(FILES), inside=st.data(), value=PLAIN)
def test_any_value_in_any_file_of_a_search(
    name: str, inside: st.DataObject, value: Any, searched: SearchDir, tmp_path: Path
) -> None:
    """Replace a value at any depth: the folder is refused, or its status can be shown."""
    from wmlsearch.cli.console import console
    from wmlsearch.cli.search_summary import show_search

    copy = tmp_path / "s"
    if not copy.exists():
        shutil.copytree(searched.path, copy, ignore=shutil.ignore_patterns("*.pt", "*.safetensors"))
    path = copy / name
    before = path.read_bytes() if path.exists() else None
    lines = before.decode().splitlines() if before and name.endswith("l") else []
    document = json.loads(lines[0] if lines else before or b"{}")
    place: Any = document
    while isinstance(place, dict) and place:
        key = inside.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or inside.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    text = json.dumps(document if before else value)
    path.write_text("\n".join([text, *lines[1:], ""]))
    try:
        with taken_or_refused(10**6):
            validate_folder(SearchDir(copy))
            show_search(console(), SearchDir(copy))
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


@MANY
@given(
    uri=st.text(max_size=30)
    | st.from_regex(r"(https?|sqlite|postgresql|file|x)(\+y)?:/{0,4}[a-z:@\[\]0-9/.]{0,12}", fullmatch=True)
)
def test_any_text_as_the_address_of_a_store(uri: str) -> None:
    with taken_or_refused():
        check_uri(uri)
