"""nnU-Net v2 for `benchmarks.frameworks`: its raw format, its planning and preprocessing, its trainer and its log.

The functions that import nnU-Net run in a process of their own, which has nothing else to do. They call what its
commands `nnUNetv2_plan_and_preprocess` and `nnUNetv2_train` call, but name the trainer's class: to find it by name,
nnU-Net imports all of its trainers, and with them torchvision. Its last validation, of whole volumes, is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.training import operations
from wmlsearch.data.labels import LESION
from wmlsearch.data.slices import Slices

PACKAGE = "nnunetv2"
NUMBER, DATASET = 501, "Dataset501_Phantom"
CONFIGURATION, PLANS = "2d", "nnUNetPlans"
SPACING_MM = (1.0, 1.0, 3.0)  # the slices lie along the coarsest axis, which is how nnU-Net chooses them
ITERATIONS = 250  # steps of its epochs, whatever the data set; it validates on a fifth as many batches


@dataclass(frozen=True)
class Plan:
    """What nnU-Net has chosen for the data set."""

    batch_size: int
    size: tuple[int, int]  # of its patches, in pixels
    channels: tuple[int, ...]  # of its network, by stage
    gflop: float  # operations of a training step for one image, forward and back
    workers: int  # processes that augment

    @classmethod
    def of(cls, values: dict[str, Any]) -> Plan:
        """Return a plan from what `plan_and_preprocess` returns, which has been JSON."""
        return cls(**{**values, "size": tuple(values["size"]), "channels": tuple(values["channels"])})

    @property
    def depth(self) -> int:
        """How often the number of channels doubles: the levels below the first of a U-Net without a highest number."""
        return sum(two == 2 * one for one, two in zip(self.channels, self.channels[1:], strict=False))


def write_raw(folder: Path, train: Slices, val: Slices, slices: int) -> None:
    """Write nnU-Net's raw data set and its split: volumes of so many slices each, with the slices' grey values.

    The grey values, from 0 to 255, are written as 1 to 256. nnU-Net crops what is 0 around a head, so that its images
    would be smaller than those of other frameworks; it normalises them in any case.
    """
    raw, preprocessed = folder / "raw" / DATASET, folder / "preprocessed" / DATASET
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    split: dict[str, list[str]] = {"train": [], "val": []}
    for part, given in (("train", train), ("val", val)):
        for start in range(0, len(given), slices):
            rows, case = given.rows[start : start + slices], f"{part}_{start // slices:03d}"
            images, masks = (array[rows].cpu().numpy() for array in (given.images, given.masks))
            _write(raw / "imagesTr" / f"{case}_0000.nii.gz", images.astype(np.int16) + 1)
            _write(raw / "labelsTr" / f"{case}.nii.gz", (masks == LESION).astype(np.uint8))
            split[part].append(case)
    about = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": sum(map(len, split.values())),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))


def _write(path: Path, stack: np.ndarray[Any, Any]) -> None:
    """Write slices (N, S, S) as a volume whose third axis they lie along."""
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stack.transpose(1, 2, 0)), np.diag([*SPACING_MM, 1.0])), path)


def plan_and_preprocess(folder: str) -> dict[str, Any]:
    """Plan and preprocess the 2D configuration, and return the `Plan` as a dictionary. For a process of its own."""
    _set_paths(Path(folder))
    with contextlib.suppress(ImportError):
        importlib.import_module("setuptools")  # brings distutils, which nnU-Net imports and Python 3.12 lacks
    from nnunetv2.configuration import default_n_proc_DA, default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    processes = min(default_num_processes, os.cpu_count() or 1)
    api.extract_fingerprint_dataset(NUMBER, num_processes=processes, verbose=False)
    api.plan_experiment_dataset(NUMBER)
    api.preprocess_dataset(NUMBER, PLANS, [CONFIGURATION], [processes])
    manager = PlansManager(str(Path(folder) / "preprocessed" / DATASET / f"{PLANS}.json"))
    chosen = manager.get_configuration(CONFIGURATION)
    network = nnUNetTrainer.build_network_architecture(manager, chosen, 1, 2, True)
    height, width = map(int, chosen.patch_size)
    channels = tuple(map(int, chosen.network_arch_init_kwargs["features_per_stage"]))
    gflop = operations(network, (height, width)) / 1e9
    return asdict(Plan(int(chosen.batch_size), (height, width), channels, gflop, default_n_proc_DA))


def train(folder: str, epochs: int, iterations: int) -> None:
    """Train with nnU-Net's own trainer of so many epochs. Its log has the result. For a process of its own.

    Args:
        folder: With the preprocessed data set.
        epochs: 1, 5, 10, ...: there must be a trainer of so many.
        iterations: Steps of an epoch; `ITERATIONS` are nnU-Net's own.
    """
    _set_paths(Path(folder))
    import torch
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs as trainers

    preprocessed = Path(folder) / "preprocessed" / DATASET
    plans, about = (json.loads((preprocessed / f"{name}.json").read_text()) for name in (PLANS, "dataset"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # as `nnUNetv2_train` sets them
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        torch.backends.cudnn.benchmark = True
    trainer = getattr(trainers, trainer_name(epochs))(
        plans={**plans, "continue_training": False},
        configuration=CONFIGURATION,
        fold=0,
        dataset_json=about,
        device=torch.device(device),
    )
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = iterations, max(1, iterations // 5)
    trainer.disable_checkpointing = True
    trainer.run_training()


def trainer_name(epochs: int) -> str:
    """Return the name of nnU-Net's trainer of so many epochs."""
    return f"nnUNetTrainer_{epochs}epoch{'s' if epochs > 1 else ''}"


def epoch_seconds(folder: Path) -> list[float]:
    """Return the seconds of each epoch that has ended, from nnU-Net's log; none where there is no log yet."""
    logs = sorted((folder / "results").glob(f"{DATASET}/*/fold_0/training_log_*.txt"))
    return [float(found) for log in logs for found in re.findall(r"Epoch time: ([\d.]+) s", log.read_text())]


def _set_paths(folder: Path) -> None:
    os.environ.update({f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")})
