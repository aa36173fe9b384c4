"""The forecast of a search, compared with Ray's schedulers, written checkpoints and real runs."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import ray
import torch
from click.testing import CliRunner
from processes import watching_sockets
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from records import DATA_RECORD
from torch.utils.flop_counter import FlopCounterMode

from wmlsearch.cli import main
from wmlsearch.cli.plan import plan
from wmlsearch.cli.tune import tune
from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.forecast import cost, measurement
from wmlsearch.forecast.cost import _ExpectedTimes, forecast, interpolate
from wmlsearch.forecast.measurement import TimedConfiguration
from wmlsearch.forecast.workload import configurations_to_time, multiply_adds, work
from wmlsearch.model.throughput import Throughput, measure_throughput
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import UNet
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search.checkpoint_size import checkpoint_bytes, most_checkpoint_bytes
from wmlsearch.search.rungs import Rung, rungs, rungs_within
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace
from wmlsearch.workflows import forecast as forecast_workflow
from wmlsearch.workflows.placement import LOCAL
from wmlsearch.workflows.search_plan import SearchPlan


@pytest.fixture(autouse=True)
def _a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


# ------------------------------------------------------------------------------------------------------------- rungs


def test_the_rungs_of_27_trials() -> None:
    levels = rungs(27, 27, 1, 3)
    assert [level.epoch for level in levels] == [1, 3, 9, 27]
    assert levels[0] == Rung(1, 27, 27)
    # 1 + 26/3 + (1/2 + 1/3 + ... + 1/27)/3: the best third, and the first trials, which few precede
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
    # If the ranking never changes, mediocre first trials have set a low bar at the later rungs, so Ray trains more.
    assert expected < epochs_with_ray(trials, most, grace, factor, keeps_rank=True) < 1.6 * expected


def epochs_with_ray(trials: int, most: int, grace: int, factor: int, keeps_rank: bool) -> float:
    """Return the mean epochs of simulated searches with random scores under Ray's own scheduler."""
    chance, rounds, spent = random.Random(1), 300, 0  # noqa: S311 - a simulation
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


@pytest.mark.parametrize(("trials", "most", "grace", "factor"), [(6, 9, 2, 3), (27, 27, 1, 3), (20, 18, 2, 2)])
def test_the_brackets_of_hyperband_stop_as_many(trials: int, most: int, grace: int, factor: int) -> None:
    levels = rungs(trials, most, grace, factor, "hyperband")
    chance, rounds, spent = random.Random(1), 100, 0  # noqa: S311 - a simulation
    for seed in range(rounds):
        scheduler = Scheduler(
            RunSettings(scheduler="hyperband", epochs=most, grace_epochs=grace, reduction_factor=factor, seed=seed)
        )
        for number in range(trials):
            for epoch in range(1, most + 1):
                spent += 1
                if scheduler.report(number, epoch, epoch + chance.random()):  # so each epoch is the best so far
                    break
    assert levels[0].trials == pytest.approx(trials)
    assert spent / rounds == pytest.approx(sum(level.epochs for level in levels), rel=0.05)


def test_rungs_without_asha() -> None:
    assert rungs(5, 9, 2, 3, "none") == (Rung(9, 5, 45),)
    assert rungs(7, 9, 2, 3, "median") == (
        Rung(2, 7, 14),
        Rung(9, 5, 35),
    )  # three that it cannot compare, half of the others
    assert rungs(2, 9, 2, 3, "median")[-1].trials == 2
    assert rungs(7, 9, 9, 3, "median") == rungs(7, 9, 9, 3, "hyperband") == (Rung(9, 7, 63),)


