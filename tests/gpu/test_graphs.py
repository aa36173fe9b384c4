"""CUDA graphs of the training steps: results, synchronisation and released memory."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wmlsearch.config import TrialConfig
from wmlsearch.data.augmentation import Augmentation
from wmlsearch.data.slices import PreparedData
from wmlsearch.model import graphs as graphs_module
from wmlsearch.model import steps as module
from wmlsearch.model import training
from wmlsearch.model import validation as validation_module
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.metrics import ValidationCounts
from wmlsearch.model.steps import Diverged, TrainingSteps
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.validation import Validation
from wmlsearch.runs.schema import EpochRow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
EPOCHS = 6  # of 6 batches of 7 slices and one of 6: both sizes are captured
SMALL = TrialConfig(depth=2, base_channels=8, batch_size=7, dropout=0.0, learning_rate=3e-3)


@pytest.fixture(scope="module")
def data(prepared: Path) -> PreparedData:
    return PreparedData.open(prepared, "cuda")


def small(**values: Any) -> TrialConfig:
    return TrialConfig.from_mapping({**SMALL.model_dump(), **values})


def losses(reports: Iterator[EpochRow]) -> list[float]:
    return [report.metrics["train_loss"] or 0.0 for report in reports]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("augment", ["none", "affine", "strong"])
def test_graphs_equal_steps(data: PreparedData, optimizer: str, augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(optimizer=optimizer, augment=augment, schedule="cosine", weight_decay=1e-4)
    made = []
    run = StepGraphs.run

    def watched(self: StepGraphs, kind: Any, images: int, *others: Any) -> bool:
        replayed = run(self, kind, images, *others)
        if replayed and (kind, images) not in made:
            made.append((kind, images))
        return replayed

    monkeypatch.setattr(StepGraphs, "run", watched)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(training|validation) continues")
        graphed = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    assert sorted(made) == [("training", 6), ("training", 7), ("validation", len(data.val))]
    made.clear()
    monkeypatch.setattr(StepGraphs, "allows", lambda *_: False)
    eager = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    assert made == []
    # Convolutions' gradients are sums without a fixed order, and training amplifies: 1 % after 42 steps.
    assert graphed == pytest.approx(eager, rel=1e-2)


OTHERS = [
    {"loss": "focal", "lesion_share": 0.5, "augment": "medium"},
    {"loss": "tversky", "dice_over": "batch", "ema": 0.9, "schedule": "poly"},
    {"loss": "bce_dice", "dice_over": "batch", "network": "residual", "augment": "strong", "ema": 0.9},
]


@pytest.mark.parametrize("values", OTHERS, ids=lambda values: values["loss"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_equal_steps_of_other_configurations(
    data: PreparedData, values: dict[str, Any], precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, computed = small(optimizer="sgd", **values), []
    for warm_up in (module.WARM_UP, 10**9):
        monkeypatch.setattr(module, "WARM_UP", warm_up)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="(training|validation) continues")
            reports = list(epochs(config, data, max_epochs=EPOCHS, precision=precision))
        computed.append([(row.metrics["train_loss"], row.metrics["val_loss"]) for row in reports])
    for graphed, eager in zip(*computed, strict=True):
        assert graphed == pytest.approx(eager, rel=3e-2)


def test_augmentation_on_a_gpu_equals_that_on_a_cpu() -> None:
    images = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = (images > 0.8).float()
    for kind in ("flip", "affine", "strong"):
        drawn = Augmentation.draw(kind, 20, torch.Generator().manual_seed(1))
        on_cpu, _ = drawn.apply(images, masks)
        on_gpu, _ = drawn.to(torch.device("cuda")).apply(images.cuda(), masks.cuda())
        assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-4), kind


def test_graphs_equal_steps_in_bfloat16(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    config, computed = small(optimizer="sgd"), []
    for graphs, at_once in ((True, True), (False, True), (False, False)):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("error", message="(training|validation) continues")
            if not graphs:
                patch.setattr(module, "WARM_UP", 10**9)
            if not at_once:
                patch.setattr(module, "BulkCastUNet", lambda network: network)
            computed.append(losses(epochs(config, data, max_epochs=EPOCHS, precision="bfloat16")))
    assert computed[0] == pytest.approx(computed[2], rel=3e-2)
    assert computed[1] == pytest.approx(computed[2], rel=3e-2)


def test_dropout_differs_at_each_replay(data: PreparedData) -> None:
    for dropout, different in ((0.5, True), (0.0, False)):
        trainer = Trainer(small(optimizer="sgd", dropout=dropout), data, 1, 0, "float32")
        trainer.unet.train()
        same = tuple(torch.arange(7) for _ in range(9))
        computed = trainer.steps.run(same, [0.0] * 9, None, 1)  # nothing is learned at a rate of 0
        assert trainer.graphs.sizes("training") == [7]
        replayed = {round(loss, 5) for loss in computed[module.WARM_UP :]}
        assert (len(replayed) > 1) == different


@pytest.mark.parametrize(
    "others", [{}, {"loss": "tversky", "dice_over": "batch", "ema": 0.9, "network": "residual", "lesion_share": 0.5}]
)
def test_host_does_not_synchronise_within_an_epoch(
    data: PreparedData, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for: list[str] = []
    advance, step_of_validation, run = TrainingSteps.advance, Validation._step, StepGraphs.run

    def silent(what: str, function: Any, *arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = function(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waited_for.append(what)
        return result

    for kind in ("replays", "eager steps"):
        with monkeypatch.context() as patch:
            if kind == "eager steps":
                patch.setattr(StepGraphs, "allows", lambda *_: False)
            trainer = Trainer(small(augment="strong", dropout=0.1, **others), data, EPOCHS, 0, "auto")
            for _ in range(EPOCHS - 1):
                trainer.train_epoch()
            sizes = trainer.graphs.sizes("training"), trainer.graphs.sizes("validation")
            assert sizes == (([7, 6], [len(data.val)]) if kind == "replays" else ([], []))
            patch.setattr(TrainingSteps, "advance", lambda *given: silent("training step", advance, *given))
            if kind == "replays":
                patch.setattr(StepGraphs, "run", lambda *given: silent(f"replay of {given[1]}", run, *given))
            else:
                patch.setattr(Validation, "_step", lambda *given: silent("batch", step_of_validation, *given))
            trainer.train_epoch()
        replays = [one for one in waited_for if one.startswith("replay")]
        assert replays == (["replay of training"] * 7 + ["replay of validation"] if kind == "replays" else [])
        assert [one for one in waited_for if one not in replays] == ["training step"] * 7 + (
            [] if kind == "replays" else ["batch"]
        )
        waited_for.clear()


def test_interrupted_and_resumed_with_graphs(data: PreparedData, prepared: Path, tmp_path: Path) -> None:
    config = small(optimizer="adamw", dropout=0.1, augment="flip")
    uninterrupted = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    last = tmp_path / "last.pt"
    for where in (data, PreparedData.open(prepared), data):  # on a GPU, on CPUs, on a GPU
        reports = epochs(config, where, max_epochs=EPOCHS, precision="float32", last=last)
        next(reports)
        (group,) = load_checkpoint(last)["optimizer"]["param_groups"]
        assert (type(group["lr"]), group["capturable"]) == (float, False)
    losses(reports)
    computed = [row["train_loss"] for row in load_checkpoint(last)["reports"]]
    assert computed[0] == pytest.approx(uninterrupted[0], rel=1e-2)
    assert computed == pytest.approx(uninterrupted, rel=0.15), (
        "one epoch has other dropout masks, since the CPU draws other numbers"
    )


def test_consecutive_trainings_release_their_memory(data: PreparedData) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    def train() -> None:
        losses(epochs(small(base_channels=16, augment="affine"), data, max_epochs=EPOCHS))

    train()  # libraries keep workspaces
    before = held()
    train()
    train()
    assert held() == before


def test_failed_capture_falls_back_to_steps(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(dropout=0.3)

    def looks(logits: Tensor, masks: Tensor, loss: Loss, counted: Tensor | None) -> Tensor:
        computed = slice_losses(logits, masks, loss, counted)
        if torch.cuda.is_current_stream_capturing():
            computed.sum().item()  # the host may not wait within a capture
        return computed

    wanted = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "slice_losses", looks)
        with pytest.warns(UserWarning, match="^training continues without CUDA graphs, since a capture failed: "):
            computed = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    assert computed == pytest.approx(wanted, rel=5e-2)
    torch.cuda.empty_cache()
    with warnings.catch_warnings():  # and the next training of this process has graphs again
        warnings.filterwarnings("error", message="(training|validation) continues")
        again = losses(epochs(config, data, max_epochs=EPOCHS, precision="float32"))
    assert again == pytest.approx(wanted, rel=5e-2)


def test_divergence_is_detected_at_the_end_of_the_epoch(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "learning_rate", lambda _config, step, _steps: 1e38 if step == 4 else 1e-3)
    with pytest.raises(Diverged, match=r"^the training loss is not finite in epoch 1, step 6 of 7$"):
        next(epochs(small(optimizer="sgd"), data, max_epochs=2, precision="float32"))


def test_gpu_counts_equal_cpu_counts(data: PreparedData, prepared: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 1, 32, 32, generator=generator)
    masks = (torch.rand(12, 1, 32, 32, generator=generator) > 0.9).float()
    patients = torch.arange(12) % 3
    on_cpu, on_gpu = ValidationCounts(3), ValidationCounts(3, "cuda")
    counted = (torch.rand(12, 1, 32, 32, generator=generator) > 0.2).float()
    for pixels in (None, counted):
        on_cpu.add_to_histograms(torch.sigmoid(logits), masks, patients, pixels)
        on_gpu_pixels = None if pixels is None else pixels.cuda()
        on_gpu.add_to_histograms(torch.sigmoid(logits).cuda(), masks.cuda(), patients.cuda(), on_gpu_pixels)
        assert torch.equal(on_gpu.histograms.cpu(), on_cpu.histograms)
    unet = Trainer(SMALL, data, 1, 0, "float32").unet
    assert Validation(unet, data.val, "bce", bfloat16=False).run().slices == len(data.val)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("values", [{}, {"norm": "instance", "loss": "tversky", "dice_over": "batch"}], ids=str)
@torch.no_grad()
def test_validation_as_a_graph_equals_eager_validation(
    data: PreparedData, values: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, with two batch sizes, while the weights move in place between validations."""
    monkeypatch.setattr(validation_module, "validation_batch_size", lambda *_: 5)
    trainer = Trainer(small(**values), data, 1, 0, precision)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(training|validation) continues")
        for run in range(4):
            for weight in trainer.unet.parameters():
                weight.mul_(1.01)
            graphed = trainer.validate()
            assert trainer.graphs.sizes("validation") == ([5, 2] if run else [])
            eager = Validation(trainer.kept_unet, data.val, trainer.loss, trainer.bfloat16).run().to_host()
            assert torch.equal(graphed.histograms, eager.histograms)
            assert torch.equal(graphed.sums, eager.sums)
            assert (graphed.slices, graphed.metrics()) == (len(data.val), eager.metrics())
            assert int(graphed.histograms.sum()) == len(data.val) * data.val.images[0].numel()


