"""Training beside what one would use instead: plain PyTorch with AMP and torch.compile, MONAI, and nnU-Net v2.

    python -m benchmarks.frameworks [--json FILE] [--only NAME ...] [--limit-s 900]

Each framework trains and validates on the same slices of a phantom, in a process of its own, one after another. Without
a GPU the slices are few and small, which tries the script and says little about speed. nnU-Net is no dependency of this
project: `pip install nnunetv2`. A framework that is not installed, fails, or does not end in its share of the time is a
row with the reason. Needs Linux's /proc.

What is compared is an epoch: training steps, and validation on a fifth as many images. So are nnU-Net's epochs, whose
log does not tell the two apart. Images a second are the training images of an epoch over all of its seconds, and the
ratio is that of images a second. The first epoch, which compiles and captures graphs, does not count.

The frameworks do not do the same in a step; a row for each says what they do:

- pytorch: the baseline's network as plain layers in channels_last, torch.compile (its default mode), bfloat16 autocast
  where the hardware is fast at it, Adam (fused on a GPU), a DataLoader with workers and pinned memory. The loss is read
  once an epoch, and validation counts one Dice at 0.5.
- pytorch-graphs: the same with torch.compile's mode "reduce-overhead", which replays CUDA graphs. Only on a GPU.
- monai: BasicUNet with the baseline's channels, the same loop without torch.compile. A CacheDataset holds transformed
  slices on the device, and a ThreadDataLoader without workers reads them, as MONAI's guide to fast training advises.
- nnunet: nnU-Net's 2D configuration as it plans and trains it: its own network, batch size, augmentation on the CPU,
  deep supervision, loss of Dice and cross-entropy, gradient clipping, float16 and torch.compile on a GPU. It is beside
  wmlsearch with the nearest configuration, and beside the baseline, whose network is smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks import nnunet
from benchmarks.processes import Overdue, call
from benchmarks.table import Row, show
from benchmarks.training import PlainDataset, monai_unet, operations, phantom, plain_unet, repeated
from wmlsearch.config import TrialConfig
from wmlsearch.data.labels import LESION
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.model.precision import uses_bfloat16
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import UNet

PROCESSES = {"pytorch": 1, "pytorch-graphs": 1, "monai": 1, "nnunet": 3}  # of each framework, in this order
NAMES = tuple(PROCESSES)
LIMIT_S = 900.0  # for all of it
SHARE = 5  # an epoch trains so many times as many images as it validates on
WORKERS = 8  # of a DataLoader on a GPU, at most


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    size: int  # pixels, edge of a slice
    images: int  # training slices, a multiple of `batch_size` and of `case`; `SHARE` times as many as validation slices
    batch_size: int  # of the baseline
    timed: int  # epochs, after the first
    case: int  # slices in a volume of nnU-Net's raw data
    trainer_epochs: int  # of nnU-Net's trainer
    iterations: int  # in an epoch of nnU-Net


GPU = Scale(256, 1000, 5, timed=4, case=50, trainer_epochs=5, iterations=nnunet.ITERATIONS)
CPU = Scale(32, 40, 5, timed=2, case=8, trainer_epochs=5, iterations=3)


@dataclass(frozen=True)
class Measured:
    """The training of a framework."""

    what: str  # its name and version
    step: str  # what it does in a step
    images: int  # training images of an epoch
    first_s: float  # seconds of the first epoch
    epoch_s: float  # of the later ones, their median

    @property
    def images_per_s(self) -> float:
        return self.images / self.epoch_s

    @classmethod
    def of(cls, what: str, step: str, images: int, seconds: Sequence[float]) -> Measured:
        """Return what the seconds of all epochs say. Raises RuntimeError where there is none after the first."""
        if len(seconds) < 2:
            raise RuntimeError(f"{what}: {len(seconds)} epochs ended, and the first one does not count")
        return cls(what, step, images, seconds[0], statistics.median(seconds[1:]))


class Clock:
    """Shares out the time that is left among the tasks that are left."""

    def __init__(self, limit_s: float, tasks: int) -> None:
        self.end, self.tasks = time.monotonic() + limit_s, tasks

    def share_s(self) -> float:
        """Return the seconds for the next task, at least one."""
        share = (self.end - time.monotonic()) / max(1, self.tasks)
        self.tasks -= 1
        return max(1.0, share)


# ------------------------------------------------------------------------------------ each in a process of its own


def train_wmlsearch(prepared: str, scale: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Measure wmlsearch with a configuration's values. Returns a `Measured` as a dictionary, as the next ones do."""
    given, device = Scale(**scale), _device()
    data, config = _data(prepared, given, device), TrialConfig(**values)
    seconds, start = [], time.perf_counter()
    for _report in epochs(config, data, max_epochs=given.timed + 1, seed=0):
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    gflop = operations(UNet.of(config), (given.size, given.size)) / 1e9
    step = f"batch {config.batch_size}, {gflop:.3g} GFLOP an image, {_precision()}, augment {config.augment}"
    return dataclasses.asdict(Measured.of("wmlsearch", step, given.images, seconds))


