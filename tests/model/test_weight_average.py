"""The moving average of the weights: what is averaged, what uses it; exact under resume, in graphs, with two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_steps import pretend_graphs
from tests.model.test_training import facts, rows, same, small, two_ranks
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.steps import TrainingSteps
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.validation import Validation
from wmlsearch.model.weight_average import average_steps

AVERAGED = small(ema=0.9, learning_rate=0.01, schedule="cosine")


def test_the_decay_rises_to_its_value() -> None:
    steps = average_steps(0.9, 0, 200)
    assert steps[:3] == pytest.approx([0.9, 1 - 2 / 11, 1 - 3 / 12])
    assert steps[-1] == pytest.approx(0.1)
    assert average_steps(0.9, 50, 20) == steps[50:70]


def test_the_average_is_that_of_weights_and_statistics_after_each_step(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(AVERAGED, data, 2, 0, "float32")
    wanted = {name: tensor.clone() for name, tensor in trainer.unet.state_dict().items()}
    weights = iter(average_steps(0.9, 0, 14))
    advance = TrainingSteps.advance

    def watched(self: TrainingSteps, images: int) -> None:
        advance(self, images)
        weight = next(weights)
        for name, tensor in trainer.unet.state_dict().items():
            if tensor.is_floating_point():
                wanted[name] += weight * (tensor - wanted[name])
            else:
                wanted[name].copy_(tensor)

    monkeypatch.setattr(TrainingSteps, "advance", watched)
    for _ in range(2):
        trainer.train_epoch()
    assert trainer.average is not None
    for name, tensor in trainer.average.unet.state_dict().items():
        assert torch.allclose(tensor, wanted[name], rtol=1e-5, atol=1e-7), name
    moved = trainer.unet.state_dict()["down.0.1.running_mean"]
    assert not torch.equal(trainer.average.unet.state_dict()["down.0.1.running_mean"], moved)


def test_the_average_changes_no_step(data: PreparedData) -> None:
    losses = [
        [row.metrics["train_loss"] for row in epochs(small(ema=ema), data, max_epochs=2, seed=2)] for ema in (0.0, 0.9)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_the_average_is_validated_kept_and_exported(data: PreparedData, tmp_path: Path, network: str) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    config = small(ema=0.9, learning_rate=0.01, network=network)
    report = list(epochs(config, data, max_epochs=1, last=last, best=best, precision="float32"))[-1]
    state, kept = load_checkpoint(last), load_checkpoint(best)
    assert same(kept["model"], state["average"])
    assert not same(kept["model"], state["model"])
    model = TrainedModel.load(best)
    with torch.no_grad():
        metrics = Validation(model.unet, data.val, "bce", False).run().metrics()
    assert metrics["val_loss"] == report.metrics["val_loss"]
    preprocessing = Preprocessing("axial", 2, 32, "resize", 1.0)
    export_model([TrainedModel(model.unet, model.config, 0.5, preprocessing, "a")], tmp_path / "out")
    (exported,) = load_exported(tmp_path / "out").members
    assert exported.config == config
    assert same(dict(exported.unet.state_dict()), dict(kept["model"]))


def test_resumed_equals_uninterrupted(data: PreparedData, tmp_path: Path) -> None:
    def start(name: str) -> Any:
        return epochs(
            AVERAGED, data, max_epochs=3, seed=3, last=tmp_path / f"{name}.pt", best=tmp_path / f"{name}-best.pt"
        )

    whole = rows(start("whole"))
    first = start("parts")
    parts = [facts(next(first).as_json())]
    first.close()
    parts += rows(start("parts"))
    assert parts == whole
    one, other = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("whole", "parts"))
    assert same(one["average"], other["average"])
    assert same(
        load_checkpoint(tmp_path / "whole-best.pt")["model"], load_checkpoint(tmp_path / "parts-best.pt")["model"]
    )
    del one["average"]
    torch.save(one, tmp_path / "parts.pt")
    with pytest.raises(InputError, match=r"is damaged \(KeyError: 'average'\)"):
        next(start("parts"))


def test_replayed_steps_move_the_average(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def averages() -> list[Tensor]:
        trainer = Trainer(AVERAGED, data, 5, 0, "float32")
        for _ in range(5):
            trainer.train_epoch()
        assert trainer.average is not None
        return list(trainer.average.unet.state_dict().values())

    eager = averages()
    pretend_graphs(monkeypatch, lambda step, _stream, _pool: step)
    assert same(eager, averages())


def test_ranks_validate_the_same_average_with_batch_normalisation(prepared: Path, tmp_path: Path) -> None:
    first, second = two_ranks(prepared, tmp_path / "two", AVERAGED, max_epochs=2, precision="float32")
    assert first == second