def test_training_and_validation_share_the_graphs_memory(data: PreparedData) -> None:
    """What a replay computes does not depend on those of the other kind before it."""
    trainer = Trainer(small(optimizer="sgd", norm="instance"), data, 1, 0, "float32")
    order = trainer.draw_batches(torch.Generator().manual_seed(0))
    computed = []
    for _ in range(module.WARM_UP + 3):
        trainer.unet.train()
        computed.append(trainer.steps.run(order, [0.0] * len(order), None, 1))  # nothing is learned at a rate of 0
        computed[-1] += trainer.validate().sums.tolist()
    assert trainer.graphs.sizes("training") == [7, 6]
    assert trainer.graphs.sizes("validation") == [len(data.val)]
    for values in computed[1:]:
        assert values == pytest.approx(computed[0], rel=1e-5)


def test_failed_capture_of_validation(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation continues without graphs, and training captures its own again."""
    config, capture_graph = small(dropout=0.3), graphs_module.capture_graph

    def looking(step: Any, *others: Any) -> Any:
        def looks() -> None:
            step()
            if step.args[-1].__class__ is ValidationCounts:
                step.args[-1].sums.sum().item()  # the host may not wait within a capture

        return capture_graph(looks, *others)

    wanted = [row.metrics["val_loss"] for row in epochs(config, data, max_epochs=EPOCHS, precision="float32")]
    monkeypatch.setattr(graphs_module, "capture_graph", looking)
    trainer = Trainer(config, data, EPOCHS, 0, "float32")
    with pytest.warns(UserWarning, match="^validation continues without CUDA graphs, since a capture failed: "):
        computed = [trainer.train_epoch().metrics["val_loss"] for _ in range(EPOCHS)]
    assert computed == pytest.approx(wanted, rel=0.15)
    assert sorted(trainer.graphs.sizes("training")) == [6, 7]
    assert trainer.graphs.sizes("validation") == []
