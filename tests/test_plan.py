"""The forecast of a search: rungs as Ray's scheduler makes them, checkpoints as they are written, one real run."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from torch.utils.flop_counter import FlopCounterMode

from wmlsearch.cli import main
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.timing import timed
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import UNet
from wmlsearch.search.cluster import Slots, ray_at
from wmlsearch.search.nodes import parcel
from wmlsearch.search.plan import Rung, between, checkpoint_bytes, forecast, multiply_adds, rungs, to_measure
from wmlsearch.space import SearchSpace

# ------------------------------------------------------------------------------------------------------------- rungs


def test_the_rungs_of_27_trials() -> None:
    levels = rungs(27, 27, 1, 3)
    assert [level.epoch for level in levels] == [1, 3, 9, 27]
    assert levels[0] == Rung(1, 27, 27)
    # 1 + 26/3 + (1/2 + 1/3 + ... + 1/27)/3: the third that is best, and the first ones, which few stand before
    assert levels[1].trials == pytest.approx(1 + 26 / 3 + sum(1 / n for n in range(2, 28)) / 3)
    assert [round(level.trials, 2) for level in levels] == [27, 10.63, 4.87, 2.71]
    assert [level.epochs for level in levels] == pytest.approx(
        [level.trials * span for level, span in zip(levels, (1, 2, 6, 18), strict=True)]
    )


def test_of_many_trials_a_third_goes_on() -> None:
    levels = rungs(100_000, 9, 1, 3)
    assert levels[1].trials / levels[0].trials == pytest.approx(1 / 3, rel=1e-3)
    assert levels[2].trials / levels[1].trials == pytest.approx(1 / 3, rel=1e-3)
    assert rungs(100_000, 4, 1, 4)[1].trials == pytest.approx(25_000, rel=1e-3)


@pytest.mark.parametrize("grace", [9, 10, 100])
def test_where_no_rung_lies_before_the_end_all_trials_go_through(grace: int) -> None:
    assert rungs(5, 9, grace, 3) == (Rung(9, 5, 45),)


def test_a_single_trial_goes_through() -> None:
    assert rungs(1, 9, 1, 3) == (Rung(1, 1, 1), Rung(3, 1, 2), Rung(9, 1, 6))
    assert rungs(1, 1, 1, 3) == (Rung(1, 1, 1),)


@pytest.mark.parametrize(("trials", "most", "grace", "factor"), [(6, 9, 2, 3), (27, 27, 1, 3), (20, 18, 2, 2)])
def test_ray_stops_as_many(trials: int, most: int, grace: int, factor: int) -> None:
    expected = sum(level.epochs for level in rungs(trials, most, grace, factor))
    assert epochs_with_ray(trials, most, grace, factor, keeps_rank=False) == pytest.approx(expected, rel=0.05)
    # Where who is good stays good, the mediocre that came first have set a low bar at the later rungs: Ray trains more.
    assert expected < epochs_with_ray(trials, most, grace, factor, keeps_rank=True) < 1.6 * expected


def epochs_with_ray(trials: int, most: int, grace: int, factor: int, keeps_rank: bool) -> float:
    """Epochs of a search under Ray's own scheduler, with scores by chance, on average."""
    chance, rounds, spent = random.Random(1), 300, 0  # noqa: S311
    for _ in range(rounds):
        scheduler = ASHAScheduler("epoch", "dice", "max", max_t=most, grace_period=grace, reduction_factor=factor)
        for number in range(trials):
            trial, dice = SimpleNamespace(trial_id=str(number)), chance.random()
            scheduler.on_trial_add(None, trial)
            for epoch in range(1, most + 1):
                spent += 1
                result = {"epoch": epoch, "dice": dice if keeps_rank else chance.random()}
                if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                    break
    return spent / rounds


# ------------------------------------------------------------------------------------------------ sizes of a network


@pytest.mark.parametrize(("depth", "channels", "size"), [(4, 16, 256), (2, 8, 33), (1, 3, 32), (5, 8, 64)])
def test_multiply_adds_are_those_of_torch(depth: int, channels: int, size: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        UNet(depth, channels)(torch.zeros(1, 1, size, size))
    assert counter.get_total_flops() == 2 * multiply_adds(depth, channels, size)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("depth", "channels", "norm"), [(2, 4, "batch"), (3, 8, "instance"), (4, 16, "batch")])
def test_checkpoints_are_as_big_as_written(
    optimizer: str, depth: int, channels: int, norm: str, prepared: Path, tmp_path: Path
) -> None:
    config = TrialConfig.of({"depth": depth, "base_channels": channels, "norm": norm, "optimizer": optimizer})
    data, last, best = PreparedData.open(prepared), tmp_path / "last.pt", tmp_path / "best.pt"
    next(epochs(config, data, max_epochs=2, last=last, best=best))
    assert checkpoint_bytes(config) == pytest.approx((last.stat().st_size, best.stat().st_size), rel=0.04)


