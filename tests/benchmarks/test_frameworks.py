"""The comparison with other frameworks: its loops on tiny slices, nnU-Net's files, the rows. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import frameworks, nnunet
from benchmarks.frameworks import Clock, Measured, Scale
from benchmarks.nnunet import Plan
from benchmarks.processes import Overdue
from benchmarks.table import Row
from benchmarks.training import operations
from wmlsearch.config import TrialConfig
from wmlsearch.data.labels import LESION
from wmlsearch.data.slices import PreparedData

TINY = Scale(32, 10, 5, timed=1, case=5, trainer_epochs=1, iterations=2)
OURS = Measured("wmlsearch", "batch 5", 1000, 3.0, 0.5)
PLAN = Plan(49, (256, 256), (32, 64, 128, 256, 512, 512, 512), 75.0, 12)
LOG = """
2026-11-29 20:40:01.1: Epoch 0 \n2026-11-29 20:41:02.2: Epoch time: 61.05 s \n2026-11-29 20:41:02.3: Yayy! New best
2026-11-29 20:41:30.4: Epoch time: 24.0 s \n2026-11-29 20:41:56.5: Epoch time: 26.5 s \n
"""


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> frameworks._Run:
    """A run at a tiny scale."""
    return frameworks._Run(tmp_path, prepared, TINY, Clock(60, 1))


def test_raw_data_set_of_nnunet(data: PreparedData, tmp_path: Path) -> None:
    train, val = (replace(slices, rows=slices.rows[:count]) for slices, count in ((data.train, 7), (data.val, 3)))
    nnunet.write_raw(tmp_path, train, val, 4)
    raw = tmp_path / "raw" / nnunet.DATASET
    assert json.loads((raw / "dataset.json").read_text()) == {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (split,) = json.loads((tmp_path / "preprocessed" / nnunet.DATASET / "splits_final.json").read_text())
    assert split == {"train": ["train_000", "train_001"], "val": ["val_000"]}
    image, mask = (nib.load(raw / name) for name in ("imagesTr/train_001_0000.nii.gz", "labelsTr/train_001.nii.gz"))
    assert image.shape == mask.shape == (32, 32, 3)
    assert image.header.get_zooms() == (1, 1, 3)
    rows = data.train.rows[4:7]
    assert np.array_equal(image.get_fdata().transpose(2, 0, 1), data.train.images[rows].numpy() + 1.0)
    assert np.array_equal(mask.get_fdata().transpose(2, 0, 1), data.train.masks[rows].numpy() == LESION)
    assert len(list((raw / "imagesTr").iterdir())) == len(list((raw / "labelsTr").iterdir())) == 3


def test_epochs_in_nnunets_log(tmp_path: Path) -> None:
    assert nnunet.epoch_seconds(tmp_path) == []
    log = tmp_path / "results" / nnunet.DATASET / "nnUNetTrainer_5epochs__nnUNetPlans__2d" / "fold_0"
    log.mkdir(parents=True)
    (log / "training_log_2026_11_29_20_40_01.txt").write_text(LOG)
    assert nnunet.epoch_seconds(tmp_path) == [61.05, 24.0, 26.5]


def test_nearest_configuration_to_a_plan() -> None:
    config = TrialConfig(**frameworks.nearest(PLAN))
    assert (config.depth, config.base_channels, config.batch_size, config.norm) == (4, 32, 49, "instance")
    assert Plan.of(json.loads(json.dumps(asdict(PLAN)))) == PLAN
    assert [nnunet.trainer_name(epochs) for epochs in (1, 5)] == ["nnUNetTrainer_1epoch", "nnUNetTrainer_5epochs"]


def test_operations_of_a_step() -> None:
    class TwoOutputs(nn.Module):
        """A convolution whose output is given twice, as with deep supervision."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(images)] * 2

    forward = 2 * 8 * 8 * 2 * 9  # a multiplication and an addition for each weight and pixel
    assert operations(TwoOutputs(), (8, 8)) == 2 * forward  # and once more for the weights' gradients; images have none


def test_rows_of_a_comparison() -> None:
    seconds = [9.0, 2.0, 1.0, 1.5]
    other = Measured.of("MONAI 1.6", "eager", 1000, seconds)
    assert (other.first_s, other.epoch_s) == (9.0, 1.5)
    assert frameworks.compare("both", OURS, other) == [
        Row(
            "both",
            "0.5 s an epoch of 1000 + 200 images, 2e+03 images/s",
            "MONAI 1.6: 1.5 s an epoch of 1000 + 200 images, 667 images/s",
            pytest.approx(3.0),
        ),
        Row("their steps, and first epochs", "batch 5; 3 s", "eager; 9 s"),
    ]
    with pytest.raises(RuntimeError, match=r"MONAI 1.6: 1 epochs ended, and the first one does not count"):
        Measured.of("MONAI 1.6", "eager", 1000, seconds[:1])


