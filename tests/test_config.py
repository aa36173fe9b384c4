"""Hyperparameter files and configurations: the baseline configuration, strictness and exact texts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from wmlsearch.config import QUALITY_METRICS, VALUES_BEFORE, RunSettings, TrialConfig, epochs_for_slices
from wmlsearch.errors import InputError
from wmlsearch.space import SearchSpace, shipped

PAPER = {  # ../shared/paper/PROTOCOL.md and ../shared/DESIGN.md
    "input_slices": 1,
    "intensity": "range",
    "depth": 4,
    "base_channels": 16,
    "up_kernel": 2,
    "head_init": "he",
    "network": "paper",
    "norm": "batch",
    "norm_momentum": 0.01,
    "norm_epsilon": 1e-5,
    "dropout": 0.1,
    "dropout_place": "first",
    "loss": "bce",
    "dice_over": "slice",
    "tversky_alpha": 0.3,
    "optimizer": "adam",
    "optimizer_epsilon": 1e-8,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "batch_size": 5,
    "lesion_share": None,
    "schedule": "plateau",
    "min_learning_rate": 1e-5,
    "plateau_patience": 5,
    "plateau_factor": 0.1,
    "plateau_min_delta": 0.0,
    "warmup_fraction": 0.0,
    "step_fraction": 0.5,
    "step_factor": 0.1,
    "early_stop_patience": 10,
    "ema": 0.0,
    "augment": "none",
    "flip_axis": "left-right",
}


def faults(**values: Any) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        TrialConfig.from_mapping(values, "my.yaml")
    assert caught.value.headline == "my.yaml: not a valid configuration"
    assert str(caught.value) == "\n".join([caught.value.headline, *(f"  - {fault}" for fault in caught.value.faults)])
    return caught.value.faults


@pytest.mark.parametrize("model", [TrialConfig, RunSettings])
def test_each_number_has_a_maximum(model: type[TrialConfig] | type[RunSettings]) -> None:
    """A larger number breaks NumPy, JSON or a clock in the middle of a search."""
    for name, field in model.model_fields.items():
        for kind, value in ((int, 10**30), (float, 1e30)):
            if re.search(rf"\b{kind.__name__}\b", str(field.annotation)):
                with pytest.raises(InputError, match=f"{name} must be less than") as caught:
                    model.from_mapping({name: value})
                assert len(caught.value.faults) == 1


def test_defaults_are_the_baseline_configuration() -> None:
    assert TrialConfig().model_dump() == PAPER
    assert RunSettings().epochs == 18
    assert RunSettings().objective == "val_dice_patients_best"


@pytest.mark.parametrize(
    ("objective", "end"),
    [
        ("val_loss", "but got 'val_loss'; in `objectives`, val_loss can stand after one of them"),
        ("val_dice_bset", "but got 'val_dice_bset' (did you mean 'val_dice_best'?)"),
        ("val_recall", "but got 'val_recall'"),
        ("f1", "but got 'f1'"),
    ],
)
def test_the_objective_of_a_new_run_is_a_quality_metric(objective: str, end: str) -> None:
    """A trial's results would be ranked the wrong way round, or each trial would fail after its first epoch."""
    with pytest.raises(InputError) as refused:
        RunSettings.for_new_run({"objective": objective})
    assert refused.value.faults == (
        "objective must be val_dice_patients_best, val_dice_best, val_dice, val_iou, val_soft_dice, "
        "val_average_precision or val_dice_patients, because it is maximized and selects each trial's best epoch and "
        f"its weights, {end}",
    )


@pytest.mark.parametrize("objective", QUALITY_METRICS)
def test_each_quality_metric_is_an_objective(objective: str) -> None:
    assert RunSettings.for_new_run({"objective": objective}).objective == objective


@pytest.mark.parametrize(
    ("slices", "epochs"),
    [
        (3098, 18),  # the paper's cohort: 620 steps an epoch
        (10_000, 18),  # 2000 steps an epoch: 6 epochs would be as many steps
        (1550, 36),  # 310 steps an epoch: half as many, twice the epochs
        (1546, 36),  # 310 as well, the last batch is smaller
        (312, 178),  # 63 steps an epoch: 11160 / 63 = 177.1
        (24, 200),  # 5 steps an epoch: 2232
        (0, 200),
    ],
)
def test_default_epochs_have_the_steps_of_the_papers_training(slices: int, epochs: int) -> None:
    assert epochs_for_slices(slices) == epochs


