"""Each hyperparameter that came after the first version works wherever a configuration goes.

One matrix instead of a test of each for itself: training is resumed bit for bit, two workers train as one does, an
export predicts what the sealed test has scored, the predicted memory holds it, MLflow shows it, nothing becomes NaN.
`tests/docs/test_site.py` looks for them in the reference, `tests/forecast/test_cost.py` for their time in the forecast.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nifti_files import voxels
from records import run_record as record_of

from tests.model.test_training import RANK, facts, in_ranks, rows, same
from wmlsearch.config import VALUES_BEFORE, RunSettings, TrialConfig
from wmlsearch.data.labels import BACKGROUND, IGNORED, LESION
from wmlsearch.data.manifest import LEDGER, ORIGINALS, SEALED, Manifest
from wmlsearch.data.sealed_test import Opener
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.data.sources import Source
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.memory import estimate_memory
from wmlsearch.model.torch_patches import LiveTensorBytes
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.runs.evaluation import VOLUMES
from wmlsearch.runs.folders import RunDir
from wmlsearch.tracking.sync import _params
from wmlsearch.verdict.evaluation import evaluate
from wmlsearch.verdict.scores import score
from wmlsearch.workflows.provenance import data_record, run_record

BASE: dict[str, Any] = {
    "depth": 2, "base_channels": 4, "batch_size": 7, "norm": "instance", "dropout": 0.0, "optimizer": "sgd",
    "learning_rate": 5e-3,
}  # fmt: skip
MATRIX: dict[str, dict[str, Any]] = {
    "input": {"input_slices": 3, "intensity": "zscore"},
    "five slices": {"input_slices": 5, "augment": "light", "network": "residual"},
    "tversky": {"loss": "tversky", "tversky_alpha": 0.4, "dice_over": "batch", "schedule": "poly"},
    "focal": {"loss": "focal", "optimizer": "adamw", "weight_decay": 0.01, "optimizer_epsilon": 1e-3},
    "sampling": {"lesion_share": 0.5, "augment": "strong", "flip_axis": "columns", "loss": "bce_dice"},
    "blocks": {"network": "residual", "up_kernel": 3, "head_init": "glorot", "dropout_place": "both"},
    "ema": {"ema": 0.9, "norm_epsilon": 1e-3, "norm_momentum": 0.2, "plateau_min_delta": 0.01},
}
CASES = pytest.mark.parametrize("case", MATRIX)
RANKS: dict[str, Any] = {"max_epochs": 2, "seed": 5, "precision": "float32"}


def config_of(case: str, **others: Any) -> TrialConfig:
    return TrialConfig(**{**BASE, **MATRIX[case], **others})


@pytest.fixture(scope="module")
def folder(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data with a ledger of their own."""
    copy = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("new") / "data"))
    (copy / SEALED / LEDGER).write_text("")
    return copy


def test_the_matrix_has_each_hyperparameter_that_old_files_do_not_name() -> None:
    baseline = TrialConfig()
    for name in VALUES_BEFORE:
        assert any(values.get(name, getattr(baseline, name)) != getattr(baseline, name) for values in MATRIX.values())


@CASES
def test_a_resumed_training_equals_an_uninterrupted_one(case: str, data: PreparedData, tmp_path: Path) -> None:
    config = config_of(case, norm="batch", dropout=0.1)

    def start(name: str) -> Iterator[Any]:
        return epochs(
            config, data, max_epochs=3, seed=3, last=tmp_path / f"{name}.pt", best=tmp_path / f"{name}-best.pt"
        )

    whole, first = rows(start("whole")), start("parts")
    parts = [facts(next(first).as_json())]
    first.close()
    torch.manual_seed(12345)  # nothing of the process may matter
    assert [*parts, *rows(start("parts"))] == whole
    for end in ("", "-best"):
        one, other = (load_checkpoint(tmp_path / f"{name}{end}.pt") for name in ("whole", "parts"))
        for name in ("model", "average", "optimizer", "plateau"):
            assert same(one.get(name), other.get(name)), name


ALL_CASES = RANK.replace(
    "config = TrialConfig.from_mapping(json.loads(config))", "configs = json.loads(config)"
).replace(
    """reports = epochs(config, data, last=Path(folder, "last.pt"), **options)
print(json.dumps([report.as_json() for report in reports]), flush=True)""",
    """results = {}
for case, values in configs.items():
    config = TrialConfig(**values)
    results[case] = [report.as_json() for report in epochs(config, data, **options)]
    interrupted = epochs(config, data, last=Path(folder, f"{case}.pt"), **options)
    next(interrupted)
    interrupted.close()
    torch.distributed.barrier()  # rank 0 has written the checkpoint
    resumed = epochs(config, data, last=Path(folder, f"{case}.pt"), **options)
    results[f"{case}, resumed"] = [report.as_json() for report in resumed]
print(json.dumps(results), flush=True)""",
)


