"""Bad hyperparameter files, from the command line: every field, the grammar of ranges, and malicious files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wmlsearch.config import TrialConfig
from wmlsearch.space import SearchSpace

Refused = Callable[..., str]
HUGE = "0x" + "f" * 5000  # Python writes no number of so many digits

# Lines of a hyperparameter file and the expected messages.
FAULTS = {
    "base_channels: 0": "base_channels must be greater than or equal to 1, but got 0",
    "base_channels: 513": "base_channels must be less than or equal to 512, but got 513",
    "base_channels: sixteen": "base_channels must be a valid integer, but got 'sixteen'",
    "depth: 9": "depth must be less than or equal to 8, but got 9",
    "depth: 2001-01-01": "depth must be a valid integer, but got datetime.date(2001, 1, 1)",
    "depth: !!binary aGVsbG8=": "depth must be a valid integer, but got b'hello'",
    f"depth: {HUGE}": "depth must be less than or equal to 8, but got a number of more than 4300 digits",
    "optimizer: adamax": "optimizer must be adam, adamw or sgd, but got 'adamax'",
    "learning_rate: 11": "learning_rate must be less than or equal to 10, but got 11.0",
    "learning_rate: .inf": "learning_rate must be a finite number, but got inf",
    "learning_rate: 1e-3 1e-4": "learning_rate must be a valid number, but got '1e-3 1e-4'",
    "weight_decay: 1e2": "weight_decay must be less than or equal to 10, but got 100.0",
    "batch_size: 4097": "batch_size must be less than or equal to 4096, but got 4097",
    "dropout: -0.1": "dropout must be greater than or equal to 0, but got -0.1",
    "dropout: .nan": "dropout must be a finite number, but got nan",
    "min_learning_rate: -1e-9": "min_learning_rate must be greater than or equal to 0, but got -1e-09",
    "plateau_patience: 0": "plateau_patience must be greater than or equal to 1, but got 0",
    "plateau_patience: 2.5": "plateau_patience must be a valid integer, but got 2.5",
    "plateau_factor: 0": "plateau_factor must be greater than 0, but got 0.0",
    "warmup_fraction: 1": "warmup_fraction must be less than 1, but got 1.0",
    "warmup_fraction: yes": "warmup_fraction must be a valid number, but got True",
    "step_fraction: 0": "step_fraction must be greater than 0, but got 0.0",
    "step_fraction: 1": "step_fraction must be less than 1, but got 1.0",
    "step_factor: 0": "step_factor must be greater than 0, but got 0.0",
    "step_factor: null": "step_factor must be a valid number, but got None",
    "early_stop_patience: 0": "early_stop_patience must be greater than or equal to 1, but got 0",
    "early_stop_patience: 100001": "early_stop_patience must be less than or equal to 100000, but got 100001",
    "early_stop_patience: '7'": "early_stop_patience must be a valid integer, but got '7'",
    "augment: rotate": "augment must be none, flip, affine, light, medium or strong, but got 'rotate'",
    "epochs: 18": "unknown name 'epochs': valid names are " + ", ".join(TrialConfig.model_fields),
    f"{'x' * 600}: 1": (
        f"unknown name '{'x' * 499}... (602 characters): valid names are {', '.join(TrialConfig.model_fields)}"
    ),
    # ranges
    "depth: {low: null, high: 3}": (
        "depth: give a value, `choices`, or both `low` and `high`; got {'low': None, 'high': 3}"
    ),
    "depth: {low: [1], high: 3}": "depth: `low` and `high` must be numbers, but got (low=[1], high=3)",
    f"depth: {{low: {HUGE}, high: 3}}": (
        "depth: low < high must hold, but got (low=a number of more than 4300 digits, high=3)\n"
        "  - depth must be less than or equal to 8, but got a number of more than 4300 digits"
    ),
    f"plateau_patience: {{low: 2, high: {10**30}}}": (
        f"plateau_patience must be less than or equal to 100000, but got {10**30}"
    ),
    "depth: {low: 1, high: .nan}": "depth must be a valid integer, but got nan",
    "weight_decay: {low: -1.0, high: 1.0, log: true}": (
        "weight_decay: low > 0 must hold with log: true, but got low=-1.0\n"
        "  - weight_decay must be greater than or equal to 0, but got -1.0"
    ),
    "norm: {low: 1, high: 2}": (
        "norm must be batch or instance, but got 1\n  - norm must be batch or instance, but got 2"
    ),
    "depth: {low: 1, high: 3, log: 1}": "depth: `log` must be true or false, but got 1",
    "depth: {choices: [[3]]}": "depth must be a valid integer, but got [3]",
    "depth: {choices: three}": "depth: `choices` must be a list of at least one value, but got 'three'",
    f"batch_size: {{choices: {list(range(1, 1003))}}}": (
        "batch_size: `choices` may have 1000 values, but has 1002"
    ),
    # conditions
    "batch_size: {low: 2, high: 8, when: {schedule: []}}": (
        "batch_size: `when`: schedule must be one value or a list of 1 to 1000, but got 0"
    ),
    "batch_size: {low: 2, high: 8, when: [schedule]}": (
        "batch_size: `when` must be {name: value} or {name: [values]}, but got ['schedule']"
    ),
    "batch_size: {low: 2, high: 8, when: {schedule: {low: 1}}}": (
        "batch_size: `when`: schedule must be plateau, cosine, poly, step, onecycle or constant, but got {'low': 1}"
    ),
    "batch_size: {low: 2, high: 8, when: {deth: 3}}": "batch_size: `when`: unknown name 'deth': did you mean 'depth'?",
    "batch_size: {low: 2, high: 8, when: {batch_size: 2}}": (
        "`when` conditions form a cycle: batch_size -> batch_size"
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", FAULTS, ids=lambda line: line[:40])
def test_bad_space_line(line: str, refused: Refused) -> None:
    Path("my.yaml").write_text(f"{line}\n")
    assert refused("train", "my.yaml") == f"my.yaml: not a valid search space\n  - {FAULTS[line]}"
    assert [path.name for path in Path().iterdir()] == ["my.yaml"]


@pytest.mark.parametrize("name", TrialConfig.model_fields)
def test_typos_suggest_the_right_name(name: str, refused: Refused) -> None:
    typo = name[:2] + name[3:]
    Path("my.yaml").write_text(f"{typo}: 1\n")
    assert refused("train", "my.yaml") == (
        f"my.yaml: not a valid search space\n  - unknown name {typo!r}: did you mean {name!r}?"
    )


def test_circular_conditions(refused: Refused) -> None:
    Path("my.yaml").write_text(
        "depth: {low: 2, high: 4, when: {batch_size: 4}}\n"
        "batch_size: {low: 2, high: 8, when: {norm: batch}}\n"
        "norm: {choices: [batch, instance], when: {depth: 3}}\n"
    )
    assert refused("tune", "my.yaml") == (
        "my.yaml: not a valid search space\n  - `when` conditions form a cycle: depth -> batch_size -> norm -> depth"
    )


def test_minimum_rate_is_compared_with_the_rate_in_the_file() -> None:
    config = SearchSpace.from_mapping({"learning_rate": 0.9, "min_learning_rate": 0.5}).single_configuration()
    assert (config.learning_rate, config.min_learning_rate) == (0.9, 0.5)


PYTHON = "could not determine a constructor for the tag 'tag:yaml.org,2002:python/"
ALIASES = "aliases (*name) are not allowed; write the value itself"
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

FILES: dict[str, tuple[bytes, str]] = {
    "a name twice": (b"depth: 3\nnorm: batch\ndepth: 3\n", "not valid YAML: 'depth' is given twice; keep one"),
    "a command": (
        b"depth: !!python/object/apply:os.system ['touch made']\n",
        f'not valid YAML: {PYTHON}object/apply:os.system\' in "<unicode string>", line 1, column 8: depth: '
        "!!python/object/apply:os.system ... ^",
    ),
    "a module": (
        b"!!python/module:subprocess {}\n",
        f'not valid YAML: {PYTHON}module:subprocess\' in "<unicode string>", line 1, column 1: '
        "!!python/module:subprocess {} ^",
    ),
    "a tuple": (
        b"depth: !!python/tuple [3]\n",
        f'not valid YAML: {PYTHON}tuple\' in "<unicode string>", line 1, column 8: depth: !!python/tuple [3] ^',
    ),
    "a billion laughs": (LAUGHS.encode(), f"not valid YAML: {ALIASES}"),
    "an alias of itself": (b"depth: &a [*a]\n", f"not valid YAML: {ALIASES}"),
    "depths": (b"depth: " + b"{a: " * 20000, "nested too deeply"),
    "no name": (b"null: 3\n", "not valid YAML: line 1: a name must be text, but got None"),
    "a number as name": (b"depth: {choices: {3: a}}\n", "not valid YAML: line 1: a name must be text, but got 3"),
    "an empty number": (b"depth: !!int ''\n", "not valid YAML: string index out of range"),
    "two documents": (
        b"depth: 3\n---\ndepth: 4\n",
        'not valid YAML: expected a single document in the stream in "<unicode string>", line 1, column 1: depth: 3 ^ '
        'but found another document in "<unicode string>", line 2, column 1: --- ^',
    ),
    "JSON that is a list": (b"[1, 2]", "must hold one `name: value` per line, but holds a list"),
    "UTF-16": (
        "depth: 3\n".encode("utf-16"),
        "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
    ),
    "a picture": (
        b"\x89PNG\r\n\x1a\n",
        "cannot be read ('utf-8' codec can't decode byte 0x89 in position 0: invalid start byte)",
    ),
    "control characters": (
        b"depth: 3\x07\n",
        'not valid YAML: unacceptable character #x0007: special characters are not allowed in "<unicode string>", '
        "position 8",
    ),
    "thousands of names": (
        "".join(f"x{n}: 1\n" for n in range(20_000)).encode(),
        f"holds 20000 names, but there are {len(TrialConfig.model_fields)} hyperparameters",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file(name: str, refused: Refused) -> None:
    content, message = FILES[name]
    Path("my.yaml").write_bytes(content)
    began = time.monotonic()
    assert refused("tune", "my.yaml") == f"my.yaml: {message}"
    assert time.monotonic() - began < 10
    assert [path.name for path in Path().iterdir()] == ["my.yaml"], "nothing was run or made"


def test_endless_file(refused: Refused) -> None:
    assert refused("tune", "/dev/zero") == ("/dev/zero: more than 1,000,000 bytes; is this a hyperparameter file?")


def test_folder_and_symlink_loop(refused: Refused) -> None:
    Path("spaces").mkdir()
    assert refused("tune", "spaces") == "spaces: cannot be read ([Errno 21] Is a directory: 'spaces')"
    Path("loop.yaml").symlink_to("loop.yaml")
    assert refused("tune", "loop.yaml").startswith(
        "loop.yaml: no such file, and not one of the shipped search spaces: "
    )


CLUSTERS = {
    "a command": (
        "cluster_name: !!python/object/apply:os.system ['touch made']\nprovider: {}\n",
        f'cannot be read as a cluster file ({PYTHON}object/apply:os.system\' in "<unicode string>", line 1, column 15: '
        "cluster_name: !!python/object/apply:os.system ... ^)",
    ),
    "depths": (
        "[" * 20000,
        "cannot be read as a cluster file (nested too deeply)",
    ),
    "no mapping": ("- a\n", "not a cluster file of Ray: `cluster_name` or `provider` is missing"),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_bad_cluster_file(name: str, prepared: Path, refused: Refused) -> None:
    text, message = CLUSTERS[name]
    Path("c.yaml").write_text(text)
    assert refused("tune", "quick", "--data", prepared, "--cluster", "c.yaml") == f"c.yaml: {message}"
    assert [path.name for path in Path().iterdir()] == ["c.yaml"], "nothing was run or made"
