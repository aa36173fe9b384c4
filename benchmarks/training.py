"""Training the baseline: this project's loop against plain PyTorch ones, in turn, in one process.

    python -m benchmarks.training [--json FILE] [--kernels triton|compile]

Needs the core only (torch, numpy, pydantic, pyyaml, nibabel, pillow, safetensors), so it runs on any machine with
torch; where MONAI is installed, its network is compared too. With `--kernels`, only Triton's kernels
(`wmlsearch/model/kernels.py`) or the compiled network (`compiled.py` beside it) are compared with PyTorch's layers.

The floor of a step on a GPU is counted, not measured: operations are the multiplications and additions of convolutions,
forward and back (torch's own counter). Bytes are those of activations, two each (bfloat16): going forward each layer
(convolution, normalisation, ReLU, dropout, pooling, transposed convolution, concatenation) reads its input once and
writes its output once; going back moves twice that, the gradients of both and what was kept for them. Beside these the
optimiser reads and writes weights, gradients and its two moments, 28 bytes for each weight. Layers that are fused may
move less. Memory bandwidth and matrix rate are measured in the same run, by a large copy and a large product.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.table import Row, show
from wmlsearch.config import TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.model.kernels import CHOICES, VARIABLE
from wmlsearch.model.precision import has_fast_bfloat16
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import ConvBeforeNorm, Dropout, UNet
from wmlsearch.model.validation import Validation

SIZE = 256  # pixels, edge of a slice
KERNELS = {"triton": "Triton kernels", "compile": "compiled"}  # that are compared with PyTorch's layers
REPEATS = 3  # epochs that are timed, after one that warms up
BATCHES = {5: 5.0, 32: 3.0, 128: None}  # on a GPU; and how many times faster than the plain loop they should be
PAPER_EPOCHS, PAPER_SLICES, PAPER_AIM_S = 18, (3098, 344), 15  # slices to train and to validate on
# Of the comparison of Dice: so many epochs, and a rate above the paper's, that both loops have found lesions by then.
SMALL_SIZE, SMALL_PATIENTS, SEEDS, SEED_EPOCHS, SEED_RATE = 32, 12, 16, 20, 5e-3


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Slices one by one, as a first version of anybody's training would read them."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        images, masks = self.slices.batch(torch.tensor([position]))
        return images[0], masks[0]


class PlainLoop:
    """The reference: float32 (TF32 in a GPU's convolutions, torch's default), Adam, a DataLoader, a loss read back at
    each step. On a GPU the loader has four workers and pinned memory."""

    def __init__(self, model: nn.Module, slices: Slices, config: TrialConfig, device: str, seed: int = 0) -> None:
        self.model, self.device = model.to(device), device
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        workers = min(4, os.cpu_count() or 1) if device == "cuda" else 0
        self.loader = DataLoader(
            PlainDataset(slices),
            config.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )

    def epoch(self) -> float:
        """Train an epoch; returns its seconds."""
        start = time.perf_counter()
        self.model.train()
        for images, masks in self.loader:
            loss = F.binary_cross_entropy_with_logits(self.model(images.to(self.device)), masks.to(self.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - start


def plain_unet() -> nn.Module:
    """The paper's network with torch's own dropout, and its own convolutions, which add their biases: as anybody would
    write it."""
    unet = UNet()
    for block in list(unet.modules()):
        for name, module in list(block.named_children()):
            if isinstance(module, ConvBeforeNorm):
                block.add_module(name, plain := nn.Conv2d(module.in_channels, module.out_channels, 3, padding=1))
                plain.load_state_dict(module.state_dict())
            elif isinstance(module, Dropout):
                block.add_module(name, nn.Dropout(module.p))
    return unet


def monai_unet() -> nn.Module | None:
    """MONAI's BasicUNet with our channels, normalisation and dropout; None where MONAI isn't installed."""
    try:
        from monai.networks.nets import BasicUNet
    except ImportError:
        return None
    return BasicUNet(2, 1, 1, features=(16, 32, 64, 128, 256, 16), norm="batch", dropout=0.1)


def ours(config: TrialConfig, data: PreparedData, repeats: int, seed: int = 0) -> Iterator[dict[str, float | None]]:
    """The metrics of each epoch, which is trained as it is asked for; the first one warms up."""
    for report in epochs(config, data, max_epochs=repeats + 1, seed=seed):
        yield dict(report.metrics)


def in_turn(config: TrialConfig, data: PreparedData, others: list[PlainLoop], repeats: int) -> list[list[float]]:
    """Images per second, epoch by epoch, of ours and of each of the others, one epoch of each after another."""
    measured: list[list[float]] = [[] for _ in range(1 + len(others))]
    for repeat, metrics in enumerate(ours(config, data, repeats)):
        rates = [metrics["images_per_s"] or 0.0, *(len(data.train) / other.epoch() for other in others)]
        if repeat:
            for row, rate in zip(measured, rates, strict=True):
                row.append(rate)
    return measured


def kernels_in_turn(
    config: TrialConfig, data: PreparedData, repeats: int, kernels: str
) -> tuple[tuple[list[float], list[float]], list[float]]:
    """Images per second, epoch by epoch, with `kernels` and with PyTorch's layers, in turn.

    Also returns the seconds of the first epoch of both, which compiles and warms up.
    """
    measured: tuple[list[float], list[float]] = ([], [])
    before = os.environ.get(VARIABLE)
    trainings, first_s = [], []
    try:
        for name in (kernels, "torch"):
            os.environ[VARIABLE] = name
            trainings.append(ours(config, data, repeats))
            first_s.append(next(trainings[-1])["epoch_s"] or 0.0)  # it reads the variable
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
    for rates in zip(*trainings, strict=True):
        for row, metrics in zip(measured, rates, strict=True):
            row.append(metrics["images_per_s"] or 0.0)
    return measured, first_s


def compared(what: str, rates: list[float], reference: list[float], name: str, aim: float | None, how: str) -> Row:
    ratio = statistics.median(a / b for a, b in zip(rates, reference, strict=True))
    mine, other_rate = (f"{statistics.median(values):.3g} images/s" for values in (rates, reference))
    met = None if aim is None else ratio >= aim
    return Row(what, f"{mine} ({how})", f"{other_rate}, {name}", ratio, "" if aim is None else f"{aim:g}", met)


def phantom(folder: Path, slices: int, size: int, patients: int = 5, edge: int = 128) -> Path:
    """A prepared phantom with about so many training slices, from volumes of `edge` voxels in the plane."""
    depth = max(8, slices // max(1, patients - 2))
    raw = write_phantom(folder / f"raw-{size}", patients=patients, timepoints=1, shape=(edge, edge, depth))
    prepare(raw, folder / f"prepared-{size}", PrepareOptions(plane="axial", size=size, fit="resize", jobs=1))
    return folder / f"prepared-{size}"


def repeated(slices: Slices, count: int) -> Slices:
    """So many slices: the same ones, again and again."""
    times = math.ceil(count / len(slices))
    return dataclasses.replace(
        slices, rows=slices.rows.repeat(times)[:count], patients=slices.patients.repeat(times)[:count]
    )


# ------------------------------------------------------------------------------------------------------------- CPU


def on_cpu(prepared: Path, repeats: int) -> list[Row]:
    data, config = PreparedData.open(prepared), TrialConfig()
    fast = has_fast_bfloat16(torch.device("cpu"))
    aim, how = (3.0, "bfloat16") if fast else (1.15, "float32, no bfloat16 in this hardware")
    what = f"training, baseline, batch 5, CPU, {len(data.train)} slices of {data.manifest.size}"
    others = {"plain float32 loop with DataLoader": PlainLoop(plain_unet(), data.train, config, "cpu")}
    if (monai_net := monai_unet()) is not None:
        others["the same with MONAI's BasicUNet"] = PlainLoop(monai_net, data.train, config, "cpu")
    mine, *measured = in_turn(config, data, list(others.values()), repeats)
    rows = [
        compared(what, mine, rates, name, aim, how) for (name, _), rates in zip(others.items(), measured, strict=True)
    ]
    return rows if monai_net is not None else [*rows, Row(what, "", "MONAI isn't installed here")]


def equal_dice(prepared: Path, seeds: int = SEEDS, count_epochs: int = SEED_EPOCHS) -> Row:
    """The best Dice on the validation slices after some epochs of each loop, over some seeds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, on_host = PreparedData.open(prepared, device), PreparedData.open(prepared)
    config = TrialConfig(schedule="constant", learning_rate=SEED_RATE)
    mine, plain = [], []
    for seed in range(seeds):
        *_, last = ours(config, data, count_epochs - 1, seed)
        mine.append(last["val_dice_best"] or 0.0)
        torch.manual_seed(seed)
        loop = PlainLoop(plain_unet(), on_host.train, config, device, seed)
        for _ in range(count_epochs):
            loop.epoch()
        with torch.no_grad():
            metrics = Validation(loop.model, data.val, config.loss, bfloat16=False).run().metrics()
        plain.append(metrics["val_dice_best"] or 0.0)
    apart = statistics.mean(mine) - statistics.mean(plain)
    noise = math.sqrt((statistics.variance(mine) + statistics.variance(plain)) / seeds)  # of that difference
    return Row(
        f"equal Dice: {count_epochs} epochs, {seeds} seeds, {len(data.train)} slices of {data.manifest.size}, {device}",
        f"{statistics.mean(mine):.3f} (seeds' standard deviation {statistics.stdev(mine):.3f})",
        f"{statistics.mean(plain):.3f} ({statistics.stdev(plain):.3f}), plain float32 loop",
        aim=f"difference within 2 standard errors: {apart:+.3f}, {2 * noise:.3f}",
        met=abs(apart) <= 2 * noise,
    )


