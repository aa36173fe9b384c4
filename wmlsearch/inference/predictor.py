"""Trained models in use: from an image as it came to the probability of lesion on the image's own grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmlsearch.config import InputError, TrialConfig
from wmlsearch.data.cutting import cut, restore
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import PLANES, VolumeGeometry, place_window
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import VALIDATION_BATCH
from wmlsearch.runs.folders import RunDir

SPACINGS_APART = 8  # an in-plane spacing further from that of training than this factor is a mistake in the header


@dataclass(frozen=True)
class Preprocessing:
    """How the slices that a model was trained on were cut: all that prediction needs to cut others alike."""

    plane: str  # sagittal, axial, coronal, native; image for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    size: int  # pixels, edge of the square slices
    fit: str  # crop: a window on the head; resize: the head scaled to the window
    spacing_mm: float | None  # of a pixel; with fit resize the training's median, each volume has its own

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Preprocessing:
        """Validate `values`, which may hold other names too. Raises InputError with all faults, named by `where`."""
        names = list(cls.__dataclass_fields__)
        if lacking := [name for name in names if name not in values]:
            raise InputError(
                f"{where}: doesn't say how its data were prepared ({', '.join(lacking)} missing), so no other image "
                "can be cut alike; train it again with this version"
            )
        plane, axis, size, fit, spacing = (values[name] for name in names)
        faults = []
        axes = {**{name: (number,) for name, number in PLANES.items()}, "native": (0, 1, 2), "image": (None,)}
        if not isinstance(plane, str) or plane not in axes:
            faults.append(f"plane must be one of {', '.join(axes)}, but got {plane!r}")
        elif isinstance(axis, bool) or axis not in axes[plane]:
            faults.append(f"axis must be {' or '.join(map(str, axes[plane]))} with plane {plane}, but got {axis!r}")
        if type(size) is not int or not 16 <= size <= 4096:
            faults.append(f"size must be a whole number from 16 to 4096, but got {size!r}")
        if fit not in ("crop", "resize"):
            faults.append(f"fit must be crop or resize, but got {fit!r}")
        number = type(spacing) in (int, float) and 0 < spacing < math.inf
        if not (spacing is None if axis is None else number):
            wanted = "null for 2-D pictures" if axis is None else "a number above 0"
            faults.append(f"spacing_mm must be {wanted}, but got {spacing!r}")
        if faults:
            raise InputError(f"{where}: what it says of its preprocessing can't be used", faults)
        return cls(plane, axis, size, fit, None if spacing is None else float(spacing))


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with the threshold that its validation patients chose."""

    unet: UNet
    config: TrialConfig
    threshold: float  # above 0, below 1: lesion is where the probability is at least this
    preprocessing: Preprocessing | None = None  # None: only for slices that are prepared already
    name: str = ""
    seed: int = 0

    @classmethod
    def load(cls, best: Path) -> TrainedModel:
        """The model in a run's `best.pt`, for prepared slices. Raises InputError for a missing or damaged file."""
        state = load_checkpoint(best)
        try:
            config, threshold = TrialConfig.of(state["config"], str(best)), float(state["report"]["val_threshold"])
            tensors, seed = dict(state["model"]), int(state["seed"])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"{best}: not a checkpoint of wmlsearch ({why}); restore it from a copy") from None
        threshold = check_threshold(threshold, f"{best}: val_threshold")
        return cls(build_unet(config, tensors, str(best)), config, threshold, name=best.parent.name, seed=seed)

    @classmethod
    def from_run(cls, run: RunDir) -> TrainedModel:
        """The model of a run folder, for images as they come. Raises InputError where it has no weights (any more)."""
        about = run.about()
        if not run.best.is_file():
            raise InputError(
                f"{run.path}: has no weights (best.pt); those of a search's best trials and final runs are kept, "
                "choose one of them"
            )
        preprocessing = Preprocessing.of(about.get("data", {}), str(run.path / "config.json"))
        return replace(cls.load(run.best), preprocessing=preprocessing, name=str(about["name"]))

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """8-bit slices (N, H, W) -> probability of lesion, (N, H, W) float32. Runs where the network is."""
        device = self.unet.head.weight.device
        found = []
        # As in validation, so that the threshold fits; the same numbers each time and, but for rounding, on any device.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for batch in torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).split(VALIDATION_BATCH):
                scaled = (batch.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
                found.append(torch.sigmoid(self.unet(scaled))[:, 0].cpu())
        return torch.cat(found).numpy()


def build_unet(config: TrialConfig, tensors: Mapping[str, Any], where: str) -> UNet:
    """The U-Net of a configuration with these weights, ready to predict. Raises InputError where they don't fit it.

    Nothing of the configuration's size is allocated before the weights are known to fit, wherever they come from.
    """
    with torch.device("meta"):
        unet = UNet(config.depth, config.base_channels, config.dropout, config.norm)
    wanted = unet.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not part of the network" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        if not isinstance(tensor, torch.Tensor):
            faults.append(f"{name} must be a tensor, but is a {type(tensor).__name__}")
        elif (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            shapes = [f"{list(it.shape)} {str(it.dtype).removeprefix('torch.')}" for it in (wanted[name], tensor)]
            faults.append(f"{name} must be {shapes[0]}, but is {shapes[1]}")
        elif not tensor.isfinite().all():
            faults.append(f"{name} holds values that are not finite")
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 6 else []
        raise InputError(f"{where}: the weights don't fit the configuration", [*faults[: 5 if more else 6], *more])
    unet.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, assign=True)
    return unet.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stubs lack memory_format


@dataclass(frozen=True)
class Prediction:
    """What a model, or several together, find in one image, on the image's own grid (`geometry.shape`)."""

    probabilities: Array  # float32
    mask: Array  # uint8, 1 where the probability is at least `threshold`
    threshold: float
    voxel_mm: tuple[float, ...] | None  # along the input's axes; None for 2-D pictures
    geometry: VolumeGeometry


def check_threshold(threshold: Any, where: str) -> float:
    """Raises InputError unless it lies between 0 and 1."""
    if type(threshold) not in (int, float) or not 0 < threshold < 1:
        raise InputError(f"{where}: must be a number above 0 and below 1, but got {threshold!r}")
    return float(threshold)


def common_preprocessing(models: Sequence[TrainedModel]) -> Preprocessing:
    """The preprocessing that all of the models share. Raises InputError where they have none, or not the same."""
    faults = [f"{model.name}: {model.preprocessing}" for model in models]
    found = {model.preprocessing for model in models}
    preprocessing = models[0].preprocessing
    if preprocessing is None or len(found) > 1:
        raise InputError("models predict together only where they were trained on data prepared alike", faults)
    return preprocessing


def slicing_geometry(source: Source, preprocessing: Preprocessing) -> VolumeGeometry:
    """Where an image is cut, as the training data were. The image is read and checked; its mask isn't opened.

    Raises InputError with what is wrong with the image, or why it can't be cut like the training data.
    """
    name = source.name(source.image[0])
    if source.is_nifti == (preprocessing.axis is None):
        trained, given = ("pictures", "a volume") if source.is_nifti else ("volumes", "a picture")
        raise InputError(f"{name}: is {given}, but the model was trained on {trained}; choose another model")
    facts, faults = examine(replace(source, mask=()), preprocessing.axis)
    if facts is None:
        raise InputError(f"{name}: can't be predicted", faults)
    spacing = preprocessing.spacing_mm
    if facts.picture_mm is not None and spacing is not None and preprocessing.fit == "crop":
        down, across = facts.picture_mm
        if not spacing / SPACINGS_APART <= min(down, across) <= spacing * SPACINGS_APART:
            raise InputError(
                f"{name}: in-plane voxel edges must be within a factor of {SPACINGS_APART} of the {spacing:.4g} mm "
                f"that the model was trained on, but are {down:.4g} x {across:.4g} mm; check the header's units"
            )
    return place_window(source, facts, preprocessing.size, preprocessing.fit, spacing)


def predict(
    models: Sequence[TrainedModel],
    source: Source,
    threshold: float | None = None,
    geometry: VolumeGeometry | None = None,
    device: torch.device | str | None = None,
) -> Prediction:
    """What a model, or several together, find in an image as it came.

    Its slices are cut as the training data were, their probabilities averaged over the models, put back onto the
    image's grid, and thresholded there. A mask that the source may have is never opened.

    Args:
        threshold: None: the model's own; for several the mean of theirs.
        geometry: what `locate` said of this source, where that is known already.
        device: where the networks go, and stay; None: a GPU where there is one.

    Raises InputError for an image that can't be read or cut (see `locate`), and models that were not trained alike.
    """
    preprocessing = common_preprocessing(models)
    if threshold is None:
        threshold = float(np.mean([model.threshold for model in models]))
    geometry = geometry or slicing_geometry(source, preprocessing)
    images = cut(replace(source, mask=()), geometry).images
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for model in models:
        model.unet.to(device)
    likely = restore(mean_probabilities([model.probabilities(images) for model in models]), geometry)
    return Prediction(likely, (likely >= threshold).astype(np.uint8), threshold, geometry.voxel_mm, geometry)


def mean_probabilities(each: Sequence[Array]) -> Array:
    """What several networks say together: the mean of arrays of one shape, float32."""
    total = np.zeros(each[0].shape, np.float32)
    for probabilities in each:
        total += probabilities
    return total / np.float32(len(each))
