"""A trained network with all that prediction needs: its configuration, threshold and preprocessing."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.data.network_input import scale_grey_values, stack_positions
from wmlsearch.errors import InputError
from wmlsearch.inference.graphed_networks import networks_on
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import VALIDATION_BATCH
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.objectives import best_epoch

MAX_FAULTS = 6  # of a file of weights, in a message


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with the threshold that was chosen on its validation patients."""

    unet: UNet
    config: TrialConfig
    threshold: float  # above 0, below 1: a pixel is lesion if its probability is at least this
    preprocessing: Preprocessing | None = None  # None: only for slices that are prepared already
    name: str = ""
    seed: int = 0
    fold: int | None = None  # of development patients, on which it was validated; None: not known
    postprocessing: Postprocessing = NO_POSTPROCESSING  # what it does beside the threshold
    epoch: tuple[int, float] | None = None  # of its weights: the number, and when it ended, Unix s; None: not known

    @classmethod
    def load(cls, best: Path, location: str = "") -> TrainedModel:
        """Load a run's `best.pt`, for prepared slices. Raises InputError if it is missing or damaged.

        Args:
            best: The file.
            location: What errors call the file. "": its path.
        """
        location = location or str(best)
        state = load_checkpoint(best, location)
        try:
            config = TrialConfig.from_record(state["config"], location)
            chosen = "threshold" in state  # older versions used the best threshold for the pooled Dice
            threshold = float(state["threshold"] if chosen else state["report"]["val_threshold"])
            tensors, seed = dict(state["model"]), int(state["seed"])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{location}: not a checkpoint of wmlsearch ({reason}); restore it from a copy") from None
        threshold = check_threshold(threshold, f"{location}: {'threshold' if chosen else 'val_threshold'}")
        unet = build_unet(config, tensors, location)
        return cls(unet, config, threshold, name=best.parent.name, seed=seed, epoch=_epoch_of(state.get("report")))

    @classmethod
    def from_run(cls, run: RunDir, weights: Path | None = None, location: str = "") -> TrainedModel:
        """Load the model of a run folder, for raw images. Raises InputError if the run has no weights (any more).

        Args:
            run: The run.
            weights: The file of its weights. None: `best.pt` in its folder.
            location: What errors call this file. "": its path.
        """
        record, weights = run.record(), weights or run.best
        if not weights.is_file():
            raise InputError(
                f"{run.path}: has no weights (best.pt); only a search's best trials and its judgement runs keep "
                "theirs, choose one of them"
            )
        preprocessing = Preprocessing.of(record.data.as_json(), str(run.file("record")))
        return replace(cls.load(weights, location), preprocessing=preprocessing, name=record.name, fold=record.fold)

    def has_latest_weights(self, run: RunDir) -> bool:
        """Return whether the weights are those of the best epoch in the run folder, or of one that it lacks.

        A copy of the weights in a run folder is out of date where the run was resumed and found a better epoch.
        """
        rows = run.rows()
        best = best_epoch(rows, run.record().settings.objective)
        if self.epoch is None or best is None or self.epoch[0] > len(rows):
            return True
        return self.epoch == (best.epoch, best.time)

    @property
    def needs_whole_volumes(self) -> bool:
        """Whether a slice cannot be predicted without the others of its scan."""
        return self.config.input_slices > 1 or self.postprocessing.smallest_lesion_mm3 > 0

    @property
    def can_mirror(self) -> bool:
        """Whether the head can be mirrored from left to right, and the network then sees something else.

        Sagittal slices are mirrored by the order of the scan, which a network of single slices does not see. Where left
        is in a picture is not known.
        """
        axis = None if self.preprocessing is None else self.preprocessing.axis
        return axis is not None and (axis > 0 or self.config.input_slices > 1)

    def probabilities(self, images: np.ndarray, head_grey: Sequence[tuple[float, float]] = ()) -> np.ndarray:
        """8-bit slices (N, H, W) -> probability of lesion, (N, H, W) float32. Runs on the network's device.

        Args:
            images: The slices; all those of one volume, in its order, if the model `needs_whole_volumes`.
            head_grey: Mean and standard deviation of the head, one pair for the volume, or one for each slice. Needed
                for z-scores only.

        Raises ValueError without `head_grey` for a network that sees z-scores.
        """
        device = self.unet.head.weight.device
        slices = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        levels = None
        if self.config.intensity == "zscore":
            if not head_grey:
                raise ValueError("a network that sees z-scores needs the grey values of the head")
            levels = torch.tensor(head_grey, dtype=torch.float32).expand(len(slices), 2).to(device)
        batches = []
        for positions in stack_positions(len(slices), self.config.input_slices).to(device).split(VALIDATION_BATCH):
            centres = positions[:, self.config.input_slices // 2]
            grey = None if levels is None else levels[centres]
            batches.append(self._probabilities_of_input(scale_grey_values(slices[positions], grey)))
        return torch.cat(batches).cpu().numpy()  # in one copy

    def probabilities_of_input(self, batch: torch.Tensor) -> torch.Tensor:
        """Input of the network, (N, input_slices, H, W) float32 -> probability of lesion, (N, H, W), on the CPU."""
        return self._probabilities_of_input(batch).cpu()

    @torch.inference_mode()
    def _probabilities_of_input(self, batch: torch.Tensor) -> torch.Tensor:
        probabilities = self._probabilities(batch)
        if self.postprocessing.mirror_averaging and self.can_mirror:
            is_sagittal = self.preprocessing is not None and self.preprocessing.axis == 0
            mirrored = self._probabilities(batch.flip(1 if is_sagittal else 3))
            probabilities = (probabilities + (mirrored if is_sagittal else mirrored.flip(2))) / 2
        return probabilities

    def _probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        # As in validation, which chose the threshold. Repeatable, and equal on all devices except for rounding.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            logits = networks_on(batch.device)(self.unet, batch)
        return torch.sigmoid(logits)[:, 0]


def _epoch_of(report: object) -> tuple[int, float] | None:
    """Return number and end of the epoch that a checkpoint reports, if it does."""
    if not isinstance(report, Mapping):
        return None
    number, end_s = report.get("epoch"), report.get("time")
    return (number, end_s) if isinstance(number, int) and isinstance(end_s, float) else None


def build_unet(config: TrialConfig, tensors: Mapping[str, Any], where: str) -> UNet:
    """Return the U-Net of a configuration with these weights, ready to predict.

    Allocates nothing of the configuration's size before the weights are known to fit, since files may come from
    anywhere. Raises InputError, named by `where`, if they do not fit.
    """
    with torch.device("meta"):
        unet = UNet.of(config)
    if faults := _weight_faults(unet.state_dict(), tensors):
        more = len(faults) - MAX_FAULTS + 1
        shown = faults if len(faults) <= MAX_FAULTS else [*faults[: MAX_FAULTS - 1], f"and {more} more"]
        raise InputError(f"{where}: the weights do not fit the configuration", shown)
    unet.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, assign=True)
    return unet.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stubs lack memory_format