# ------------------------------------------------------------------------------------------------------------- GPU


def kernels_on_gpu(prepared: Path, repeats: int, kernels: str) -> list[Row]:
    """Compare kernels with PyTorch's layers at each batch size."""
    data, rows = PreparedData.open(prepared, "cuda"), []
    for batch in BATCHES:
        given = dataclasses.replace(data, train=repeated(data.train, max(300, 10 * batch)))
        (mine, layers), first_s = kernels_in_turn(TrialConfig(batch_size=batch), given, repeats, kernels)
        what = f"training, baseline, batch {batch}, GPU, {KERNELS[kernels]}"
        rows.append(compared(what, mine, layers, "PyTorch's layers", None, "graphs"))
        seconds, seconds_of_layers = (f"{value:.3g} s" for value in first_s)
        rows.append(Row(f"first epoch, batch {batch}, {KERNELS[kernels]}", seconds, seconds_of_layers))
    return rows


def on_gpu(prepared: Path, repeats: int) -> list[Row]:
    data, host = PreparedData.open(prepared, "cuda"), PreparedData.open(prepared)
    bandwidth, rate = measured_bandwidth(), measured_matrix_rate()
    rows = [
        Row("this GPU's memory bandwidth, by a copy", f"{bandwidth / 1e12:.2f} TB/s"),
        Row("this GPU's matrix rate, by a product in bfloat16", f"{rate / 1e12:.0f} TFLOP/s"),
    ]
    for batch, aim in BATCHES.items():
        config, images = TrialConfig(batch_size=batch), max(300, 10 * batch)
        given = dataclasses.replace(data, train=repeated(data.train, images))
        loop = PlainLoop(plain_unet(), repeated(host.train, images), config, "cuda")
        mine, plain = in_turn(config, given, [loop], repeats)
        what = f"training, baseline, batch {batch}, GPU"
        rows.append(compared(what, mine, plain, "plain eager loop with TF32 and DataLoader", aim, "graphs"))
        moved, done = floor(UNet(), batch, data.manifest.size)
        step, least = batch / statistics.median(mine), max(moved / bandwidth, done / rate)
        rows.append(
            Row(
                f"share of the floor, batch {batch}",
                f"{least / step:.0%} of {step * 1e3:.2f} ms a step",
                f"{moved / 1e9:.2f} GB in {moved / bandwidth * 1e3:.2f} ms, "
                f"{done / 1e12:.3f} TFLOP in {done / rate * 1e3:.2f} ms",
            )
        )
    train, val = (repeated(*pair) for pair in zip((data.train, data.val), PAPER_SLICES, strict=True))
    paper = dataclasses.replace(data, train=train, val=val)
    start = time.perf_counter()
    seconds = [metrics["epoch_s"] or 0.0 for metrics in ours(TrialConfig(), paper, repeats)]
    first = time.perf_counter() - start - sum(seconds[1:])  # with all that it sets up
    total_s = first + (PAPER_EPOCHS - 1) * statistics.median(seconds[1:])
    what = f"the paper's training: {PAPER_EPOCHS} epochs of {PAPER_SLICES[0]} + {PAPER_SLICES[1]} slices of {SIZE}"
    result = f"{total_s:.1f} s, from {first:.1f} s for the first epoch and {seconds[-1]:.2f} s for the others"
    return [*rows, Row(what, result, ratio=PAPER_AIM_S / total_s, aim=f"{PAPER_AIM_S} s", met=total_s <= PAPER_AIM_S)]


