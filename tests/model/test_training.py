"""Training: resumed equals uninterrupted, schedules equal torch's, checkpoints are safe, ranks agree."""

from __future__ import annotations

import errno
import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmlsearch.config import VALUES_BEFORE, TrialConfig
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.errors import InputError
from wmlsearch.model import checkpoint, steps, training
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.checks import check_trainable, mirrors_nothing
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.metrics import ValidationCounts
from wmlsearch.model.optimizers import build_optimizer
from wmlsearch.model.schedules import learning_rate
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import Validation
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.schema import EpochRow

RESTORE_HINT = "restore it from a copy, or delete it and train again"
SMALL = TrialConfig(depth=2, base_channels=4, batch_size=7)
CLOCK = ("time", "epoch_s", "images_per_s", "peak_memory_mb")  # what no two trainings have in common


def small(**values: Any) -> TrialConfig:
    return TrialConfig.from_mapping({**SMALL.model_dump(), **values})


def facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCK}


def rows(reports: Iterator[EpochRow]) -> list[dict[str, Any]]:
    return [facts(report.as_json()) for report in reports]


def same(one: object, other: object) -> bool:
    """Return whether two nested structures are equal bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


# ----------------------------------------------------------------------------------------------- interrupted, resumed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["plateau", "cosine", "poly", "step", "onecycle", "constant"])
def test_resumed_equals_uninterrupted(data: PreparedData, tmp_path: Path, schedule: str, precision: str) -> None:
    config = small(
        schedule=schedule,
        warmup_fraction=0.3,
        plateau_patience=1,
        augment="affine",
        dropout=0.2,
        learning_rate=0.01,
        lesion_share=None if schedule == "plateau" else 0.4,
        input_slices=3 if schedule == "cosine" else 1,
        intensity="zscore" if schedule == "step" else "range",
    )

    def start(name: str) -> Iterator[EpochRow]:
        last, best = tmp_path / f"{name}-last.pt", tmp_path / f"{name}-best.pt"
        return epochs(config, data, max_epochs=4, seed=3, precision=precision, last=last, best=best)

    whole = rows(start("whole"))
    assert [row["epoch"] for row in whole] == [1, 2, 3, 4]
    assert [row["ended"] for row in whole] == [None, None, None, "completed"]
    first = start("parts")
    parts = [facts(next(first).as_json()), facts(next(first).as_json())]
    first.close()
    torch.manual_seed(12345)  # nothing of the process may matter
    torch.rand(17)
    parts += rows(start("parts"))
    assert parts == whole
    checkpoint = [load_checkpoint(tmp_path / f"{name}-last.pt") for name in ("whole", "parts")]
    for state in checkpoint:
        state["reports"] = [facts(row) for row in state["reports"]]
        state["report"] = facts(state["report"])
    assert same(*checkpoint)
    trained = [parameter.requires_grad for parameter in UNet(2, 4).parameters()]
    assert list(checkpoint[0]["optimizer"]["state"]) == [number for number, it in enumerate(trained) if it]
    for name in ("whole", "parts"):
        best = load_checkpoint(tmp_path / f"{name}-best.pt")
        assert same(best["model"], load_checkpoint(tmp_path / "whole-best.pt")["model"])
    assert rows(start("parts")) == []  # a finished training has nothing left to do


def test_resumed_training_keeps_the_number_of_threads(data: PreparedData, tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    next(epochs(SMALL, data, max_epochs=3, last=last))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert next(epochs(SMALL, data, max_epochs=3, last=last)).epoch == 2
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_checkpoint_is_written_before_its_report(data: PreparedData, tmp_path: Path) -> None:
    last, best = tmp_path / "new" / "last.pt", tmp_path / "new" / "best.pt"
    for report in epochs(SMALL, data, max_epochs=2, last=last, best=best):
        assert load_checkpoint(last)["reports"][-1] == report.as_json()
        assert load_checkpoint(best)["report"]["epoch"] <= report.epoch
        assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]
    state = load_checkpoint(best)
    assert TrialConfig.from_mapping(state["config"]) == SMALL
    assert (state["seed"], state["data"]) == (0, data.manifest.fingerprint)


def test_seed_determines_the_training(data: PreparedData) -> None:
    config = small(augment="flip")

    def losses(seed: int) -> list[float]:
        return [report.metrics["train_loss"] or 0 for report in epochs(config, data, max_epochs=2, seed=seed)]

    first = losses(1)
    assert losses(1) == first
    assert all(a != b for a, b in zip(losses(2), first, strict=True))


@pytest.mark.parametrize(
    "values",
    [{"dice_over": "batch"}, {"tversky_alpha": 0.9}, {"flip_axis": "columns"}, {"optimizer_epsilon": 1e-8, "ema": 0}],
    ids=lambda values: next(iter(values)),
)
def test_what_has_no_effect_in_the_baseline_changes_no_bit_of_it(
    data: PreparedData, tmp_path: Path, values: dict[str, Any]
) -> None:
    """`test_losses_equal_a_plain_loop` compares the baseline with torch's own parts."""
    curves = []
    for number, others in enumerate(({}, values)):
        last = tmp_path / f"{number}.pt"
        curves.append((rows(epochs(small(**others), data, max_epochs=2, last=last)), load_checkpoint(last)["model"]))
    assert curves[0][0] == curves[1][0]
    assert same(curves[0][1], curves[1][1])