def test_a_budget_ends_a_search_before_its_last_trial() -> None:
    settings = RunSettings(trials=27, epochs=27, grace_epochs=1)
    whole = rungs(27, 27, 1, 3)
    assert rungs_within(settings, 1000) == whole
    for most in (10, 50, 100):
        levels = rungs_within(settings, most)
        assert sum(level.epochs for level in levels) == pytest.approx(most)
        assert levels[0].trials < 27
    slots, gpus = Slots(2, 1, 1, 0.0), Slots(2, 2, 1, 0.5)

    def first(of: Slots = slots, **budgets: Any) -> tuple[float, str]:
        # a start of 10 s, the first trial takes 540 s, an epoch of another 10 s
        times = _ExpectedTimes(start_s=10, baseline_s=540, epoch_s=10)
        return cost._first_budget(RunSettings(epochs=27, **{"baseline": False, **budgets}), of, times)

    assert first() == (float("inf"), "")
    assert first(max_epochs_total=30) == (30, "--max-epochs-total 30")
    hour = (27 + (2 * 3590 - 540) / 10, "--max-hours 1")  # two slots; the first trial costs more than the others
    assert first(max_hours=1) == hour
    assert first(max_hours=1, max_epochs_total=10_000) == hour
    assert first(gpus, max_gpu_hours=1) == (27 + (3600 - 540) / 10, "--max-gpu-hours 1")  # two workers with half a GPU
    # a selection run and a judgement run of the baseline and of a trial, at most 27 epochs each
    four: dict[str, Any] = {"baseline": True, "confirm_top": 1, "confirm_seeds": 1, "final_runs": 1}
    assert first(max_epochs_total=200, **four) == (200 - 4 * 27, "--max-epochs-total 200")
    assert first(max_hours=0.02)[0] == pytest.approx(27 * 2 * 62 / 540)  # not even the first trial ends


def test_gpu_hours_are_reserved_for_final_runs_only_where_there_are_some() -> None:
    throughput = Throughput(5, 0.01, 0.01, one_image_memory_mb=1, step_memory_mb=1, peak_memory_mb=1)
    timed = tuple(TimedConfiguration(of, TrialConfig(), 1, throughput) for of in ("smallest", "paper", "largest"))
    measured = measurement.Measurement(
        (TrialConfig(),), timed, 64, (measurement.EpochImages(800, 200),), 0, 10, "GPU"
    )  # 10 s an epoch
    slots = Slots(1, 1, 1, 1.0)

    def epochs_of_trials(**settings: Any) -> float:
        return forecast(RunSettings(trials=100, epochs=10, max_gpu_hours=1, **settings), slots, slots, measured).epochs

    assert epochs_of_trials(baseline=False) == pytest.approx(360)
    # two models predict 200 images once, in 2 s each: 0.4 epochs
    final = {"confirm_top": 1, "confirm_seeds": 1, "final_runs": 1, "postprocessing": "none"}
    assert epochs_of_trials(**final) == pytest.approx(360 - 4 * 10 - 0.4)


def test_final_runs_are_forecast_with_the_images_of_their_folds() -> None:
    """An image takes 1 s to train and 0.5 s to validate, so two epochs take 22 s on fold 0 and 20 s on fold 1.

    Two runs at a time. Selection: the baseline and a candidate on fold 0, 44 s of work. Judgement: three runs of both,
    on folds 0, 1 and 0, 2 * 64 s of work. Before each stage, the workers start in 5 s.
    The three networks of both predict the 2 + 4 + 2 images of their folds and the 6 of the sealed test, in 0.5 s each.
    """
    throughput = Throughput(
        images=1, train_s=1.0, val_s=0.5, one_image_memory_mb=1.0, step_memory_mb=1.0, peak_memory_mb=1.0
    )
    names = ("smallest", "paper", "largest")
    measured = measurement.Measurement(
        sample=(TrialConfig(),),
        configurations=tuple(measurement.TimedConfiguration(of, TrialConfig(), 1, throughput) for of in names),
        image_size=32,
        images=(measurement.EpochImages(10, 2), measurement.EpochImages(8, 4)),
        sealed_images=6,
        start_s=5.0,
        device="",
    )
    settings = RunSettings(
        epochs=2, grace_epochs=1, confirm_top=1, confirm_seeds=1, final_runs=3, postprocessing="none"
    )
    once = 0.5 * (8 + 3 * 6)
    times = cost._expected_times(settings, Slots(2, 1, 1, 0.0), measured)
    assert (times.baseline_s, times.epoch_s) == (22, 11)
    assert times.final_work_s == 44 + 128 + 2 * once
    assert times.final_s == (5 + 22) + (5 + 64) + 2 * once
    for without_candidates in ({"confirm_top": 0}, {"trials": 1}):
        alone = cost._expected_times(settings.model_copy(update=without_candidates), Slots(2, 1, 1, 0.0), measured)
        assert (alone.final_work_s, alone.final_s) == (64 + once, 5 + 32 + once), (
            "three runs of the baseline, two at a time"
        )
    chosen = cost._expected_times(settings.model_copy(update={"postprocessing": "auto"}), Slots(2, 1, 1, 0.0), measured)
    assert chosen.final_s - times.final_s == 2 * 3 * 0.5 * 8, "three more predictions of each network's fold"


