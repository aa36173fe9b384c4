"""How many trials share a GPU: the choice, its measurement, its message and record, and refused options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from records import search_record

from wmlsearch.cli import main
from wmlsearch.cluster import connect, resources
from wmlsearch.cluster.resources import Request, Slots, plan_slots, share_of_gpu
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.forecast import gpu_sharing
from wmlsearch.forecast.gpu_sharing import (
    Packing,
    choose_trials_per_gpu,
    fastest_count,
    largest_configuration,
    trials_that_fit,
)
from wmlsearch.forecast.measurement import TimingWorkers
from wmlsearch.model import throughput
from wmlsearch.model.memory import CUDA_CONTEXT_BYTES
from wmlsearch.model.throughput import mps_is_on
from wmlsearch.report.commands import tune_command
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import TrialShape
from wmlsearch.search.memory_admission import MemoryFit
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.preflight import resolve_trials_per_gpu
from wmlsearch.workflows.search_plan import SearchRequest
from wmlsearch.workflows.tune import tune

SPACE = SearchSpace.from_mapping(
    {"depth": 2, "base_channels": {"choices": [2, 4]}, "batch_size": {"low": 2, "high": 8}}, "small.yaml"
)
GB = 10**9
OPTIONS = "these options cannot be used\n  - "


@pytest.mark.parametrize(
    ("images_per_s", "count"),
    [
        ([1000], 1),
        ([1000, 1050], 1),  # two are hardly faster than one
        ([1000, 1900, 2600, 2700], 3),
        ([1000, 1900, 2600, 2900], 4),  # each added a tenth: more might be faster still
        ([1000, 1099, 3000], 1),  # it ends at the first small gain
        ([1000, 1100], 2),  # exactly a tenth
        ([1000, 900], 1),
    ],
)
def test_as_many_as_get_faster(images_per_s: list[float], count: int) -> None:
    assert fastest_count(images_per_s) == count


def test_as_many_as_fit() -> None:
    of_80 = 80 * GB - CUDA_CONTEXT_BYTES
    assert trials_that_fit(of_80, 79 * GB, 0) == 1
    assert trials_that_fit(of_80, 200 * GB, 0) == 1  # it does not fit even alone: memory admission refuses the trial
    assert trials_that_fit(of_80, 10 * GB, 0) == int(80 / (10 + CUDA_CONTEXT_BYTES / GB)) == 7
    assert trials_that_fit(of_80, 9 * GB, GB) == 7  # each process has the data
    assert trials_that_fit(of_80, GB, 0) == gpu_sharing.MAX_MEASURED
    for count in range(1, 9):  # what is chosen is what memory admission lets through in a share
        need = int(80 * GB * share_of_gpu(count) - CUDA_CONTEXT_BYTES)
        assert trials_that_fit(of_80, need, 0) == count
        assert trials_that_fit(of_80, need + 1, 0) < count or count == 1


def test_largest_configuration() -> None:
    wide = SearchSpace.from_mapping({"base_channels": {"choices": [16, 32]}, "batch_size": {"low": 2, "high": 8}})
    largest = largest_configuration(wide, 0)
    assert (largest.base_channels, largest.batch_size) == (32, 8)
    assert largest_configuration(SPACE, 0) == TrialConfig()  # the baseline must fit, too


@pytest.mark.parametrize("trials", [1, 2, 3, 6, 7, 8, 64])
@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_shares_of_a_gpu_are_what_ray_grants(trials: int, gpus: int) -> None:
    share = share_of_gpu(trials)
    assert share * trials <= 1  # Ray counts in ten-thousandths
    assert share == round(share, 4)
    node = {"CPU": 1000.0, "GPU": float(gpus)}
    assert plan_slots([node], Request(gpus_per_worker=share), 10_000).count == trials * gpus


def test_no_worker_is_spread_over_two_gpus() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    assert plan_slots([node], Request(gpus_per_worker=0.4), 20) == Slots(8, 1, 2, 0.4)


def made(**values: Any) -> Packing:
    return Packing(**{
        "trials_per_gpu": 3, "images_per_s": (1000.0, 1900.0, 2600.0, 2700.0), "largest_bytes": 6_120_000_000,
        "gpu_bytes": 79_300_000_000, "ended_by": "gain", "mps": False, **values,
    })  # fmt: skip


def test_message_of_the_choice() -> None:
    assert str(made()) == (
        "3 trials share a GPU: the baseline configuration trains 1000, 1900, 2600, 2700 images/s with 1 to 4 at once, "
        "and one more would add less than 10 %; the largest configuration needs 6.12 of 79.3 GB; NVIDIA MPS is off"
    )
    assert str(made(trials_per_gpu=1, images_per_s=(1000.0,), ended_by="memory", mps=True)) == (
        "1 trial has a GPU: the baseline configuration trains 1000 images/s with 1 at once, and no more fit into its "
        "memory; the largest configuration needs 6.12 of 79.3 GB; NVIDIA MPS is on"
    )


def test_the_record_keeps_its_names() -> None:
    assert made().as_dict() == {
        "trials_per_gpu": 3, "images_per_s": [1000.0, 1900.0, 2600.0, 2700.0], "dearest_bytes": 6_120_000_000,
        "gpu_bytes": 79_300_000_000, "ended_by": "gain", "mps": False,
    }  # fmt: skip


class Table:
    """Replaces TimingWorkers: a GPU whose images per second are given for each number of trials."""

    rates: tuple[float, ...] = ()
    fits = MemoryFit(8 * GB, 79 * GB, 0.0)
    asked: list[int]

    def __init__(self, data: object, slots: Slots, count: int, patience_s: float, one_gpu: bool) -> None:
        assert one_gpu
        assert slots == Slots(count, 1, 16 // count, share_of_gpu(count))
        Table.asked = []

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def predict_peak_memory(self, config: TrialConfig, settings: RunSettings) -> tuple[MemoryFit, int]:
        return self.fits, GB

    def images_per_s(self, config: TrialConfig, settings: RunSettings, seconds: float, count: int) -> float:
        assert config == TrialConfig()
        Table.asked.append(count)
        return self.rates[count - 1]


@pytest.mark.parametrize(
    ("rates", "need_gb", "trials", "cpus", "chosen", "ended_by", "timed"),
    [
        ((100, 200, 300, 310, 400), 1, 50, 16, 3, "gain", 4),
        ((100, 200, 300, 400, 500, 600, 700, 800), 1, 50, 16, 8, "most", 8),
        ((100, 200, 300, 400, 500, 600, 700, 800), 20, 50, 16, 3, "memory", 3),
        ((100, 200, 300, 400), 100, 50, 16, 1, "memory", 1),
        ((100, 200, 300, 400), 1, 2, 16, 2, "trials", 2),
    ],
)
def test_more_trials_are_measured_while_they_gain_and_fit(
    rates: tuple[float, ...],
    need_gb: int,
    trials: int,
    cpus: int,
    chosen: int,
    ended_by: str,
    timed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_sharing, "TimingWorkers", Table)
    monkeypatch.setattr(Table, "rates", rates)
    monkeypatch.setattr(Table, "fits", MemoryFit(need_gb * GB, 79 * GB, 0.0))
    packing = choose_trials_per_gpu(SPACE, RunSettings(trials=trials), {}, Slots(1, 1, cpus, 1.0))
    assert (packing.trials_per_gpu, packing.ended_by, Table.asked) == (chosen, ended_by, list(range(1, timed + 1)))
    assert packing.images_per_s == pytest.approx(rates[:timed])
    assert (packing.largest_bytes, packing.gpu_bytes) == (need_gb * GB, 80 * GB)


def test_mps_is_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(throughput, "MPS_PIPE", tmp_path / "missing")
    assert not mps_is_on()
    monkeypatch.setattr(throughput, "MPS_PIPE", tmp_path)
    assert mps_is_on()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "missing"))
    assert not mps_is_on()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["0"], f"{OPTIONS}--trials-per-gpu must be auto or a whole number from 1 to 64, but got 0"),
        (["many"], f"{OPTIONS}--trials-per-gpu must be auto or a whole number from 1 to 64, but got many"),
        (["2"], "--trials-per-gpu 2: there is no GPU to share; leave it out"),
        (["auto"], "--trials-per-gpu auto: there is no GPU to share; leave it out"),
        (
            ["auto", "--gpus-per-worker", "1", "--workers-per-trial", "2"],
            f"{OPTIONS}--trials-per-gpu auto: cannot be combined with --gpus-per-worker 1, since both set a trial's "
            "share of a GPU; give one of them\n"
            "  - --trials-per-gpu auto: cannot be combined with --workers-per-trial 2, which gives each trial several "
            "GPUs; give one of them",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["tune", "plan"])
def test_refused_options(
    verb: str,
    options: list[str],
    text: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["wmlsearch", verb, "quick", "--data", str(prepared), "--trials-per-gpu", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == f"wmlsearch: {text}"


def test_the_command_in_a_report_has_the_option() -> None:
    about = {
        "settings": RunSettings().model_dump(),
        "space": {"source": "quick", "values": SearchSpace.read("quick").to_mapping()},
        "data": {"name": "prepared"},
        "shape": {"workers_per_trial": 1, "gpus_per_worker": None, "trials_per_gpu": 3},
    }
    assert tune_command(search_record(about)) == "wmlsearch tune quick --data prepared --epochs 18 --trials-per-gpu 3"


@pytest.fixture(scope="module")
def ray_with_a_gpu() -> Iterator[None]:
    """An embedded Ray with a GPU that does not exist: PyTorch trains on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        start = ray.init
        patch.setattr(connect.ray, "init", lambda **options: start(**{**options, "num_cpus": 2, "num_gpus": 1}))
        with connect.ray_session(None):
            patch.setattr(connect, "_embedded", contextlib.nullcontext)
            patch.setattr(resources, "this_machine", lambda: [{"CPU": 2.0, "GPU": 1.0}])
            yield