def test_training_learns(data: PreparedData) -> None:
    reports = list(epochs(small(learning_rate=0.01), data, max_epochs=4))
    losses = [report.metrics["train_loss"] for report in reports]
    assert losses == sorted(losses, reverse=True)
    assert set(reports[0].metrics) == {
        "train_loss", "val_loss", "val_dice", "val_iou", "val_precision", "val_recall", "val_accuracy", "val_dice_best",
        "val_threshold", "val_soft_dice", "val_average_precision", "val_dice_patients",
        "val_dice_patients_best", "val_threshold_patients", "val_patients_empty",
        "learning_rate", "images_per_s", "epoch_s", "peak_memory_mb",
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    ("loss", "over"),
    [("bce", "slice"), ("dice", "slice"), ("bce_dice", "batch"), ("focal", "slice"), ("tversky", "slice")],
)
def test_every_optimizer_and_loss_trains(data: PreparedData, optimizer: str, loss: str, over: str) -> None:
    few = replace(data, train=replace(data.train, rows=data.train.rows[:8], patients=data.train.patients[:8]))
    config = small(optimizer=optimizer, loss=loss, dice_over=over, weight_decay=1e-4, learning_rate=0.01, batch_size=4)
    losses = [report.metrics["train_loss"] for report in epochs(config, few, max_epochs=3)]
    assert losses[-1] < losses[0]


def test_best_is_the_best_epoch(data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.2, 0.5, 0.5, None, 0.1])
    pretend(monkeypatch, lambda metrics: metrics.update(val_dice_patients_best=next(values)))
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    weights = {}
    for report in epochs(SMALL, data, max_epochs=5, last=last, best=best):
        weights[report.epoch] = load_checkpoint(last)["model"]
    state = load_checkpoint(best)
    assert state["report"]["epoch"] == 2  # the first of equals
    assert same(state["model"], weights[2])
    assert not same(weights[2], weights[3])


def test_best_epoch_depends_on_the_objective(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([(0.5, 0.1), (0.4, 0.3), (0.3, 0.2)])

    def change(metrics: dict[str, float | None]) -> None:
        metrics["val_dice_best"], metrics["val_dice"] = next(values)

    pretend(monkeypatch, change)
    best = tmp_path / "best.pt"
    list(epochs(SMALL, data, max_epochs=3, objective="val_dice", best=best))
    assert load_checkpoint(best)["report"]["epoch"] == 2


# ------------------------------------------------------------------------------------------------------------- ends


def pretend(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, float | None]], None]) -> None:
    """Replace the metrics of the validation."""
    measured = ValidationCounts.metrics

    def metrics(self: ValidationCounts) -> dict[str, float | None]:
        values = measured(self)
        change(values)
        return values

    monkeypatch.setattr(ValidationCounts, "metrics", metrics)


def pretend_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    values = iter(losses)
    pretend(monkeypatch, lambda metrics: metrics.update(val_loss=next(values)))


