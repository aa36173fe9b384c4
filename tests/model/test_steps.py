"""The training steps equal a plain loop in every mode, and a graph replaces only steps that ran before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmlsearch.config import TrialConfig
from wmlsearch.data.augmentation import Augmentation
from wmlsearch.data.slices import PreparedData, Slices, batches
from wmlsearch.model import graphs as module
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.steps import WARM_UP, TrainingSteps
from wmlsearch.model.torch_patches import TorchDispatchMode
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.unet import UNet

SMALL = TrialConfig(depth=2, base_channels=8, batch_size=7, dropout=0.0)


def plain_loop(config: TrialConfig, slices: Slices, orders: Sequence[tuple[Tensor, ...]], seed: int) -> list[float]:
    """Train with plain torch layers, no memory format, nothing fused. Return each epoch's mean loss per slice."""
    torch.manual_seed(seed)
    model = UNet(config.depth, config.base_channels, config.dropout, config.norm)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=0.9, nesterov=True)
    computed = []
    for order in orders:
        total = 0.0
        for batch in order:
            pairs = [slices.batch(position.view(1)) for position in batch]
            images, masks = (torch.cat(list(parts)) for parts in zip(*pairs, strict=True))
            loss = F.binary_cross_entropy_with_logits(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        computed.append(total / len(slices))
    return computed


# Sums of floats in another order are all that differs, as shares of the loss after 21 steps. Adam divides a gradient by
# its size, and so makes more of the rounding of small ones.
@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-5), ("adam", 1e-3)])
def test_losses_equal_a_plain_loop(
    data: PreparedData, optimizer: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"optimizer": optimizer, "schedule": "constant", "learning_rate": 3e-3})
    orders = []
    run = TrainingSteps.run

    def watched(self: TrainingSteps, order: tuple[Tensor, ...], *others: Any) -> list[float]:
        orders.append(order)
        return run(self, order, *others)

    monkeypatch.setattr(TrainingSteps, "run", watched)
    reports = list(epochs(config, data, max_epochs=3, seed=4, precision="float32"))
    wanted = plain_loop(config, data.train, orders, seed=4)
    assert [report.metrics["train_loss"] for report in reports] == pytest.approx(wanted, rel=tolerance)