# --------------------------------------------------------------------------------------------------------- measuring


def test_between_measured_points() -> None:
    assert between([(3, 30), (1, 10), (2, 40)], [1, 1.5, 2.5, 3]) == [10, 25, 35, 30]
    assert between([(1, 10), (2, 20)], [0, 9]) == [10, 20]
    assert between([(1, 10), (1, 20)], [1]) == [15]


def test_what_is_measured() -> None:
    sample = [
        TrialConfig(depth=depth, base_channels=channels, batch_size=batch)
        for depth, channels in ((2, 8), (3, 4), (2, 4))
        for batch in (2, 8, 32)
    ]
    chosen = to_measure(sample, 32)
    assert chosen == {"cheapest": sample[7], "paper": TrialConfig(), "dearest": sample[1]}


def test_timing_takes_whole_batches_where_there_is_time(prepared: Path) -> None:
    timing = timed(TrialConfig(depth=1, base_channels=2), PreparedData.open(prepared), limit_s=2)
    assert timing.images == 4  # 48 slices in 10 batches of 4 or 5
    assert min(timing.val_s, timing.train_s) > 0
    assert 0 < timing.least_memory_mb <= timing.step_memory_mb <= timing.peak_memory_mb
    hurried = timed(TrialConfig(depth=1, base_channels=2), PreparedData.open(prepared), limit_s=1e-9)
    assert hurried.images == 3


def test_several_workers_are_timed_as_one_trial(prepared: Path) -> None:
    space = SearchSpace.of({"depth": {"choices": [1, 2]}, "base_channels": 4})
    settings = RunSettings(trials=2, epochs=3, baseline=False)
    slots = Slots(count=1, workers=2, cpus=1, gpus=0)
    with ray_at(None):
        made = forecast(space, settings, parcel(prepared, send=False), slots, slots)
    assert made.baseline_s == made.baseline_epochs == made.gpu_hours == 0
    assert made.search_s > 0
    assert json.loads(json.dumps(made.as_dict())) == made.as_dict()


# ---------------------------------------------------------------------------------------------------------- the verb


def test_plan_from_the_command_line(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    space = tmp_path / "small.yaml"
    space.write_text("depth: {choices: [1, 2]}\nbase_channels: {choices: [2, 4]}\n")
    result = CliRunner().invoke(
        main, ["plan", "small.yaml", "--data", str(prepared), "--trials", "4", "--epochs", "5"], prog_name="wmlsearch"
    )
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert re.fullmatch(
        r"trials would run \d at a time, each 1 worker with \d+ CPUs? each; timing three configurations ...", lines[0]
    )
    assert [line.split() for line in lines[1:6]] == [
        ["rung", "trials", "epochs"],
        ["up", "to", "epoch", "2", "4.0", "8.0"],
        ["up", "to", "epoch", "5", "2.4", "7.1"],
        ["baseline", "1.0", "5.0"],
        ["all", "20.1"],
    ]
    assert re.fullmatch(
        r"time      .+ \(start .+, search .+, baseline .+\); an epoch of a trial takes [\d.e-]+ s", lines[6]
    )
    assert re.fullmatch(r"disk      [\d.]+ MB for checkpoints", lines[7])
    assert re.fullmatch(r"memory    \d+ MiB at the peak, for each worker", lines[8])
    assert re.fullmatch(r"measured  on .+, \d at a time:", lines[9])
    assert [line.split(":")[0].split() for line in lines[10:]] == [
        ["cheapest", "depth", "1,", "base_channels", "2"],
        ["paper", "depth", "4,", "base_channels", "16"],
        ["dearest", "depth", "2,", "base_channels", "4"],
    ]
    assert list(tmp_path.iterdir()) == [space]  # nothing was written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paper"], "paper: holds values only"),
        (["quick", "--trials", "0"], "--trials must be greater than or equal to 1, but got 0"),
        (["quick", "--workers-per-trial", "1000"], "this configuration can't be trained|doesn't fit on what there is"),
        (["quick", "--gpus-per-worker", "99"], "doesn't fit on what there is"),
        (["quick", "--ray-address", "127.0.0.1:1"], "127.0.0.1:1: no Ray cluster answers there"),
    ],
)
def test_what_tune_refuses(words: list[str], message: str, prepared: Path, tmp_path: Path) -> None:
    for verb in ("plan", "tune"):
        more = ["--out", str(tmp_path / "runs")] if verb == "tune" else []
        result = CliRunner().invoke(main, [verb, *words, "--data", str(prepared), *more], prog_name="wmlsearch")
        assert result.exit_code == 2, result.output
        assert re.search(message, result.stderr)