# ------------------------------------------------------------------------------------------------ sizes of a network


@pytest.mark.parametrize(("network", "up_kernel", "slices"), [("paper", 2, 1), ("paper", 3, 1), ("residual", 2, 5)])
@pytest.mark.parametrize(("depth", "channels", "size"), [(4, 16, 256), (2, 8, 33), (1, 3, 32), (5, 8, 64)])
def test_multiply_adds_are_those_of_torch(
    depth: int,
    channels: int,
    size: int,
    network: Literal["paper", "residual"],
    up_kernel: Literal[2, 3],
    slices: Literal[1, 5],
) -> None:
    shape: dict[str, Any] = {"depth": depth, "base_channels": channels, "network": network}
    config = TrialConfig(**shape, up_kernel=up_kernel, input_slices=slices)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        UNet.of(config)(torch.zeros(1, slices, size, size))
    assert counter.get_total_flops() == 2 * multiply_adds(config, size)


def test_work_counts_what_takes_time_beside_convolutions() -> None:
    assert work(TrialConfig(), 256) == multiply_adds(TrialConfig(), 256), "of the baseline nothing"
    plain, moved, strong = (work(TrialConfig(augment=kind), 64) for kind in ("none", "affine", "strong"))
    assert plain < moved < strong
    shares = [
        work(TrialConfig(augment="strong", base_channels=channels), 64) / work(TrialConfig(base_channels=channels), 64)
        for channels in (2, 16)
    ]
    assert shares[0] > 1.1 > shares[1] > 1, "a small network waits for it longer"

    def augmentation(kind: Any, slices: Any) -> int:
        configs = (TrialConfig(augment=which, input_slices=slices) for which in (kind, "none"))
        augmented, without = (work(config, 64) for config in configs)
        return augmented - without

    assert augmentation("flip", 5) == 1.5 * augmentation("flip", 1), "as measured"
    assert augmentation("strong", 5) == pytest.approx(3.8 * augmentation("strong", 1), rel=0.02)
    residual = TrialConfig(network="residual")
    assert 1.2 < work(residual, 64) / multiply_adds(TrialConfig(), 64) < 1.4
    chosen = configurations_to_time([TrialConfig(), residual, TrialConfig(augment="strong")], 64)
    assert (chosen["smallest"], chosen["largest"]) == (TrialConfig(), residual)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("depth", "channels", "norm"), [(2, 4, "batch"), (3, 8, "instance"), (4, 16, "batch")])
def test_checkpoints_are_as_big_as_written(
    optimizer: str, depth: int, channels: int, norm: str, prepared: Path, tmp_path: Path
) -> None:
    values = {"depth": depth, "base_channels": channels, "norm": norm, "optimizer": optimizer}
    data, last, best = PreparedData.open(prepared), tmp_path / "last.pt", tmp_path / "best.pt"
    for number, others in enumerate(({}, {"ema": 0.9, "network": "residual"})):
        config = TrialConfig.from_mapping({**values, **others})
        next(epochs(config, data, max_epochs=2, last=last.with_suffix(f".{number}"), best=best))
        written = last.with_suffix(f".{number}").stat().st_size, best.stat().st_size
        assert checkpoint_bytes(config) == pytest.approx(written, rel=0.05)
        space = SearchSpace.from_mapping({**values, **others, "depth": {"choices": [1, depth]}})
        assert most_checkpoint_bytes(space) >= checkpoint_bytes(config)