def floor(unet: nn.Module, batch: int, size: int) -> tuple[int, int]:
    """What a training step must do at least: bytes to move, operations (see this module's docstring)."""
    elements = 0

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], given: Tensor) -> None:
        nonlocal elements
        elements += sum(tensor.numel() for tensor in inputs) + given.numel()

    def add_merge(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # a concatenation, which is no module
        nonlocal elements
        elements += 2 * inputs[0].numel()

    def add_pool(_module: nn.Module, _taken: tuple[Tensor, ...], given: Tensor) -> None:  # nor is pooling
        nonlocal elements
        elements += given.numel() + given.numel() // 4

    for name, module in unet.named_modules():
        if not list(module.children()):
            module.register_forward_hook(add)
        if name.startswith("merge.") and name.count(".") == 1:
            module.register_forward_pre_hook(add_merge)
        if name.startswith("down.") and name.count(".") == 1:
            module.register_forward_hook(add_pool)
    done = operations(unet, (size, size))  # of one image, to multiply; its pass also calls the hooks
    weights = sum(weight.numel() for weight in unet.parameters())
    return batch * 3 * 2 * elements + 28 * weights, batch * done


def operations(model: nn.Module, size: tuple[int, int]) -> int:
    """Return the multiplications and additions of a training step with one image, forward and back, on the CPU.

    The model may return several outputs, as with deep supervision.
    """
    with FlopCounterMode(display=False) as counter:
        outputs = model(torch.zeros(1, 1, *size))
        sum(output.sum() for output in (outputs if isinstance(outputs, list | tuple) else [outputs])).backward()
    return counter.get_total_flops()


def measured_bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 2 GiB."""
    source = torch.zeros(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / gpu_seconds(lambda: target.copy_(source))


def measured_matrix_rate() -> float:
    """Operations per second of a product of two bfloat16 matrices, 8192 x 8192."""
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / gpu_seconds(lambda: one @ one)


def gpu_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Median, by the GPU's own clock."""
    measured = []
    for repeat in range(repeats + 2):  # two to warm up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if repeat >= 2:
            measured.append(start.elapsed_time(end) / 1e3)
    return statistics.median(measured)


def measure(slices: int = 30, repeats: int = REPEATS, kernels: str = "torch") -> list[Row]:
    """All rows: about `slices` training slices on CPUs, `repeats` timed epochs of each loop.

    With `kernels` of KERNELS only rows that compare those with PyTorch's layers, on a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = phantom(Path(folder), slices, SIZE)
        if kernels in KERNELS:
            has_gpu = torch.cuda.is_available()
            return kernels_on_gpu(prepared, repeats, kernels) if has_gpu else [Row(KERNELS[kernels], "no GPU here")]
        small = phantom(Path(folder), 120, SMALL_SIZE, SMALL_PATIENTS, SMALL_SIZE)
        rows = [*on_cpu(prepared, repeats), equal_dice(small)]
        if torch.cuda.is_available():
            return [*rows, *on_gpu(prepared, repeats)]
    return [*rows, Row("training, baseline, GPU", "no GPU here")]


if __name__ == "__main__":
    show(
        __doc__,
        measure,
        lambda parser: parser.add_argument("--kernels", choices=CHOICES, default="torch", help="to compare"),
    )