class Watched(nn.Module):
    """A network with one weight that records the slices of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shown_batches = nn.Parameter(torch.ones(1)), list[list[int]]()

    def forward(self, images: Tensor) -> Tensor:
        self.shown_batches.append([round(value * 255) for value in images.detach()[:, 0, 0, 0].tolist()])
        return images * self.weight


def test_counters_with_both_batch_sizes() -> None:
    numbers = torch.arange(23, dtype=torch.uint8)
    images = numbers.view(-1, 1, 1).expand(-1, 4, 4).contiguous()  # each slice shows its own number
    slices = Slices(images, (images > 11).to(torch.uint8), torch.arange(23), torch.zeros(23, dtype=torch.int64), ("a",))
    model, used = Watched(), list[float]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    move = optimizer.step

    def watched() -> None:
        used.append(optimizer.param_groups[0]["lr"])
        move()

    optimizer.step = watched
    steps = TrainingSteps(model, optimizer, slices, "bce", bfloat16=False)
    for epoch in (1, 2):
        order = batches(23, 5, torch.Generator().manual_seed(epoch))
        assert [len(batch) for batch in order] == [5, 5, 5, 4, 4]
        rates = [0.01 * (epoch + step) for step in range(5)]
        losses = steps.run(order, rates, None, epoch)
        assert model.shown_batches == [batch.tolist() for batch in order]
        assert used == rates
        assert optimizer.param_groups[0]["lr"] == 0.5, "the schedule's own"
        first = F.binary_cross_entropy_with_logits(*slices.batch(order[0]), reduction="sum").item() / 16
        if epoch == 1:
            assert losses[0] == pytest.approx(first), "summed over slices, a mean over pixels"
        assert len(losses) == 5
        model.shown_batches.clear()
        used.clear()


def trained(data: PreparedData, count: int = 5) -> tuple[list[list[float]], TrainingSteps]:
    """Return the losses of some epochs, each with 6 batches of 7 slices and one of 6, with random augmentation."""
    config = SMALL.model_copy(update={"dropout": 0.3, "augment": "affine"})
    trainer, computed = Trainer(config, data, count, 0, "float32"), []
    trainer.unet.train()
    for epoch in range(1, count + 1):
        generator = torch.Generator().manual_seed(epoch)
        order = batches(len(data.train), 7, generator)
        drawn = Augmentation.draw("affine", len(data.train), generator)
        computed.append(trainer.steps.run(order, [1e-3] * len(order), drawn, epoch))
    return computed, trainer.steps


Captured = Callable[[Callable[[], None], object, object], Callable[[], None]]


def pretend_graphs(monkeypatch: pytest.MonkeyPatch, capture_graph: Captured) -> None:
    """Replace CUDA graphs by a fake that works on a CPU."""
    make = StepGraphs.__init__

    def init(self: StepGraphs, device: torch.device) -> None:
        make(self, device)
        self.possible = True

    monkeypatch.setattr(StepGraphs, "__init__", init)
    monkeypatch.setattr(module, "capture_graph", capture_graph)


def test_graph_of_each_size_replaces_steps_after_warmup(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, steps = trained(data)
    assert (steps.graphs.replays, steps.graphs.allows("training")) == ({}, False)
    replays: dict[int, int] = {}
    group: dict[str, Any] = {}

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        assert group["capturable"], "Adam refuses to be captured without it"
        mine = len(replays)
        replays[mine] = 0

        def replay() -> None:
            assert not group["capturable"]
            replays[mine] += 1
            step()

        return replay

    pretend_graphs(monkeypatch, capture_graph)
    init = TrainingSteps.__init__

    def known(self: TrainingSteps, *arguments: Any, **named: Any) -> None:
        nonlocal group
        init(self, *arguments, **named)
        group = self.optimizer.param_groups[0]

    monkeypatch.setattr(TrainingSteps, "__init__", known)
    graphed, steps = trained(data)
    assert graphed == eager
    assert steps.graphs.sizes("training") == [7, 6]
    assert replays == {0: 5 * 6 - WARM_UP, 1: 5 - WARM_UP}
    assert (group["lr"], group["capturable"]) == (SMALL.learning_rate, False), "a checkpoint fits any device"


def test_tensors_read_by_a_graph_keep_their_addresses(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_graphs(monkeypatch, lambda step, _stream, _pool: step)
    _, steps = trained(data, 1)
    places = [tensor.data_ptr() for tensor in steps.buffers.tensors()]
    order = batches(len(data.train), 7, torch.Generator().manual_seed(9))
    drawn = Augmentation.draw("affine", len(data.train), torch.Generator().manual_seed(9))
    steps.run(order, [1e-3] * 7, drawn, 2)
    assert [tensor.data_ptr() for tensor in steps.buffers.tensors()] == places
    assert torch.equal(steps.buffers.order, torch.cat(order))
    assert (steps.buffers.step.item(), steps.buffers.begin.item()) == (7, 48)
    assert steps.graphs.sizes("training") == [7]
    steps.run(order[:3], [1e-3] * 3, drawn, 3)  # another shape of epoch: what was captured reads elsewhere
    assert steps.graphs.sizes("training") == []
    assert steps.warmed == {7: 3}


def test_training_continues_when_capture_fails(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, _ = trained(data)
    tried = 0

    def capture_graph(*_arguments: object) -> Callable[[], None]:
        nonlocal tried
        tried += 1
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    pretend_graphs(monkeypatch, capture_graph)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        computed, steps = trained(data)
    assert computed == eager
    assert (tried, steps.graphs.allows("training"), steps.graphs.replays) == (1, False, {})
    assert steps.graphs.allows("validation")
    assert [str(warning.message) for warning in caught] == [
        "training continues without CUDA graphs, since a capture failed: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]


class Asked(TorchDispatchMode):
    """Records which operations of torch are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_gpu_step_reads_no_value_from_the_gpu(data: PreparedData, optimizer: str) -> None:
    values = {"optimizer": optimizer, "dropout": 0.3, "loss": "bce_dice", "weight_decay": 1e-4}
    drawn = Augmentation.draw("affine", len(data.train), torch.Generator().manual_seed(1))
    order = batches(len(data.train), 7, torch.Generator().manual_seed(1))
    waits = {"_local_scalar_dense", "nonzero", "bincount", "equal", "unique", "masked_select", "is_nonzero"}
    computed = []
    for on_gpu in (False, True):
        trainer = Trainer(SMALL.model_copy(update=values), data, 1, 0, "float32")
        trainer.unet.train()
        steps = trainer.steps
        steps.on_gpu = on_gpu
        with Asked() as asked:
            steps.run(order, [3e-3] * len(order), drawn, 1)
        assert asked.names & waits == (set() if on_gpu else {"_local_scalar_dense"})
        assert {"convolution_backward", "index_copy_", "grid_sampler_2d"} <= asked.names, (
            "the recorder sees all operations of a step"
        )
        computed.append(steps.run(order, [3e-3] * len(order), drawn, 2))
    assert computed[1] == pytest.approx(computed[0], rel=1e-3), "equal except for the learning rate in float32"