def test_a_space_with_averages_reserves_their_bytes() -> None:
    space = {"depth": 5, "base_channels": 32, "ema": {"choices": [0, 0.99]}}
    with_average = checkpoint_bytes(TrialConfig(depth=5, base_channels=32, ema=0.9))
    assert most_checkpoint_bytes(SearchSpace.from_mapping(space)) == with_average
    space["ema"] = {"low": 0.0, "high": 0.99}
    assert most_checkpoint_bytes(SearchSpace.from_mapping(space)) == with_average
    without = checkpoint_bytes(TrialConfig(depth=5, base_channels=32))
    assert with_average == (without.last + without.best, without.best)


# --------------------------------------------------------------------------------------------------------- measuring


def test_interpolation() -> None:
    assert interpolate([(3, 30), (1, 10), (2, 40)], [1, 1.5, 2.5, 3]) == [10, 25, 35, 30]
    assert interpolate([(1, 10), (2, 20)], [0, 9]) == [10, 20]
    assert interpolate([(1, 10), (1, 20)], [1]) == [15]


def test_configurations_to_time() -> None:
    sample = [
        TrialConfig(depth=depth, base_channels=channels, batch_size=batch)
        for depth, channels in ((2, 8), (3, 4), (2, 4))
        for batch in (2, 8, 32)
    ]
    chosen = configurations_to_time(sample, 32)
    assert chosen == {"smallest": sample[7], "paper": TrialConfig(), "largest": sample[1]}


def test_timing_takes_whole_batches_where_there_is_time(prepared: Path) -> None:
    timing = measure_throughput(TrialConfig(depth=1, base_channels=2), PreparedData.open(prepared), limit_s=2)
    assert timing.images == 4  # 48 slices in 10 batches of 4 or 5
    assert min(timing.val_s, timing.train_s) > 0
    assert 0 < timing.one_image_memory_mb <= timing.step_memory_mb <= timing.peak_memory_mb
    hurried = measure_throughput(
        TrialConfig(depth=1, base_channels=2, input_slices=3), PreparedData.open(prepared), limit_s=1e-9
    )
    assert hurried.images == 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_several_workers_are_timed_as_one_trial(one_ray: None, prepared: Path) -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [1, 2]}, "base_channels": 4})
    settings = RunSettings(trials=2, epochs=3, baseline=False, scheduler="median", target_dice=0.9)
    slots = Slots(count=1, workers=2, cpus=1, gpus=0)
    with ray_session(None), watching_sockets(os.getpid()) as sockets:
        manifest = Manifest.read(prepared)
        shipment = make_shipment(prepared, manifest.fingerprint, send=False)
        measured = measurement.measure_space(space, settings, manifest, shipment, slots, limit_s=1)
    made = forecast(settings, slots, slots, measured)
    assert any("_TimingWorker" in name for name, _, _ in sockets), "the ranks, by gloo"
    assert [found for found in sockets if not ipaddress.ip_address(found[1]).is_loopback] == []
    assert made.final_s == made.final_epochs == made.final_runs == made.gpu_hours == 0
    assert made.search_s > 0
    assert made.notes == (
        "how many trials the median rule stops depends on how they learn; the forecast assumes that half of them train "
        "to the end",
        "--target-dice 0.9 is assumed not to be reached",
    )
    assert json.loads(json.dumps(made.as_dict())) == made.as_dict()
    assert [timed["of"] for timed in made.as_dict()["measured"]] == ["cheapest", "paper", "dearest"]  # as in old files


def test_workers_that_do_not_start_are_not_waited_for(one_ray: None, prepared: Path) -> None:
    slots, manifest = Slots(count=1, workers=1, cpus=4096, gpus=0), Manifest.read(prepared)
    shipment = make_shipment(prepared, manifest.fingerprint, send=False)
    with pytest.raises(TimeoutError) as error:
        measurement.measure_space(SearchSpace.read("quick"), RunSettings(), manifest, shipment, slots, patience_s=0.5)
    assert str(error.value) == "no answer within 0.5 s"
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


