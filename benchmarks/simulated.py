"""A search without training: folders and rows as a real one has them, at once and without a GPU."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings, TrialConfig, read_yaml
from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.space import SearchSpace

# What an epoch reports. The last ones are none of ours: they make 25, as the benchmark of the tracking says.
METRICS = (
    "val_dice_best", "train_loss", "val_loss", "val_dice", "val_iou", "val_precision", "val_recall", "val_accuracy",
    "val_threshold", "val_soft_dice", "val_average_precision", "val_dice_patients", "learning_rate", "images_per_s",
    "epoch_s", "peak_memory_mb", *(f"other_{i}" for i in range(9)),
)  # fmt: skip
OURS = 16  # of them
DATA = {"name": "prepared", "fingerprint": "0" * 64, "size": 256, "plane": "axial", "axis": 2, "fit": "pad",
        "spacing_mm": 1.0, "split": "patient", "optimistic": False}  # fmt: skip
CERTIFICATE = {"level": "patient", "note": None, "train": [f"{i:02d}" for i in range(40)], "val": ["40", "41"]}


def row(number: int, epoch: int, epochs: int, metrics: int = OURS) -> dict[str, Any]:
    """The report of an epoch of trial `number`. The later a trial begins, the better it is: no scheduler stops one."""
    values = {name: 0.1234567 * (place + 1) / epoch for place, name in enumerate(METRICS[:metrics])}
    values["val_dice_best"] = (1 - 1 / (number + 2)) * (1 - math.exp(-epoch / 4))
    return {"epoch": epoch, "time": time.time(), "ended": "completed" if epoch == epochs else None, **values}


def space() -> SearchSpace:
    """The default space of a search."""
    path = Path(__file__).resolve().parents[1] / "search_spaces" / "unet.yaml"
    return SearchSpace.of(read_yaml(path), path.name)


def new_search(folder: Path, settings: RunSettings) -> SearchDir:
    """A search folder as `wmlsearch tune` begins it."""
    about = {
        "name": folder.name,
        "kind": "search",
        "space": {"source": "unet.yaml", "values": space().mapping()},
        "settings": settings.model_dump(),
        "data": DATA,
        "certificate": CERTIFICATE,
        "versions": {"wmlsearch": "0"},
    }
    return SearchDir.create(folder, about)


def new_trial(search: SearchDir, number: int) -> RunDir:
    """A trial's folder as the search begins it; its configuration is the paper's."""
    shared = {name: search.about()[name] for name in ("settings", "data", "versions")}
    about = {"name": f"trial-{number:04d}", "kind": "trial", "config": TrialConfig().model_dump(), **shared}
    return RunDir.create(search.trial(number).path, about)