def train_pytorch(prepared: str, scale: dict[str, Any], mode: str) -> dict[str, Any]:
    """Measure the baseline's network, compiled, in a plain loop."""
    given, device = Scale(**scale), _device()
    data = _data(prepared, given, "cpu")
    train, val = (_loader(slices, given.batch_size, device, shuffle) for slices, shuffle in _parts(data))
    model: nn.Module = plain_unet().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack memory_format
    step = f"{_plain_step(given)}, torch.compile ({mode})"
    compiled = cast(nn.Module, torch.compile(model, mode=mode))  # a module, since the model is one
    seconds = train_plain(compiled, train, val, device, given.timed + 1)
    return dataclasses.asdict(Measured.of(f"PyTorch {torch.__version__}", step, given.images, seconds))


def train_monai(prepared: str, scale: dict[str, Any]) -> dict[str, Any]:
    """Measure MONAI's BasicUNet on slices that a CacheDataset holds on the device."""
    from monai.data import CacheDataset, ThreadDataLoader
    from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, ScaleIntensityRanged

    given, device = Scale(**scale), _device()
    data = _data(prepared, given, "cpu")
    keys = ("image", "label")
    transform = Compose(
        [
            EnsureChannelFirstd(keys, channel_dim="no_channel"),
            ScaleIntensityRanged("image", 0, 255, 0, 1),
            EnsureTyped(keys, dtype=torch.float32, device=torch.device(device), track_meta=False),
        ]
    )
    loaders = []
    for slices, shuffle in _parts(data):
        arrays = [(slices.images[row].numpy(), slices.masks[row].numpy()) for row in slices.rows]
        items = [{"image": image, "label": mask == LESION} for image, mask in arrays]
        cached = CacheDataset(items, transform, copy_cache=False, progress=False)
        loader = ThreadDataLoader(cached, num_workers=0, batch_size=given.batch_size, shuffle=shuffle)
        loaders.append(_Pairs(loader))
    model = monai_unet()
    assert model is not None  # noqa: S101 - None only without MONAI, imported above
    step = f"{_plain_step(given, model)}, eager"
    train, val = loaders
    seconds = train_plain(model.to(device), train, val, device, given.timed + 1)
    return dataclasses.asdict(Measured.of(f"MONAI {metadata.version('monai')}", step, given.images, seconds))