def test_a_forecast_that_fails_stops_no_search(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first\nno luck")

    monkeypatch.setattr(measurement, "measure_space", fail)
    messages: list[str] = []
    search, slots = SearchDir(tmp_path), Slots(1, 1, 1, 0)
    plan = SearchPlan(
        SearchSpace.read("quick"), RunSettings(), prepared, Manifest.read(prepared), DATA_RECORD, LOCAL, slots, slots
    )
    forecast_workflow.record_forecast(search, plan, {}, messages.append)
    assert messages == [
        "forecast: timing three configurations for some seconds ...",
        "no forecast (no luck); the search continues without it",
    ]
    assert search.forecast() is None


@pytest.mark.parametrize(
    ("load", "all_cores", "ours", "used"),
    [
        (0.4, 2, 2, 0),
        (0.6, 2, 2, 1),
        (7.0, 2, 2, 2),
        (3.0, 64, 64, 0),
        (20.0, 64, 64, 20),
        (7.0, 8, 1, 0),  # the other seven cores can take the load
        (8.0, 8, 1, 1),
    ],
)
def test_load_warning(load: float, all_cores: int, ours: int, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: all_cores)
    monkeypatch.setattr(measurement, "available_cpus", lambda: ours)
    busy = f"warning: {used} of {ours} CPU cores {'were' if used > 1 else 'was'} busy during the last minute"
    text = f"{busy}, so the forecast may be too high" if used else ""
    assert measurement.load_warning() == text


# ---------------------------------------------------------------------------------------------------------- the verbs


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small space in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "small.yaml"
    path.write_text("depth: {choices: [1, 2]}\nbase_channels: {choices: [2, 4]}\n")
    return path


def test_plan_from_the_command_line(one_ray: None, space: Path, prepared: Path, tmp_path: Path) -> None:
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
        ["final", "runs", "18.0", "90.0"],  # (1 + 3) * 2 selection runs and 2 * 5 judgement runs
        ["all", "105.1"],
    ]
    assert re.fullmatch(
        r"time      .+ \(start .+, search .+, final runs .+\); an epoch of a trial takes [\d.e-]+ s", lines[6]
    )
    assert re.fullmatch(r"disk      [\d.]+ MB for checkpoints", lines[7])
    assert re.fullmatch(r"memory    \d+ MiB at the peak, for each worker", lines[8])
    assert re.fullmatch(r"verdict   5 \+ 5 trainings and \d test patients cannot show any difference: .+", lines[9])
    assert re.fullmatch(r"measured  on .+, \d at a time:", lines[10])
    assert [line.split(":")[0].split() for line in lines[11:]] == [
        ["smallest", "depth", "1,", "base_channels", "2"],
        ["baseline", "depth", "4,", "base_channels", "16"],
        ["largest", "depth", "2,", "base_channels", "4"],
    ]
    assert list(tmp_path.iterdir()) == [space]  # nothing was written