def test_a_record_of_an_older_version_means_what_it_meant() -> None:
    """Names that it lacks have their value of then, also when the default has changed."""
    old = {name: value for name, value in PAPER.items() if name not in VALUES_BEFORE}
    # The baseline's when files did not name it, and what was mirrored then.
    before = {**PAPER, "norm_momentum": 0.1, "flip_axis": "columns"}
    assert TrialConfig.from_record(old, "config.json").model_dump() == before
    assert TrialConfig.from_record({**old, "up_kernel": 3}, "config.json").up_kernel == 3
    assert set(VALUES_BEFORE) < set(TrialConfig.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("depth", True, "a valid integer"),
        ("depth", "4", "a valid integer"),
        ("depth", 4.0, "a valid integer"),
        ("depth", None, "a valid integer"),
        ("depth", [3, 4], "a valid integer"),
        ("depth", 0, "greater than or equal to 1"),
        ("depth", 9, "less than or equal to 8"),
        ("learning_rate", True, "a valid number"),
        ("learning_rate", "1e-3", "a valid number"),
        ("learning_rate", 10**400, "a valid number"),
        ("learning_rate", math.nan, "a finite number"),
        ("learning_rate", math.inf, "a finite number"),
        ("learning_rate", 0.0, "greater than 0"),
        ("weight_decay", -1e-4, "greater than or equal to 0"),
        ("dropout", 1.0, "less than 1"),
        ("plateau_factor", 1.0, "less than 1"),
        ("batch_size", 0, "greater than or equal to 1"),
        ("norm", "layer", "batch or instance"),
        ("loss", None, "bce, dice, bce_dice, focal or tversky"),
        ("schedule", "linear", "plateau, cosine, poly, step, onecycle or constant"),
        ("augment", False, "none, flip, affine, light, medium or strong"),
        ("up_kernel", 4, "2 or 3"),
        ("head_init", "torch", "he or glorot"),
        ("dropout_place", "all", "first, last or both"),
        ("norm_momentum", 0.0, "greater than 0"),
        ("norm_momentum", 1.5, "less than or equal to 1"),
        ("norm_epsilon", 0.0, "greater than 0"),
        ("optimizer_epsilon", 0.0, "greater than 0"),
        ("plateau_min_delta", -1e-4, "greater than or equal to 0"),
        ("lesion_share", 0.0, "greater than 0"),
        ("lesion_share", 1.5, "less than or equal to 1"),
        ("ema", 1.0, "less than 1"),
        ("network", "vnet", "paper or residual"),
        ("flip_axis", "rows", "left-right or columns"),
    ],
)
def test_strict(name: str, value: object, rule: str) -> None:
    assert faults(**{name: value}) == (f"{name} must be {rule}, but got {value!r}",)


def test_an_integer_is_accepted_as_a_float() -> None:
    config = TrialConfig.from_mapping({"learning_rate": 1, "weight_decay": 0})
    assert (config.learning_rate, config.weight_decay) == (1.0, 0.0)
    assert type(config.learning_rate) is float
    assert type(config.weight_decay) is float
    assert RunSettings(max_hours=2).max_hours == 2.0


def test_all_faults_at_once() -> None:
    assert faults(dropuot=0.1, depth=0, norm="x", learning_rate=True, zebra=1) == (
        "depth must be greater than or equal to 1, but got 0",
        "norm must be batch or instance, but got 'x'",
        "learning_rate must be a valid number, but got True",
        "unknown name 'dropuot': did you mean 'dropout'?",
        f"unknown name 'zebra': valid names are {', '.join(PAPER)}",
    )


def test_rule_that_joins_two_values() -> None:
    expected = ("min_learning_rate <= learning_rate must hold, but got (min_learning_rate=1e-05, learning_rate=1e-06)",)
    assert faults(learning_rate=1e-6) == expected
    assert faults(learning_rate=1e-6, schedule="cosine") == expected
    assert (
        TrialConfig.from_mapping({"learning_rate": 1e-6, "schedule": "constant"}).learning_rate == 1e-6
    )  # has no floor


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrialConfig().depth = 5  # the refused assignment is the test


def test_an_empty_file_is_the_baseline_configuration(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("# nothing but a comment\n")
    assert SearchSpace.read(path).single_configuration() == TrialConfig()


def test_shipped_files_load() -> None:
    names = sorted(file.stem for file in shipped().glob("*.yaml"))
    assert {"paper", "quick", "unet"} <= set(names)
    for name in names:
        space = SearchSpace.read(name)
        assert space.to_mapping() == SearchSpace.read(f"{name}.yaml").to_mapping()
        assert space.is_single_configuration == (name == "paper")


def test_the_shipped_paper_is_the_baseline_configuration() -> None:
    assert SearchSpace.read("paper").single_configuration() == TrialConfig()


def test_the_shipped_spaces_contain_the_baseline_configuration() -> None:
    assert SearchSpace.read("unet").mismatches(TrialConfig()) == []
    assert SearchSpace.read("quick").mismatches(TrialConfig()) == []


def test_a_folder_of_that_name_does_not_hide_a_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper").mkdir()
    monkeypatch.chdir(tmp_path)
    assert SearchSpace.read("paper").single_configuration() == TrialConfig()