def train_plain(
    model: nn.Module,
    train: Iterable[tuple[Tensor, Tensor]],
    val: Iterable[tuple[Tensor, Tensor]],
    device: str,
    count: int,
) -> list[float]:
    """Train and validate so many epochs, and return the seconds of each."""
    bfloat16 = uses_bfloat16("auto", torch.device(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=TrialConfig().learning_rate, fused=device == "cuda")
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        model.train()
        total = torch.zeros((), device=device)
        for images, masks in train:
            torch.compiler.cudagraph_mark_step_begin()
            images, masks = (tensor.to(device, non_blocking=True) for tensor in (images, masks))
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                logits = model(images)
            loss = F.binary_cross_entropy_with_logits(logits.float(), masks)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        model.eval()
        counts = torch.zeros(2, device=device)  # pixels of both, and of each
        with torch.no_grad():
            for images, masks in val:
                torch.compiler.cudagraph_mark_step_begin()
                images, masks = (tensor.to(device, non_blocking=True) for tensor in (images, masks))
                with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                    found = (model(images) > 0).float()
                counts += torch.stack([(found * masks).sum(), found.sum() + masks.sum()])
        total.item()  # waits for the device
        counts.tolist()
        seconds.append(time.perf_counter() - start)
    return seconds


class _Pairs:
    """Batches of a loader of dictionaries as images and masks."""

    def __init__(self, loader: Iterable[dict[str, Tensor]]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((batch["image"], batch["label"]) for batch in self.loader)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision() -> str:
    return "bfloat16" if uses_bfloat16("auto", torch.device(_device())) else "float32"


def _data(prepared: str, scale: Scale, device: str) -> PreparedData:
    """Return as many slices as the scale wants: those that are there, again and again."""
    data = PreparedData.open(Path(prepared), device)
    return dataclasses.replace(
        data, train=repeated(data.train, scale.images), val=repeated(data.val, scale.images // SHARE)
    )


def _parts(data: PreparedData) -> tuple[tuple[Slices, bool], tuple[Slices, bool]]:
    """Return the slices of each part, and whether they are shuffled."""
    return (data.train, True), (data.val, False)


def _loader(slices: Slices, batch_size: int, device: str, shuffle: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    workers = min(WORKERS, os.cpu_count() or 1) if device == "cuda" else 0
    return DataLoader(
        PlainDataset(slices),
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )


def _plain_step(scale: Scale, model: nn.Module | None = None) -> str:
    gflop = operations(model or plain_unet(), (scale.size, scale.size)) / 1e9
    return f"batch {scale.batch_size}, {gflop:.3g} GFLOP an image, {_precision()}, no augmentation"


# ------------------------------------------------------------------------------------------------------- the table


def measure(only: Sequence[str] = NAMES, limit_s: float = LIMIT_S, scale: Scale | None = None) -> list[Row]:
    """Return the rows of some frameworks.

    Args:
        only: Of `NAMES`.
        limit_s: For all of it. What is left is shared equally among the processes that are left.
        scale: None: `GPU` where there is one, else `CPU`.
    """
    used = scale or (GPU if _device() == "cuda" else CPU)
    chosen = [name for name in PROCESSES if name in only]
    clock = Clock(limit_s, 1 + sum(PROCESSES[name] for name in chosen))
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), phantom(Path(folder), used.case, used.size, edge=min(128, used.size)), used, clock)
        baseline = run.call(train_wmlsearch, {})
        rows = []
        for place, name in enumerate(chosen):
            clock.tasks = sum(PROCESSES[left] for left in chosen[place:])  # one that was not measured has used none
            rows += _rows(name, run, baseline)
        return rows


@dataclass(frozen=True)
class _Run:
    """What the processes of a run share."""

    folder: Path
    prepared: Path
    scale: Scale
    clock: Clock

    def call(self, function: Callable[..., dict[str, Any]], *arguments: Any) -> Measured:
        """Measure in a process of its own. Raises RuntimeError."""
        scale = dataclasses.asdict(self.scale)
        return Measured(**call(function, str(self.prepared), scale, *arguments, limit_s=self.clock.share_s()))


def _rows(name: str, run: _Run, baseline: Measured) -> list[Row]:
    """Return the rows of a framework, or one with the reason why there are none."""
    what = f"{run.scale.size} x {run.scale.size}, {_device()}:"
    try:
        if name == "nnunet":
            plan = _plan(run)
            near, other = run.call(train_wmlsearch, nearest(plan)), _train_nnunet(run, plan)
            return [
                *compare(f"{what} the nearest configuration and nnU-Net's 2D", near, other),
                *compare(f"{what} the baseline and nnU-Net's 2D", baseline, other)[:1],
            ]
        return compare(f"{what} the baseline and {name}", baseline, _measure(name, run))
    except RuntimeError as error:
        return [Row(f"{what} {name}", "", f"not measured: {_reason(error)}")]


def _measure(name: str, run: _Run) -> Measured:
    """Measure a framework other than nnU-Net. Raises RuntimeError."""
    if name == "monai":
        _check_installed("monai")
        return run.call(train_monai)
    if name == "pytorch-graphs" and _device() != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    return run.call(train_pytorch, "default" if name == "pytorch" else "reduce-overhead")


def _plan(run: _Run) -> nnunet.Plan:
    """Let nnU-Net plan for and preprocess the slices. Raises RuntimeError."""
    _check_installed(nnunet.PACKAGE)
    data = _data(str(run.prepared), run.scale, "cpu")
    nnunet.write_raw(run.folder, data.train, data.val, run.scale.case)
    return nnunet.Plan.of(call(nnunet.plan_and_preprocess, str(run.folder), limit_s=run.clock.share_s()))


def _train_nnunet(run: _Run, plan: nnunet.Plan) -> Measured:
    """Train with nnU-Net. Where its time is over first, the epochs that have ended count. Raises RuntimeError."""
    epochs_wanted, iterations = run.scale.trainer_epochs, run.scale.iterations
    with contextlib.suppress(Overdue):
        call(nnunet.train, str(run.folder), epochs_wanted, iterations, limit_s=run.clock.share_s())
    what = f"nnU-Net {metadata.version(nnunet.PACKAGE)}"
    step = (
        f"batch {plan.batch_size} of {plan.size[0]} x {plan.size[1]}, {plan.gflop:.3g} GFLOP an image, "
        f"{'float16' if _device() == 'cuda' else 'float32'}, its augmentation in {plan.workers} processes, "
        f"deep supervision, {nnunet.trainer_name(epochs_wanted)}"
    )
    return Measured.of(what, step, iterations * plan.batch_size, nnunet.epoch_seconds(run.folder))


def nearest(plan: nnunet.Plan) -> dict[str, Any]:
    """Return the values of wmlsearch's configuration that is nearest to a plan of nnU-Net."""
    return {
        "depth": plan.depth,
        "base_channels": plan.channels[0],
        "norm": "instance",
        "dropout": 0.0,
        "loss": "bce_dice",
        "dice_over": "batch",
        "optimizer": "sgd",
        "learning_rate": 1e-2,
        "weight_decay": 3e-5,
        "schedule": "poly",
        "min_learning_rate": 0.0,
        "batch_size": plan.batch_size,
        "augment": "strong",
    }


def compare(what: str, ours: Measured, other: Measured) -> list[Row]:
    """Return the row of a comparison, and that of what both do in a step."""
    cells = [
        f"{one.epoch_s:.3g} s an epoch of {one.images} + {one.images // SHARE} images, {one.images_per_s:.3g} images/s"
        for one in (ours, other)
    ]
    ours_step, other_step = (f"{one.step}; {one.first_s:.3g} s" for one in (ours, other))
    return [
        Row(what, cells[0], f"{other.what}: {cells[1]}", ours.images_per_s / other.images_per_s),
        Row("their steps, and first epochs", ours_step, other_step),
    ]


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(f"{package} isn't installed here")


def _reason(error: RuntimeError) -> str:
    """Return the last line of an error, as a cell of a table: of a process's traceback, the one with the reason."""
    return str(error).strip().splitlines()[-1].strip().replace("|", "/")[:300]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for all of it (default: %(default)g)")


if __name__ == "__main__":
    show(__doc__, measure, _add_options)