def test_early_stopping(data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, last = small(early_stop_patience=3, schedule="constant"), tmp_path / "last.pt"
    pretend_losses(monkeypatch, [1.0, 0.9, 0.95, 0.9, 0.91, 0.1])
    reports = list(epochs(config, data, max_epochs=20, last=last))
    assert [report.ended for report in reports] == [None] * 4 + ["early_stopped"]  # 3 epochs behind the second
    assert list(epochs(config, data, max_epochs=20, last=last)) == []


def test_patience_that_ends_with_the_last_epoch_is_no_early_stop(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_losses(monkeypatch, [1.0, 1.0, 1.0])
    reports = list(epochs(small(early_stop_patience=2), data, max_epochs=3))
    assert [report.ended for report in reports] == [None, None, "completed"]


def test_plateau_lowers_the_rate_after_its_patience(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(learning_rate=1e-2, min_learning_rate=2e-4, plateau_patience=2, early_stop_patience=50)
    pretend_losses(monkeypatch, [1.0, 1.0, 1.1, 0.9, 0.95, 0.89999, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    rates = [report.metrics["learning_rate"] for report in epochs(config, data, max_epochs=13)]
    #         bad bad | good bad good(barely) bad bad | bad bad: to the floor, and no further
    assert rates == pytest.approx([1e-2] * 3 + [1e-3] * 5 + [2e-4] * 5)


def test_plateau_needs_an_improvement_of_more_than_its_min_delta(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(learning_rate=1e-2, plateau_patience=2, plateau_min_delta=0.125, early_stop_patience=3)
    # Better by exactly the delta is no better: two bad epochs. For early stopping each is better.
    losses = [1.0, 0.875, 0.875, 0.75, 0.625, 0.5, 0.5]
    #         good bad    bad  | good  bad    good bad; the lowest so far: 1, 1, 1, 0.75, 0.75, 0.5
    pretend_losses(monkeypatch, losses)
    reports = list(epochs(config, data, max_epochs=7))
    assert [report.metrics["learning_rate"] for report in reports] == pytest.approx([1e-2] * 3 + [1e-3] * 4)
    assert reports[-1].ended == "completed"


@pytest.mark.parametrize(("optimizer", "epsilon"), [("adam", 1e-7), ("adamw", 1e-7), ("sgd", None)])
def test_epsilon_of_the_optimizer(optimizer: str, epsilon: float | None) -> None:
    config = small(optimizer=optimizer, optimizer_epsilon=1e-7)
    built = build_optimizer(config, UNet.of(config), torch.device("cpu"))
    assert built.defaults.get("eps") == epsilon


def test_plateau_has_the_baseline_patience(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_losses(monkeypatch, [1.0] * 12)
    reports = list(epochs(SMALL, data, max_epochs=18))
    assert [report.metrics["learning_rate"] for report in reports] == pytest.approx([1e-3] * 6 + [1e-4] * 5)
    assert reports[-1].ended == "early_stopped"  # ten epochs behind the first


def test_a_training_loss_that_is_not_finite_is_divergence(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def broken(logits: Tensor, masks: Tensor, loss: Loss, counted: Tensor | None) -> Tensor:
        nonlocal calls
        calls += logits.requires_grad
        return slice_losses(logits, masks, loss, counted) * (math.inf if calls == 10 else 1)

    monkeypatch.setattr(steps, "slice_losses", broken)
    last = tmp_path / "last.pt"
    reports = epochs(SMALL, data, max_epochs=5, last=last)  # 48 slices by 7: 7 steps an epoch
    assert next(reports).epoch == 1
    with pytest.raises(Diverged, match=r"^the training loss is not finite in epoch 2, step 3 of 7$"):
        next(reports)
    assert len(load_checkpoint(last)["reports"]) == 1
    assert all(torch.isfinite(weights).all() for weights in load_checkpoint(last)["model"].values())


@pytest.mark.parametrize("rate", [1e38, 1e20])
def test_weights_that_blow_up_in_the_last_step_are_divergence(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(training, "learning_rate", lambda _config, step, _steps: rate if step == 6 else 1e-3)
    with pytest.raises(Diverged, match=r"^the validation loss is not finite in epoch 1$"):
        list(epochs(small(optimizer="sgd"), data, max_epochs=2, precision="float32"))


def test_a_share_of_lesions_needs_slices_with_lesions(data: PreparedData) -> None:
    with_lesion = data.training_slices_with_lesions()
    none = replace(data, train=replace(data.train, rows=data.train.rows[~with_lesion]))
    check_trainable(small(lesion_share=0.3), data)
    with pytest.raises(InputError) as caught:
        check_trainable(small(lesion_share=1.0), none)
    assert caught.value.faults == (
        f"lesion_share=1 needs training slices with lesions, but none of the {len(none.train)} has one where fold 0 is "
        "validated; leave `lesion_share` out, or prepare the data again with other patients",
    )


def test_a_share_of_lesions_changes_nothing_where_all_slices_have_lesions(data: PreparedData) -> None:
    with_lesion = data.training_slices_with_lesions()
    only = replace(data, train=replace(data.train, rows=data.train.rows[with_lesion]))
    losses = {}
    for share in (None, 0.3):
        rows = list(epochs(small(augment="affine", lesion_share=share), only, max_epochs=2, precision="float32"))
        losses[share] = [row.metrics["train_loss"] for row in rows]
    assert losses[None] == losses[0.3]
    order = Trainer(small(lesion_share=1.0), only, 1, 0, "float32").draw_batches(torch.Generator().manual_seed(1))
    assert sorted(torch.cat(order).tolist()) == list(range(len(only.train)))


@pytest.mark.parametrize(
    ("axis", "flip_axis", "columns"),
    [(0, "left-right", False), (0, "columns", True), (1, "left-right", True), (2, "left-right", True),
     (None, "left-right", True)],
)  # fmt: skip
def test_what_is_mirrored(data: PreparedData, axis: int | None, flip_axis: str, columns: bool) -> None:
    """Left and right of the body are columns of coronal and axial slices, and of pictures as far as is known."""
    sliced = replace(data, manifest=replace(data.manifest, axis=axis))
    trainer = Trainer(small(augment="flip", flip_axis=flip_axis), sliced, 1, 0, "float32")
    drawn = trainer._draw_augmentation((torch.arange(9),), torch.Generator().manual_seed(1))
    assert drawn is not None
    assert drawn.mirrors_columns == columns
    assert (drawn.mirror < 0).any()
    assert mirrors_nothing(trainer.config, axis) != columns, "a single sagittal slice"
    for values in ({"augment": "affine"}, {"input_slices": 3}):
        assert not mirrors_nothing(small(**{"augment": "flip", "flip_axis": flip_axis, **values}), axis)


def test_a_slice_that_an_epoch_has_twice_is_augmented_differently(data: PreparedData) -> None:
    order = (torch.tensor([3, 5, 3]), torch.tensor([5, 7]))
    angles = {}
    for share in (None, 0.5):
        trainer = Trainer(small(augment="affine", lesion_share=share), data, 1, 0, "float32")
        drawn = trainer._draw_augmentation(order, torch.Generator().manual_seed(1))
        assert drawn is not None
        angles[share] = drawn.angle.tolist()
    assert len(set(angles[0.5])) == 5
    assert angles[None][0] == angles[None][2], "as before: by slice"


def test_each_batch_of_a_training_has_its_share_of_lesions(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, run = [], steps.TrainingSteps.run
    with_lesion = data.training_slices_with_lesions()

    def watched(self: steps.TrainingSteps, order: tuple[Tensor, ...], *others: Any) -> list[float]:
        shares.extend(with_lesion[batch].float().mean().item() for batch in order)
        return run(self, order, *others)

    monkeypatch.setattr(steps.TrainingSteps, "run", watched)
    list(epochs(small(lesion_share=0.5, batch_size=8), data, max_epochs=2))
    assert shares == [0.5] * 12


def test_what_cannot_be_trained_is_refused(data: PreparedData) -> None:
    check_trainable(small(depth=4), data)
    check_trainable(small(batch_size=4), data, workers=4)
    headline = "this configuration cannot be trained on this data"
    deep = (
        "size >= 2^(depth + 1) must hold, but got (size=32, depth=5): the lowest level would have a single pixel; "
        "lower `depth` or prepare with a larger --size"
    )
    few = (
        "each worker needs a slice of each batch, but batch_size=5 of 48 slices makes batches of 4 for 5 workers: "
        "raise `batch_size` or use fewer workers"
    )
    empty = replace(data, train=replace(data.train, rows=data.train.rows[:0]))
    none = (
        "training and validation slices are needed, but there are 0 training and 12 validation slices; prepare the "
        "data again with other patients"
    )
    for config, slices, workers, wanted in (
        (small(depth=5), data, 1, [deep]),
        (small(batch_size=5), data, 5, [few]),
        (small(depth=5, batch_size=5), data, 5, [deep, few]),
        (SMALL, empty, 1, [none]),
    ):
        with pytest.raises(InputError) as caught:
            check_trainable(config, slices, workers)
        assert (caught.value.headline, list(caught.value.faults)) == (headline, wanted)
    with pytest.raises(InputError, match=headline):
        next(epochs(small(depth=5), data, max_epochs=1))


# -------------------------------------------------------------------------------------------------------- schedules


def of_torch(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < steps else None
    return rates


def ours(steps: int, **values: Any) -> list[float | None]:
    config = small(learning_rate=0.02, min_learning_rate=1e-4, **values)
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [5, 10, 11, 37, 100])
def test_one_cycle_equals_torch(steps: int) -> None:
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=steps), steps)
    assert ours(steps, schedule="onecycle") == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 10, 37, 100])
def test_cosine_equals_torch(steps: int) -> None:
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps, eta_min=1e-4), steps)
    assert ours(steps, schedule="cosine") == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("steps", "fraction"), [(10, 0.3), (40, 0.25), (33, 0.1), (7, 0.01), (4, 0.9)])
def test_warmup_rises_linearly_then_falls_as_a_cosine(steps: int, fraction: float) -> None:
    rates = [rate or 0 for rate in ours(steps, schedule="cosine", warmup_fraction=fraction)]
    n = math.ceil(fraction * steps)
    assert rates[:n] == pytest.approx([0.02 * (k + 1) / n for k in range(n)])
    assert rates[n - 1] == max(rates) == pytest.approx(0.02)
    assert rates[n - 1 :] == sorted(rates[n - 1 :], reverse=True)
    for k in range(n, steps):
        rest = (k / steps - fraction) / (1 - fraction)
        assert rates[k] == pytest.approx(1e-4 + (0.02 - 1e-4) * (1 + math.cos(math.pi * rest)) / 2)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_poly_equals_torch_and_ends_at_its_minimum(steps: int) -> None:
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, steps, power=0.9), steps)
    config = small(schedule="poly", learning_rate=0.02, min_learning_rate=0.0)
    assert [learning_rate(config, step, steps) for step in range(steps)] == pytest.approx(wanted, rel=1e-9)
    assert ours(steps, schedule="poly") == pytest.approx([1e-4 + rate * (0.02 - 1e-4) / 0.02 for rate in wanted])


def test_step_equals_torch() -> None:
    wanted = of_torch(lambda o: torch.optim.lr_scheduler.StepLR(o, 12, gamma=0.3), 20)
    assert ours(20, schedule="step", step_fraction=0.6, step_factor=0.3) == pytest.approx(wanted)


def test_constant_and_plateau() -> None:
    assert ours(5, schedule="constant") == [0.02] * 5
    assert ours(5, schedule="plateau") == [None] * 5


@pytest.mark.parametrize("schedule", ["cosine", "poly", "step", "onecycle", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedules_of_the_shortest_trainings(schedule: str, steps: int) -> None:
    for rate in ours(steps, schedule=schedule):
        assert rate is not None
        assert 0 < rate <= 0.02 * (1 + 1e-12)


def test_the_optimizer_gets_the_rate_of_each_step(data: PreparedData) -> None:
    config = small(schedule="onecycle", learning_rate=0.02)
    reports = list(epochs(config, data, max_epochs=3))
    wanted = [learning_rate(config, step, 21) for step in (6, 13, 20)]  # 7 steps an epoch, the last of each
    assert [report.metrics["learning_rate"] for report in reports] == wanted


# ----------------------------------------------------------------------------------------------------- rate factors


def lineage(data: PreparedData, tmp_path: Path, name: str, config: TrialConfig, **how: Any) -> Iterator[EpochRow]:
    last, best = tmp_path / f"{name}-last.pt", tmp_path / f"{name}-best.pt"
    return epochs(config, data, max_epochs=4, seed=3, last=last, best=best, **how)


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "poly", "step", "onecycle", "constant"])
def test_rate_factors_multiply_the_rate_of_each_step(
    data: PreparedData, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(schedule=schedule, learning_rate=0.01, plateau_patience=1, min_learning_rate=2e-3, optimizer="sgd")
    losses, used = [1.0, 1.0, 0.9, 0.95], []
    pretend(monkeypatch, lambda metrics: metrics.update(val_loss=losses[(len(used) - 1) // 7 % 4]))
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *arguments: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    shown = [report.metrics["learning_rate"] for report in epochs(config, data, max_epochs=4)]
    plain, used[:] = list(used), []
    assert shown == plain[6::7]
    factors = {2: 0.8, 4: 0.96}
    shown = [report.metrics["learning_rate"] for report in epochs(config, data, max_epochs=4, rate_factors=factors)]
    assert len(used) == 28  # 7 steps an epoch
    assert used == [rate * factor for rate, factor in zip(plain, [1.0] * 7 + [0.8] * 14 + [0.96] * 7, strict=True)]
    assert shown == used[6::7], "the metric is the rate that was used"
    if schedule == "plateau":
        assert used[6::7] == pytest.approx([0.01, 0.008, 0.8 * 2e-3, 0.96 * 2e-3]), "the floor is the schedule's own"


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "poly", "step", "onecycle", "constant"])
def test_child_equals_a_training_with_its_rates_from_the_start(
    data: PreparedData, tmp_path: Path, schedule: str
) -> None:
    config = small(schedule=schedule, plateau_patience=1, augment="flip", learning_rate=0.01)
    parent = lineage(data, tmp_path, "child", config)
    first = [facts(next(parent).as_json()), facts(next(parent).as_json())]
    parent.close()
    factors = {3: 1.2, 4: 0.96}
    one = lineage(data, tmp_path, "child", config, rate_factors=factors)
    parts = [*first, facts(next(one).as_json())]
    one.close()
    parts += rows(lineage(data, tmp_path, "child", config, rate_factors=factors))
    assert parts == rows(lineage(data, tmp_path, "anew", config, rate_factors=factors))
    for kind in ("last", "best"):
        checkpoint = [load_checkpoint(tmp_path / f"{name}-{kind}.pt") for name in ("child", "anew")]
        for state in checkpoint:
            state["report"] = facts(state["report"])
            state["reports"] = [facts(row) for row in state.get("reports", [])]
        assert same(*checkpoint)
    plain = rows(lineage(data, tmp_path, "plain", config))
    assert plain[:2] == parts[:2]
    assert plain[3]["train_loss"] != parts[3]["train_loss"]


def test_checkpoint_trained_with_other_rates_is_refused(data: PreparedData, tmp_path: Path) -> None:
    start = lineage(data, tmp_path, "one", SMALL, rate_factors={2: 0.8})
    assert [next(start).epoch, next(start).epoch] == [1, 2]
    assert load_checkpoint(tmp_path / "one-last.pt")["rate_factors"] == {2: 0.8}
    with pytest.raises(InputError) as caught:
        next(lineage(data, tmp_path, "one", SMALL, rate_factors={2: 1.2}))
    assert caught.value.faults == ("rate_factors: {2: 0.8} in the checkpoint, {2: 1.2} in this training",)
    for wrong in ({0: 0.8}, {2: 0.0}, {2: math.inf}):
        with pytest.raises(InputError) as caught:
            next(lineage(data, tmp_path, "two", SMALL, rate_factors=wrong))
        assert str(caught.value) == f"rate_factors must be epochs (from 1) with factors above 0, but got {wrong}"


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_an_older_version_continues(data: PreparedData, tmp_path: Path) -> None:
    """It lacks the hyperparameters, the metrics and the threshold that came later."""
    config, last = small(**VALUES_BEFORE), tmp_path / "last.pt"
    next(epochs(config, data, max_epochs=2, objective="val_dice_best", last=last))
    state = load_checkpoint(last)
    for name in VALUES_BEFORE:
        del state["config"][name]
    for row in (state["report"], *state["reports"]):
        del row["val_dice_patients_best"], row["val_threshold_patients"]
    del state["threshold"]
    torch.save(state, last)
    assert [row.epoch for row in epochs(config, data, max_epochs=2, objective="val_dice_best", last=last)] == [2]
    torch.save(state, last)
    with pytest.raises(InputError, match="belongs to another training"):
        next(epochs(config.model_copy(update={"norm_epsilon": 1e-3}), data, max_epochs=2, last=last))


def test_a_checkpoint_of_another_training_is_refused(data: PreparedData, tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    next(epochs(SMALL, data, max_epochs=3, seed=0, last=last))
    with pytest.raises(InputError) as caught:
        next(epochs(SMALL, data, max_epochs=4, seed=1, last=last))
    assert str(caught.value) == (
        f"{last}: belongs to another training; choose another name or folder\n"
        "  - seed: 0 in the checkpoint, 1 in this training\n  - max_epochs: 3 in the checkpoint, 4 in this training"
    )
    other = replace(data, manifest=replace(data.manifest, fingerprint="f00d"))
    with pytest.raises(InputError) as caught:
        next(epochs(SMALL, other, max_epochs=3, last=last))
    assert caught.value.faults == (f"data: {data.manifest.fingerprint!r} in the checkpoint, 'f00d' in this training",)
    with pytest.raises(InputError, match="config: "):
        next(epochs(small(base_channels=2), data, max_epochs=3, last=last))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_checkpoint_with_convolution_biases_is_resumed(
    data: PreparedData, tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, last, best = small(optimizer=optimizer), tmp_path / "last.pt", tmp_path / "best.pt"

    def start(**files: Path) -> Iterator[EpochRow]:
        return epochs(config, data, max_epochs=3, precision="float32", **files)

    with monkeypatch.context() as patch:  # as networks were before: torch's own convolutions
        patch.setattr(
            "wmlsearch.model.unet.ConvBeforeNorm", lambda before, after: nn.Conv2d(before, after, 3, padding=1)
        )
        wanted = rows(start())
        before = start(last=last, best=best)
        found = [facts(next(before).as_json()), facts(next(before).as_json())]
    state = load_checkpoint(last)
    assert found == wanted[:2]
    assert len(state["optimizer"]["state"]) == len(list(UNet(2, 4).parameters())), "biases among them"
    assert state["model"]["down.0.0.bias"].any(), "rounding moves them"
    found += rows(start(last=last, best=best))
    for name in ("train_loss", "val_loss", "val_soft_dice"):
        assert found[2][name] == pytest.approx(wanted[2][name], rel=1e-2 if optimizer == "adam" else 1e-4), name
    assert not load_checkpoint(last)["model"]["down.0.0.bias"].any()
    list(start(last=last))


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_nothing_in_a_checkpoint_is_executed(data: PreparedData, tmp_path: Path) -> None:
    path, made = tmp_path / "last.pt", tmp_path / "made"
    for write in (
        lambda: torch.save({"format": 1, "model": Malicious(made)}, path),
        lambda: path.write_bytes(pickle.dumps(Malicious(made), protocol=2)),
    ):
        write()
        for use in (lambda: load_checkpoint(path), lambda: next(epochs(SMALL, data, max_epochs=1, last=path))):
            with pytest.raises(InputError) as caught:
                use()
            assert str(caught.value) == (f"{path}: not a readable checkpoint (UnpicklingError); {RESTORE_HINT}")
        assert not made.exists()
    pickle.loads(path.read_bytes())  # noqa: S301 - the trap works
    assert made.exists()


def test_damaged_checkpoints_are_refused(data: PreparedData, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"last.pt: not a readable checkpoint \(FileNotFoundError\)"):
        load_checkpoint(path)
    next(epochs(SMALL, data, max_epochs=2, last=path))
    whole = path.read_bytes()
    for size in (len(whole) // 2, 10, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(
            InputError,
            match=rf"last.pt: not a readable checkpoint \(\w+\); {RESTORE_HINT}",
        ):
            next(epochs(SMALL, data, max_epochs=2, last=path))
    for state in ({"format": 99}, {"model": {}}, [1]):
        torch.save(state, path)
        with pytest.raises(InputError) as caught:
            load_checkpoint(path)
        assert str(caught.value) == f"{path}: not a checkpoint of wmlsearch (format 1); {RESTORE_HINT}"


def test_checkpoint_writes_are_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_atomically({"format": 1, "n": 1}, path)

    def full(aside: Path, data: memoryview) -> None:
        with open(aside, "wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    needed = r"No space left on device \([\d,]+ bytes are needed, [\d,]+ are free\): '.*/last\.pt'"
    with pytest.raises(StorageError, match=needed):
        checkpoint.save_atomically({"format": 1, "n": 2}, path)
    assert load_checkpoint(path)["n"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


# ------------------------------------------------------------------------------------------------------- many ranks


@pytest.mark.parametrize("world", [2, 3, 13, 20])  # of 13 ranks, one has no slice; of 20, seven lie beyond the last
def test_ranks_count_each_validation_slice_once(data: PreparedData, world: int) -> None:
    torch.manual_seed(0)
    unet = UNet(2, 4)
    whole = Validation(unet, data.val, "bce", False).run()
    parts = [Validation(unet, data.val, "bce", False, rank, world).run() for rank in range(world)]
    assert sum(part.slices for part in parts) == whole.slices == len(data.val) == 12
    assert torch.equal(torch.stack([part.histograms for part in parts]).sum(0), whole.histograms)
    assert torch.allclose(torch.stack([part.sums for part in parts]).sum(0), whole.sums)


RANK = """
import json, os, sys
from pathlib import Path
import torch
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import epochs
prepared, folder, rank, world, config, options = sys.argv[1:]
torch.set_num_threads(1)
meeting = f"file://{folder}/meet"
torch.distributed.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(world))
data = PreparedData.open(Path(prepared))
config = TrialConfig.from_mapping(json.loads(config))
options = json.loads(options)
reports = epochs(config, data, last=Path(folder, "last.pt"), **options)
print(json.dumps([report.as_json() for report in reports]), flush=True)
torch.distributed.destroy_process_group()
os._exit(0)  # at a usual exit gloo sometimes aborts, if the model still refers to the group (pytorch#190489)
"""


def in_ranks(
    script: str, prepared: Path, folder: Path, config: TrialConfig | str, *, world: int = 2, **options: Any
) -> list[Any]:
    """Run a script in `world` processes with a process group, and return what each has printed.

    The script gets the configuration as JSON, or the text in its place.
    """
    folder.mkdir(exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    text = config if isinstance(config, str) else config.model_dump_json()
    words = [str(world), text, json.dumps(options)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", "-c", script, str(prepared), str(folder), str(rank), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    results = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        results.append(json.loads(output))
    return results


def two_ranks(prepared: Path, folder: Path, config: TrialConfig, **options: Any) -> list[list[dict[str, Any]]]:
    return [[facts(row) for row in rows] for rows in in_ranks(RANK, prepared, folder, config, **options)]


def test_two_ranks_equal_one(data: PreparedData, prepared: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"norm": "instance", "optimizer": "sgd", "learning_rate": 5e-3, "loss": "bce_dice"}
    config = small(dropout=0.0, augment="flip", input_slices=3, intensity="zscore", lesion_share=0.6, **values)
    options: dict[str, Any] = {"max_epochs": 3, "seed": 5, "precision": "float32"}
    alone = rows(epochs(config, data, **options))
    first, second = two_ranks(prepared, tmp_path / "two", config, **options)  # 7 slices a batch: 4 and 3
    assert first == second
    for row, wanted in zip(first, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_soft_dice", "learning_rate"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-4), name
        assert row["val_accuracy"] == pytest.approx(wanted["val_accuracy"], abs=1e-3)
    # what they have left goes on in one process, since a checkpoint knows no ranks
    shutil.copy(tmp_path / "two" / "last.pt", tmp_path / "last.pt")
    state = load_checkpoint(tmp_path / "last.pt")
    UNet.of(config).load_state_dict(state["model"])
    assert [facts(row) for row in state["reports"]] == first


UNEQUAL = RANK.replace(
    "print(json.dumps([report.as_json() for report in reports]), flush=True)",
    """from wmlsearch.model import steps as module
calls, steps = [], []
real_losses, real_step = module.slice_losses, torch.optim.SGD.step
def losses(*arguments):
    calls.append(1)
    return real_losses(*arguments) * (float("nan") if rank == "1" and len(calls) == 2 else 1.0)
def step(self, *arguments):
    steps.append(1)
    return real_step(self, *arguments)
module.slice_losses, torch.optim.SGD.step = losses, step
try:
    next(reports)
except module.Diverged as error:
    print(json.dumps([str(error), len(steps)]), flush=True)""",
)


def test_all_ranks_agree_that_a_loss_is_not_finite_before_the_optimiser_moves(prepared: Path, tmp_path: Path) -> None:
    config = small(optimizer="sgd", batch_size=4)
    for text, moves in in_ranks(UNEQUAL, prepared, tmp_path, config, max_epochs=1, precision="float32"):
        assert text.startswith("the training loss is not finite in epoch 1, step 2 of ")
        assert moves == 1, "the optimiser moved on a loss that was not finite on one of the ranks"


RESUMED = RANK.replace(
    "print(json.dumps([report.as_json() for report in reports]), flush=True)",
    """undisturbed = [report.as_json() for report in reports]
next(epochs(config, data, last=Path(folder, "again.pt"), **options))
again = [report.as_json() for report in epochs(config, data, last=Path(folder, "again.pt"), **options)]
print(json.dumps([undisturbed, again]), flush=True)""",
)


def test_three_ranks_resume_bit_for_bit(prepared: Path, tmp_path: Path) -> None:
    """With three ranks a sum depends on the order of its terms, which must be the same after a resumption."""
    config = small(batch_size=6, optimizer="adam", learning_rate=5e-3, loss="bce_dice", lesion_share=0.6, ema=0.9)
    for undisturbed, again in in_ranks(RESUMED, prepared, tmp_path, config, world=3, max_epochs=3, seed=1):
        assert [facts(row) for row in again] == [facts(row) for row in undisturbed[1:]]
    one, other = (load_checkpoint(tmp_path / name) for name in ("last.pt", "again.pt"))
    for part in ("model", "average", "optimizer"):
        assert same(one[part], other[part]), part


# ------------------------------------------------------------------------------------------------------ ignored pixels


def relabelled(raw: Path, folder: Path, garbage: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Path:
    """Copy a raw data set; in a block of each volume, labels are what `garbage` makes of the block of the mask."""
    copy = Path(shutil.copytree(raw, folder))
    for number, path in enumerate(sorted(copy.rglob("*_mask.nii.gz"))):
        image: Any = nib.load(path)
        mask = np.asarray(image.dataobj).astype(np.uint8)
        mask[24:36, 12:30, 3:9] = garbage(mask[24:36, 12:30, 3:9], np.random.default_rng(number))
        nib.Nifti1Image(mask, image.affine).to_filename(path)
    return copy


def prepared_with(raw: Path, out: Path, **labels: Any) -> PreparedData:
    prepare(raw, out, PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1, **labels))
    return PreparedData.open(out)


@pytest.fixture(scope="module")
def ignoring(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two prepared data sets whose masks differ where they are ignored: label 2 alone, and a draw of 2, 3 and 9."""
    root = tmp_path_factory.mktemp("ignoring")
    twos = relabelled(raw, root / "raw", lambda block, _: np.full_like(block, 2))
    draws = relabelled(raw, root / "raw2", lambda block, rng: rng.choice([2, 3, 9], block.shape).astype(np.uint8))
    for number, copy in enumerate((twos, draws)):
        prepared_with(copy, root / str(number), lesion_labels=(1,), ignore_labels=(2, 3, 9))
    return root / "0", root / "1"


def test_whatever_stands_in_ignored_voxels_the_weights_are_the_same(
    ignoring: tuple[Path, Path], raw: Path, data: PreparedData, tmp_path: Path
) -> None:
    config = small(augment="affine", loss="bce_dice", learning_rate=5e-3)
    states, reports = [], []
    draws = relabelled(raw, tmp_path / "raw", lambda block, rng: rng.choice([1, 2], block.shape).astype(np.uint8))
    unlike = prepared_with(draws, tmp_path / "unlike", lesion_labels=(1,))  # the same voxels, not ignored
    for number, prepared in enumerate((*map(PreparedData.open, ignoring), unlike)):
        last = tmp_path / str(number) / "last.pt"
        reports.append(rows(epochs(config, prepared, max_epochs=2, seed=3, last=last)))
        states.append(load_checkpoint(last))
    assert same(states[0]["model"], states[1]["model"])
    assert reports[0] == reports[1]
    assert states[0]["threshold"] == states[1]["threshold"]
    assert not same(states[0]["model"], states[2]["model"])
    assert PreparedData.open(ignoring[0]).train.has_ignored
    assert not data.train.has_ignored


def test_a_training_with_ignored_pixels_equals_a_loop_that_never_sees_their_labels(ignoring: tuple[Path, Path]) -> None:
    data = PreparedData.open(ignoring[0])
    config = small(schedule="constant", norm="instance", dropout=0.0, optimizer="sgd", learning_rate=5e-3)
    trainer = Trainer(config, data, 1, 4, "float32")
    torch.manual_seed(4)
    model = UNet.of(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-3, momentum=0.9, nesterov=True)
    order = batches(len(data.train), config.batch_size, torch.Generator().manual_seed(1))
    total = 0.0
    for batch in order:
        images, labels = data.train.batch(batch)
        losses = [
            F.binary_cross_entropy_with_logits(logits[label != 2], label[label != 2])
            for logits, label in zip(model(images), labels, strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        total += sum(loss.item() for loss in losses)
    assert trainer.train(order, 1, torch.Generator()) == pytest.approx(total / len(data.train), rel=1e-5)
    counts = trainer.validate()
    validation = data.val.masks[data.val.rows]
    assert int((validation == 2).sum()) > 0
    assert int(counts.histograms.sum()) == int((validation != 2).sum())
    assert int(counts.patient_histograms()[:, 1].sum()) == int((validation == 1).sum()) == counts.sums[2]


def test_two_ranks_ignore_the_same_pixels(ignoring: tuple[Path, Path], tmp_path: Path) -> None:
    config = small(norm="instance", dropout=0.0, augment="flip", optimizer="sgd", learning_rate=5e-3, loss="bce_dice")
    options: dict[str, Any] = {"max_epochs": 2, "seed": 5, "precision": "float32"}
    alone = rows(epochs(config, PreparedData.open(ignoring[0]), **options))
    first, second = two_ranks(ignoring[1], tmp_path / "two", config, **options)
    assert first == second
    for row, wanted in zip(first, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_soft_dice"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-4), name
