"""A model as a folder to hand on: the weights as safetensors, all that says what they are in `model.json`.

Nothing in such a folder can run when it is read, wherever it comes from: two formats of plain data, each checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from wmlsearch import __version__
from wmlsearch.config import InputError, TrialConfig
from wmlsearch.inference.predictor import Preprocessing, TrainedModel, build_unet, check_threshold, common_preprocessing
from wmlsearch.runs.files import atomic_folder, check_output_folder, read_json, write_bytes, write_json

FORMAT = 1
ABOUT = "model.json"
MOST_MEMBERS = 100


@dataclass(frozen=True)
class ExportedModel:
    """What an exported folder holds: the first member is the model, all of them together are the ensemble."""

    members: tuple[TrainedModel, ...]
    ensemble_threshold: float | None = None  # None: the mean of the members' own


def is_exported(folder: Path) -> bool:
    """Whether a folder says that it holds an exported model."""
    return (folder / ABOUT).is_file()


def export_model(members: Sequence[TrainedModel], out: Path, ensemble_threshold: float | None = None) -> None:
    """Write `members` (the first is the model, all together the ensemble) into a new folder `out`.

    It appears when it is complete. Raises InputError where `out` holds something already or can't be written, and for
    models that were not trained on data prepared alike.
    """
    preprocessing = common_preprocessing(members)
    check_output_folder(out)
    with atomic_folder(out) as aside:
        aside.mkdir()
        for number, member in enumerate(members):
            tensors = {name: tensor.cpu().contiguous() for name, tensor in member.unet.state_dict().items()}
            write_bytes(aside / weights_name(number), save(tensors))
        write_json(aside / ABOUT, _about(members, preprocessing, ensemble_threshold))


def load_exported(folder: Path) -> ExportedModel:
    """The models of an exported folder. Raises InputError for what is missing, damaged or of another format."""
    path = folder / ABOUT
    if not path.is_file():
        raise InputError(f"{folder}: not an exported model, {ABOUT} is missing; make one with `wmlsearch export`")
    about = read_json(path)
    if about.get("format") != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT}, but is {about.get('format')!r}; export the model again")
    members, threshold = about.get("members"), about.get("ensemble_threshold")
    if not isinstance(members, list) or not 0 < len(members) <= MOST_MEMBERS:
        raise InputError(f"{path}: members must be a list of 1 to {MOST_MEMBERS}; export the model again")
    preprocessing = Preprocessing.of(_mapping(about, "preprocessing", str(path)), str(path))
    if threshold is not None:
        threshold = check_threshold(threshold, f"{path}: ensemble_threshold")
    models = [_member(folder, number, member, preprocessing) for number, member in enumerate(members)]
    return ExportedModel(tuple(models), threshold)


def weights_name(number: int) -> str:
    """The file of a member's weights; never read from `model.json`, so that it can't name a file elsewhere."""
    return f"member-{number}.safetensors"


def _about(members: Sequence[TrainedModel], preprocessing: Preprocessing, threshold: float | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preprocessing": asdict(preprocessing),
        "ensemble_threshold": threshold,
        "members": [
            {
                "name": member.name,
                "seed": member.seed,
                "threshold": member.threshold,
                "config": member.config.model_dump(),
            }
            for member in members
        ],
        "versions": {"wmlsearch": __version__, "torch": str(torch.__version__)},
    }


def _member(folder: Path, number: int, about: Any, preprocessing: Preprocessing) -> TrainedModel:
    where, path = f"{folder / ABOUT}: member {number}", folder / weights_name(number)
    if not isinstance(about, dict):
        raise InputError(f"{where}: must be an object, but is a {type(about).__name__}; export the model again")
    name, seed = about.get("name"), about.get("seed")
    if not isinstance(name, str) or type(seed) is not int:
        raise InputError(f"{where}: needs a name (text) and a seed (number), but has {name!r} and {seed!r}")
    config = TrialConfig.of(_mapping(about, "config", where), where)
    threshold = check_threshold(about.get("threshold"), f"{where}: threshold")
    if not path.is_file():
        raise InputError(f"{path}: is missing; copy the whole folder, or export the model again")
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); export the model again") from None
    return TrainedModel(build_unet(config, tensors, str(path)), config, threshold, preprocessing, name, seed)


def _mapping(about: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = about.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {name} must be an object, but is {value!r:.40}; export the model again")
    return value