def _weight_faults(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, Any]) -> list[str]:
    """Return how `tensors` differ from the names, shapes and types of a network's state."""
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    faults += [f"{name} is not part of the network" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if not isinstance(tensor, torch.Tensor):
            faults.append(f"{name} must be a tensor, but is a {type(tensor).__name__}")
        elif (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            faults.append(f"{name} must be {_shape_and_type(expected[name])}, but is {_shape_and_type(tensor)}")
        elif not tensor.isfinite().all():
            faults.append(f"{name} has values that are not finite")
    return faults


def _shape_and_type(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_threshold(threshold: Any, where: str) -> float:
    """Return the threshold. Raises InputError unless it is a number above 0 and below 1."""
    is_number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)  # NumPy's numbers are Real too
    if not is_number or not 0 < threshold < 1:
        raise InputError(f"{where}: must be a number above 0 and below 1, but got {threshold!r}")
    return float(threshold)


def common_preprocessing(models: Sequence[TrainedModel]) -> Preprocessing:
    """Return the preprocessing that all models share. Raises InputError if they have none or different ones."""
    preprocessing = models[0].preprocessing
    if preprocessing is None or any(model.preprocessing != preprocessing for model in models):
        raise InputError(
            "models can only be used together if their training data were prepared in the same way",
            [f"{model.name}: {model.preprocessing}" for model in models],
        )
    return preprocessing