@pytest.mark.slow
def test_tune_keeps_its_forecast_and_shows_it_beside_what_happened(one_ray: None, space: Path, prepared: Path) -> None:
    def say(*words: str) -> list[str]:
        result = CliRunner().invoke(main, list(words), prog_name="wmlsearch")
        assert result.exit_code == 0, result.output
        return [line.rstrip() for line in result.stdout.splitlines()]

    sizes = ["--trials", "3", "--epochs", "2", "--grace-epochs", "1", "--name", "s"]
    sizes += ["--confirm-top", "1", "--confirm-seeds", "1", "--final-runs", "1"]
    lines = say("tune", "small.yaml", "--data", str(prepared), *sizes)
    search = SearchDir(Path("runs/s"))
    made = search.forecast()
    assert [rung.epoch for rung in made.rungs] == [1, 2]
    assert made.search_s > 0
    start = lines.index("forecast: timing three configurations for some seconds ...")
    assert lines[start + 1].startswith("verdict: 1 + 1 trainings and 3 test patients cannot show any difference")
    assert re.fullmatch(
        r"forecast: about [\dmins ]+, 5 epochs of trials and at most 8 of 4 final runs, [\d.]+ MB of checkpoints, "
        r"\d+ MiB a worker",
        next(line for line in lines if line.startswith("forecast: about")),
    )
    assert re.search(r"\(1 of 3 trials, about [\dmins ]+ left\)", "\n".join(lines))
    table = [re.split(r"  +", line.strip()) for line in lines]
    table = table[table.index(["forecast", "happened"]) :][:8]
    rows = [run.rows() for run in search.trials()]
    assert table[1:3] == [
        ["trials at epochs 1, 2", "3, 1.9", f"3, {sum(len(epochs) == 2 for epochs in rows)}"],
        ["epochs of all trials", "4.9", str(sum(map(len, rows)))],
    ]
    final = sum(len(run.rows()) for run in search.finals())
    assert table.pop(4) == ["epochs of final runs", "at most 8", str(final)]
    used, size = search.usage(), r"[\d.]+"
    for row, (name, unit) in zip(
        table[3:],
        (("time of the trials", "s"), ("time of final runs", "s"), ("peak memory of a worker", "MiB"),
         ("checkpoints at most", "MB")),
        strict=True,
    ):  # fmt: skip
        assert re.fullmatch(rf"{name}\|({size} min )?{size} {unit}\|({size} min )?{size} {unit}", "|".join(row))
    assert used.seconds > 0
    assert used.final_seconds > max(sum(row.metrics["epoch_s"] for row in run.rows()) for run in search.finals())
    kept = sum(path.stat().st_size for path in search.path.glob("*/*/*.pt"))
    assert used.checkpoint_bytes >= kept > 0

    again = say("tune", "--resume", "s", "--trials", "4")
    assert not [line for line in again if line.startswith("forecast:")]
    assert search.forecast() == made
    shown = [line.split() for line in say("status", "s")]
    assert ["trials", "at", "epochs", "1,", "2", "3,", "1.9", "4,"] in [words[:8] for words in shown]
    assert search.usage().seconds > used.seconds
    assert search.usage().final_seconds == used.final_seconds


def test_plan_takes_all_of_tune_that_changes_a_search() -> None:
    here, there = ({parameter.name: parameter for parameter in verb.params} for verb in (plan, tune))
    assert there.keys() - here.keys() == {
        "resume", "continue_", "cluster", "name", "mlflow_uri", "experiment", "no_forecast", "on_end", "trial_timeout",
    }  # fmt: skip
    assert here.keys() - there.keys() == {"as_json"}
    assert all(here[name].default == there[name].default for name in here.keys() & there.keys())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paper"], "paper: has only values"),
        (["quick", "--trials", "0"], "--trials must be greater than or equal to 1, but got 0"),
        (["quick", "--workers-per-trial", "1000"], "this configuration cannot be trained|does not fit on the machines"),
        (["quick", "--gpus-per-worker", "99"], "does not fit on the machines"),
        (["quick", "--ray-address", "127.0.0.1:1"], "127.0.0.1:1: no Ray cluster answers there"),
        (["quick", "--warm-start", "none"], "none: no search or run of this name in "),
        (["quick", "--objectives", "val_dice"], "objectives must be at least two names"),
        (["quick", "--objective", "val_dice", "--objectives", "val_dice,images_per_s"], "cannot be given together"),
    ],
)
def test_what_tune_refuses(words: list[str], message: str, prepared: Path, tmp_path: Path) -> None:
    for verb in ("plan", "tune"):
        more = ["--out", str(tmp_path / "runs")] if verb == "tune" else []
        result = CliRunner().invoke(main, [verb, *words, "--data", str(prepared), *more], prog_name="wmlsearch")
        assert result.exit_code == 2, result.output
        assert re.search(message, result.stderr)