@pytest.mark.parametrize(("name", "package"), [("monai", "monai"), ("nnunet", "nnunetv2")])
def test_what_is_not_installed_is_a_row(
    name: str, package: str, run: frameworks._Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (row,) = frameworks._rows(name, run, OURS)
    assert (row.ours, row.reference) == ("", f"not measured: {package} isn't installed here")
    assert row.what.endswith(f": {name}")


def test_what_fails_is_a_row_with_the_last_line(run: frameworks._Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("train_pytorch failed:\nTraceback:\n  ...\nRuntimeError: no C++ | compiler\n")

    monkeypatch.setattr(frameworks._Run, "call", fail)
    (row,) = frameworks._rows("pytorch", run, OURS)
    assert row.reference == "not measured: RuntimeError: no C++ / compiler"


def test_without_a_gpu_there_are_no_cuda_graphs(run: frameworks._Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = frameworks._rows("pytorch-graphs", run, OURS)
    assert row == Row("32 x 32, cpu: pytorch-graphs", "", "not measured: CUDA graphs need a GPU")


def test_nnunets_epochs_count_that_ended_in_time(run: frameworks._Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def overdue(*_: Any, limit_s: float) -> None:
        raise Overdue(f"train has not ended within {limit_s:g} s")

    monkeypatch.setattr(frameworks, "call", overdue)
    monkeypatch.setattr(frameworks.metadata, "version", lambda _: "2.8.1")
    monkeypatch.setattr(nnunet, "epoch_seconds", lambda _: [61.0, 24.0, 26.0])
    measured = frameworks._train_nnunet(run, PLAN)
    assert (measured.what, measured.images, measured.epoch_s) == ("nnU-Net 2.8.1", 2 * 49, 25.0)
    assert measured.step.startswith("batch 49 of 256 x 256, 75 GFLOP an image, float")
    monkeypatch.setattr(nnunet, "epoch_seconds", lambda _: [])
    with pytest.raises(RuntimeError, match="0 epochs ended"):
        frameworks._train_nnunet(run, PLAN)


def test_time_that_is_left_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock(90, 3)
    assert clock.share_s() == 30
    now = 110.0  # the first task took 10 s
    assert clock.share_s() == 40
    now = 300.0
    assert clock.share_s() == 1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_plain_loop_learns(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution of one weight learns that bright pixels are lesions."""
    monkeypatch.setattr(frameworks, "uses_bfloat16", lambda *_: bfloat16)
    torch.manual_seed(0)
    images = torch.rand(4, 1, 8, 8)
    batches = [(images, (images > 0.5).float())]
    model = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(model.weight)
    seconds = frameworks.train_plain(model, batches, batches, "cpu", 3)
    assert len(seconds) == 3
    assert model.weight.item() > 0
    assert all(math.isfinite(one) for one in seconds)


def test_each_loop_trains_on_as_many_slices(prepared: Path) -> None:
    """wmlsearch and MONAI in this process; they have the same slices."""
    pytest.importorskip("monai")
    ours = Measured(**frameworks.train_wmlsearch(str(prepared), asdict(TINY), {"depth": 2, "base_channels": 4}))
    monai = Measured(**frameworks.train_monai(str(prepared), asdict(TINY)))
    assert ours.images == monai.images == 10
    assert ours.step.endswith(", augment none")
    assert monai.step.endswith(", no augmentation, eager")
    data = frameworks._data(str(prepared), TINY, "cpu")
    assert (len(data.train), len(data.val)) == (10, 2)


@pytest.mark.slow
def test_nnunet_plans_and_trains(prepared: Path) -> None:
    """With nnU-Net itself, where it is installed: the calls that `benchmarks/nnunet.py` makes."""
    pytest.importorskip("nnunetv2")
    rows = frameworks.measure(["nnunet"], 500, Scale(32, 40, 5, timed=1, case=8, trainer_epochs=5, iterations=2))
    assert [row.ratio is not None for row in rows] == [True, False, True]
    assert "nnUNetTrainer_5epochs" in rows[1].reference