@pytest.mark.usefixtures("ray_with_a_gpu")
@pytest.mark.slow
def test_a_search_measures_and_records_the_choice(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes are really timed at once on one GPU; only the choice from the times is fixed."""
    monkeypatch.setattr(gpu_sharing, "TIMING_LIMIT_S", 0.2)
    monkeypatch.setattr(gpu_sharing, "fastest_count", len)
    where: list[set[str]] = []
    start = TimingWorkers._start

    def looked_at(self: TimingWorkers) -> None:
        start(self)
        where.append({str(ray.get(w.__ray_call__.remote(lambda _: ray.get_gpu_ids()))) for (w,) in self.slot_workers})

    monkeypatch.setattr(TimingWorkers, "_start", looked_at)
    messages: list[str] = []
    settings = RunSettings(epochs=1, trials=2, baseline=False, forecast=False, sampler="random")
    search, uri = SearchDir(tmp_path / "s"), default_uri(tmp_path)
    request = SearchRequest(SPACE, settings, prepared, Placement(trials_per_gpu="auto"))
    tune(search, request, uri, Observer(say=messages.append))
    assert where == [{"[0]"}], "both on the same GPU"
    assert (
        messages[0]
        == "trials per GPU: timing the baseline configuration with one trial, with two at once, and so on ..."
    )
    assert messages[1].startswith("2 trials share a GPU: the baseline configuration trains ")
    assert messages[2] == "trials run 2 at a time, each 1 worker with 1 CPU and 0.5 GPUs each"
    about = search.record()
    assert about.shape == TrialShape(workers_per_trial=1, gpus_per_worker=None, trials_per_gpu=2)
    assert about.packing["trials_per_gpu"] == len(about.packing["images_per_s"]) == 2
    assert about.packing["ended_by"] in ("cores", "trials")
    if torch.cuda.is_available():
        assert [run.state for run in search.trials()] == ["completed", "completed"]
    else:  # only Ray believes in a GPU here, and no trial is trained on the CPU instead
        assert search.state == "failed"
        assert "PyTorch finds no GPU, so the trial would train on the CPU" in search.status().reason
    resumed = LOCAL.of_resumed("s", about.shape, None)
    assert resumed.slots(3) == Slots(2, 1, 1, 0.5)


def test_a_search_runs_without_the_measurement(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TimeoutError("no answer within 300 s")

    monkeypatch.setattr(gpu_sharing, "TimingWorkers", broken)
    monkeypatch.setattr(resources, "this_machine", lambda: [{"CPU": 2.0, "GPU": 1.0}])
    messages: list[str] = []
    request = SearchRequest(SPACE, RunSettings(), prepared, Placement(trials_per_gpu="auto"))
    placement, packing = resolve_trials_per_gpu(request, Manifest.read(prepared), {}, messages.append)
    assert (placement.trials_per_gpu, packing) == (1, None)
    assert messages[1] == "each trial has a GPU of its own, since the measurement failed (no answer within 300 s)"
    monkeypatch.setattr(resources, "this_machine", lambda: [{"CPU": 2.0, "GPU": 0.0}])
    with pytest.raises(InputError, match="there is no GPU to share"):
        resolve_trials_per_gpu(request, Manifest.read(prepared), {}, messages.append)
