"""An exported model: a folder with the weights as safetensors and everything else in `model.json`.

Both formats are plain data, and each value is checked when it is read. Nothing in such a folder can be executed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from wmlsearch import __version__
from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.inference.postprocessing import Postprocessing
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel, build_unet, check_threshold, common_preprocessing
from wmlsearch.runs.files import atomic_folder, check_output_folder, read_json, write_bytes, write_json

FORMAT = 2  # of models that do more than to compare with their threshold; all others have 1
READ_FORMATS = (1, FORMAT)
MODEL_FILE = "model.json"
MAX_MEMBERS = 100


@dataclass(frozen=True)
class ExportedModel:
    """The models of an exported folder: the first member is the model, all members together are the ensemble."""

    members: tuple[TrainedModel, ...]
    ensemble_threshold: float | None = None  # None: the mean of the members' thresholds

    @property
    def threshold_of_all(self) -> float:
        """The threshold of all members together; of a single one, its own."""
        if self.ensemble_threshold is not None and len(self.members) > 1:
            return self.ensemble_threshold
        return float(np.mean([member.threshold for member in self.members]))


def is_exported(folder: Path) -> bool:
    """Return whether a folder has the file of an exported model."""
    return (folder / MODEL_FILE).is_file()


def export_model(members: Sequence[TrainedModel], out: Path, ensemble_threshold: float | None = None) -> None:
    """Write `members` (the first is the model, all together the ensemble) into a new folder `out`.

    The folder appears when it is complete. Raises InputError if `out` is not empty or cannot be written, and for models
    whose training data were not prepared in the same way.
    """
    preprocessing = common_preprocessing(members)
    check_output_folder(out)
    with atomic_folder(out) as partial:
        partial.mkdir()
        checksums = []
        for number, member in enumerate(members):
            tensors = {name: tensor.cpu().contiguous() for name, tensor in member.unet.state_dict().items()}
            weights = save(tensors)
            checksums.append(hashlib.sha256(weights).hexdigest())
            write_bytes(partial / weights_name(number), weights)
        write_json(partial / MODEL_FILE, _model_json(members, checksums, preprocessing, ensemble_threshold))


def load_exported(folder: Path) -> ExportedModel:
    """Load the models of an exported folder. Raises InputError if it is missing, damaged or of another format."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise InputError(f"{folder}: not an exported model, {MODEL_FILE} is missing; make one with `wmlsearch export`")
    content = read_json(path)
    if content.get("format") not in READ_FORMATS:
        formats = " or ".join(map(str, READ_FORMATS))
        raise InputError(f"{path}: format must be {formats}, but is {content.get('format')!r}; export the model again")
    members, threshold = content.get("members"), content.get("ensemble_threshold")
    if not isinstance(members, list) or not 0 < len(members) <= MAX_MEMBERS:
        raise InputError(f"{path}: members must be a list of 1 to {MAX_MEMBERS}; export the model again")
    preprocessing = Preprocessing.of(_mapping(content, "preprocessing", str(path)), str(path))
    if threshold is not None:
        threshold = check_threshold(threshold, f"{path}: ensemble_threshold")
    postprocessing = _postprocessing(content, str(path))
    models = [
        replace(_load_member(folder, number, member, preprocessing), postprocessing=postprocessing)
        for number, member in enumerate(members)
    ]
    return ExportedModel(tuple(models), threshold)


def weights_name(number: int) -> str:
    """Return the file name of a member's weights. It is never read from `model.json`, which could name other files."""
    return f"member-{number}.safetensors"


def _model_json(
    members: Sequence[TrainedModel], checksums: Sequence[str], preprocessing: Preprocessing, threshold: float | None
) -> dict[str, Any]:
    return {
        "format": FORMAT if members[0].postprocessing else 1,
        "preprocessing": preprocessing.as_json(),
        "ensemble_threshold": threshold,
        **({"postprocessing": asdict(members[0].postprocessing)} if members[0].postprocessing else {}),
        "members": [
            {
                "name": member.name,
                "seed": member.seed,
                "fold": member.fold,
                "threshold": member.threshold,
                "config": member.config.model_dump(),
                "sha256": checksum,
            }
            for member, checksum in zip(members, checksums, strict=True)
        ],
        "versions": {"wmlsearch": __version__, "torch": str(torch.__version__)},
    }


def _load_member(folder: Path, number: int, member: Any, preprocessing: Preprocessing) -> TrainedModel:
    where, path = f"{folder / MODEL_FILE}: member {number}", folder / weights_name(number)
    if not isinstance(member, dict):
        raise InputError(f"{where}: must be an object, but is a {type(member).__name__}; export the model again")
    name, seed = member.get("name"), member.get("seed")
    if not isinstance(name, str) or type(seed) is not int:
        raise InputError(
            f"{where}: needs a name (text) and a seed (number), but has {name!r} and {seed!r}; export the model again"
        )
    fold = member.get("fold")  # files of older versions have none
    if fold is not None and type(fold) is not int:
        raise InputError(f"{where}: fold must be a number or null, but is {fold!r}; export the model again")
    config = TrialConfig.from_record(_mapping(member, "config", where), where)
    threshold = check_threshold(member.get("threshold"), f"{where}: threshold")
    if not path.is_file():
        raise InputError(f"{path}: is missing; copy the whole folder, or export the model again")
    try:
        weights = path.read_bytes()
        tensors = load(weights)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); export the model again") from None
    unet = build_unet(config, tensors, str(path))
    checksum = member.get("sha256")  # files of older versions have none
    if checksum is not None and checksum != hashlib.sha256(weights).hexdigest():
        raise InputError(
            f"{path}: is not the file that was exported, since its SHA-256 differs from that in {MODEL_FILE}; copy the "
            "whole folder again, or export the model again"
        )
    return TrainedModel(unet, config, threshold, preprocessing, name, seed, fold)


def _postprocessing(content: Mapping[str, Any], where: str) -> Postprocessing:
    """Return what the model does beside the threshold: nothing in files without it."""
    values = _mapping(content, "postprocessing", where) if "postprocessing" in content else {}
    mirror, smallest = values.get("mirror_averaging", False), values.get("smallest_lesion_mm3", 0.0)
    if type(mirror) is not bool or type(smallest) not in (int, float) or not 0 <= smallest < math.inf:
        raise InputError(
            f"{where}: postprocessing must have mirror_averaging (true or false) and smallest_lesion_mm3 (a number "
            f"from 0), but has {mirror!r} and {smallest!r}; export the model again"
        )
    return Postprocessing(mirror, float(smallest))


def _mapping(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be an object, but is {value!r:.40}; export the model again")
    return value
