"""Training the paper's point: this project's loop against a plain PyTorch one, in turn, in one process.

    python -m benchmarks.training [--size 256] [--slices 40] [--repeats 3]

Needs the core only (torch, numpy, pydantic, pyyaml, nibabel, pillow), so it runs on any machine with torch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from wmlsearch.config import TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.model.training import epochs, has_fast_bfloat16
from wmlsearch.model.unet import UNet


class PlainDataset(Dataset[tuple[Tensor, Tensor]]):
    """Slices one by one, as a first version of anybody's training would read them."""

    def __init__(self, slices: Slices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        images, masks = self.slices.batch(torch.tensor([position]))
        return images[0], masks[0]


def plain_epoch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[Tensor, Tensor]]
) -> None:
    """The reference: float32, a DataLoader, one loss read back at each step."""
    device = next(model.parameters()).device
    model.train()
    for images, masks in loader:
        loss = F.binary_cross_entropy_with_logits(model(images.to(device)), masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def main() -> None:
    """Print a table: images per second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--slices", type=int, default=40, help="about so many training slices")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        depth = max(8, given.slices // 3)
        raw = write_phantom(Path(folder) / "raw", patients=5, timepoints=1, shape=(128, 128, depth))
        prepare(raw, Path(folder) / "prepared", PrepareOptions(size=given.size, jobs=1))
        data = PreparedData.open(Path(folder) / "prepared", device)
        config = TrialConfig()
        ours: list[float] = []
        plain: list[float] = []
        reports = epochs(config, data, max_epochs=given.repeats + 1)
        on_cpu = PreparedData.open(Path(folder) / "prepared").train
        loader = DataLoader(PlainDataset(on_cpu), config.batch_size, shuffle=True)
        model = UNet().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        for repeat in range(given.repeats + 1):
            report = next(reports)
            start = time.perf_counter()
            plain_epoch(model, optimizer, loader)
            seconds = time.perf_counter() - start
            if repeat:  # the first warms up
                ours.append(report.metrics["images_per_s"] or 0.0)
                plain.append(len(on_cpu) / seconds)
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()}, CPU"
    precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
    print(
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {len(on_cpu)} slices of {given.size}"
    )
    print("| training, paper's point, batch 5 | images/s | ratio |")
    print("|---|---|---|")
    print(f"| plain float32 loop with DataLoader | {statistics.median(plain):.1f} | 1 |")
    print(f"| wmlsearch ({precision}) | {statistics.median(ours):.1f} | {ratio:.1f} |")
    if device == "cpu":
        print("no GPU here: nothing is said about GPUs")


if __name__ == "__main__":
    main()