@pytest.fixture(scope="module")
def of_two_workers(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of each rank, by case: all cases in one pair of processes."""
    cases = {case: config_of(case).model_dump() for case in MATRIX}
    return in_ranks(ALL_CASES, prepared, tmp_path_factory.mktemp("ranks"), json.dumps(cases), **RANKS)


@CASES
def test_two_workers_train_and_resume_as_one_does(
    case: str, data: PreparedData, of_two_workers: list[dict[str, Any]]
) -> None:
    alone = rows(epochs(config_of(case), data, **RANKS))
    first, second = ([facts(row) for row in rank[case]] for rank in of_two_workers)
    assert first == second
    for row, wanted in zip(first, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_soft_dice", "learning_rate"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), name
    for rank in of_two_workers:
        assert [facts(row) for row in rank[f"{case}, resumed"]] == first[1:], "bit for bit"


@CASES
def test_a_volume_predicted_through_files_equals_the_sealed_test(case: str, folder: Path, tmp_path: Path) -> None:
    data, config = PreparedData.open(folder), config_of(case)
    about = run_record("r", "train", config, RunSettings(epochs=1), data_record(folder, data))
    run = RunDir.create(tmp_path / "r", about)
    for row in epochs(config, data, max_epochs=1, precision="float32", best=run.best):
        run.append(row)
    trained = TrainedModel.from_run(run)
    validation = data.with_input_of(config).val
    with torch.inference_mode():
        likely = torch.sigmoid(trained.unet(validation.batch(torch.arange(len(validation)))[0]))
    model = replace(trained, threshold=float(likely.quantile(0.9)))  # it finds a tenth of everything
    export_model([model], tmp_path / "export")
    (exported,) = load_exported(tmp_path / "export").members
    assert exported.config == config
    found, _ = evaluate({"model": [model]}, folder, Opener(run="r"))
    sealed, predicted = folder / SEALED, 0
    for row, geometry in zip(
        found.models["model"].members[0].scope(VOLUMES).rows, Manifest.read(sealed).volumes, strict=True
    ):
        source = Source("", "", sealed, (sealed / ORIGINALS / geometry.source,))
        prediction = predict([exported], source)
        scores = score(prediction.mask, voxels(sealed / ORIGINALS / geometry.masks[0]), prediction.voxel_mm)
        assert (row.tp, row.fp, row.fn, row.dice) == (scores.tp, scores.fp, scores.fn, scores.dice)
        predicted += row.tp + row.fp
    assert predicted


@CASES
def test_the_predicted_memory_holds_a_step(case: str, data: PreparedData) -> None:
    """All tensors that a real step makes: gradients, the optimiser's state and what is short-lived among them."""
    config = config_of(case)
    trainer = Trainer(config, data, 1, 0, "float32")
    order = batches(len(data.train), config.batch_size, torch.Generator())[:2]
    with LiveTensorBytes() as live:
        trainer.train(order, 1, torch.Generator())
    estimate = estimate_memory(config, data.manifest.size, False, 1)
    held = sum(tensor.nbytes for tensor in trainer.unet.state_dict().values()) * (2 if config.ema else 1)
    assert held + live.peak == pytest.approx(estimate.bytes(config.batch_size), rel=0.25)


@CASES
def test_mlflow_shows_it(case: str) -> None:
    params = _params(record_of(config=config_of(case).model_dump()))
    assert {name: params[name] for name in MATRIX[case]} == MATRIX[case]


@CASES
@pytest.mark.parametrize("image", ["noise", "grey"])
@pytest.mark.parametrize("label", ["background", "lesion", "ignored", "mixed"])
def test_nothing_is_nan_in_odd_slices(case: str, image: str, label: str, data: PreparedData) -> None:
    """Slices without lesions, without anything else, without a pixel that counts; of one grey; volumes of one slice."""
    config = config_of(case, norm="batch", dropout=0.1)
    rng, shape = np.random.default_rng(0), tuple(data.train.images.shape)
    images = rng.integers(0, 256, shape) if image == "noise" else np.full(shape, 99)
    labels = {"background": BACKGROUND, "lesion": LESION, "ignored": IGNORED}
    masks = rng.integers(0, 3, shape) if label == "mixed" else np.full(shape, labels[label])
    grey = ((float(images.mean()), float(images.std())),)
    manifest = replace(
        data.manifest,
        slices=tuple(replace(row, volume=number, index=0) for number, row in enumerate(data.manifest.slices)),
        volumes=(replace(data.manifest.volumes[0], head_grey=grey),) * len(data.manifest.slices),
    )
    train, val = (
        replace(
            split,
            images=torch.from_numpy(images.astype(np.uint8)),
            masks=torch.from_numpy(masks.astype(np.uint8)),
            has_ignored=True,
        )
        for split in (data.train, data.val)
    )
    last = None
    for last in epochs(config, replace(data, manifest=manifest, train=train, val=val), max_epochs=1):
        assert all(value is None or math.isfinite(value) for value in last.metrics.values())
    assert last is not None
    assert last.metrics["train_loss"] is not None
