"""YAML files: numbers, strictness, exact texts, hostile content."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlsearch.errors import InputError
from wmlsearch.space.yaml_files import MAX_YAML_BYTES, read_yaml


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", ".1e-2", "0.001", "10e-4"])
def test_numbers_with_an_exponent_are_numbers(path: Path, text: str) -> None:
    path.write_text(f"learning_rate: {text}\n")
    value = read_yaml(path)["learning_rate"]
    assert type(value) is float
    assert value == pytest.approx(1e-3, rel=1e-12)


def test_text_that_resembles_a_number_stays_text(path: Path) -> None:
    path.write_text('a: "1e-3"\nb: 1e5x\nc: e5\n')
    assert read_yaml(path) == {"a": "1e-3", "b": "1e5x", "c": "e5"}


def test_an_empty_file_has_no_values(path: Path) -> None:
    path.write_text("# nothing but a comment\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_file_without_any_text(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: is empty; give each hyperparameter a value or a range, one per line"


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth: 4\ndepth: 5\n", "not valid YAML: 'depth' is given twice; keep one"),
        ("depth: {low: 1, low: 2}\n", "not valid YAML: 'low' is given twice; keep one"),
        ("a: &x 4\nb: *x\n", "not valid YAML: aliases (*name) are not allowed; write the value itself"),
        (LAUGHS, "not valid YAML: aliases (*name) are not allowed; write the value itself"),
        ("- depth\n- 4\n", "must hold one `name: value` per line, but holds a list"),
        ("depth\n", "must hold one `name: value` per line, but holds a str"),
        ("4: depth\n", "not valid YAML: line 1: a name must be text, but got 4"),
        ("depth: 4\nnorm: {true: 1}\n", "not valid YAML: line 2: a name must be text, but got True"),
        ("? [a]\n: 4\n", "not valid YAML: line 1: a name must be text, but got ['a']"),
        ("[" * 5000, "nested too deeply"),
        ("depth: 2001-99-99\n", "not valid YAML: month must be in 1..12"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    "text",
    ["depth: [4\n", "depth: 4\n---\ndepth: 5\n", "<<: {depth: 4}\n", "depth: " + "1" * 5000, "depth: 0x_\n",
     "!!map [a]\n", "depth: !!set [1]\n", "depth: !!bool x\n", "depth: !!timestamp x\n", "depth: \x00\n"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_broken_yaml_is_one_message(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: not valid YAML: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object:os.mkdir", "name:os.mkdir", "module:os"])
def test_yaml_never_creates_python_objects(path: Path, tmp_path: Path, tag: str) -> None:
    path.write_text(f"depth: !!python/{tag} [{tmp_path / 'made'}]\n")
    with pytest.raises(InputError, match="could not determine a constructor for the tag"):
        read_yaml(path)
    assert not (tmp_path / "made").exists()


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: no such file"
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read ([Errno 21] Is a directory: '{tmp_path}')"
    path.write_bytes(b"depth: \xff4\n")
    with pytest.raises(InputError, match=r"file.yaml: cannot be read \('utf-8' codec can't decode byte 0xff"):
        read_yaml(path)
    path.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: more than 1,000,000 bytes; is this a hyperparameter file?"
    path.write_bytes(b"#" * MAX_YAML_BYTES)
    assert read_yaml(path) == {}
