"""Peak memory known before a training runs: how it is counted, what is there, and what is then not run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from records import epoch_row, run_record
from torch import Tensor, distributed

from wmlsearch.cluster import resources
from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model import memory
from wmlsearch.model.losses import slice_losses
from wmlsearch.model.memory import (
    CUDA_CONTEXT_BYTES,
    PROCESS_OVERHEAD,
    MemoryEstimate,
    count_cuda_graphs,
    estimate_memory,
    largest_step,
    measure_memory,
)
from wmlsearch.model.process_memory import bytes_in_use
from wmlsearch.model.torch_patches import LiveTensorBytes
from wmlsearch.model.unet import UNet
from wmlsearch.report import figures
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search import memory_admission, tune_loop
from wmlsearch.search.final_training import write_result
from wmlsearch.search.memory_admission import MemoryFit, limit_bytes, limit_to_share, predict_peak_memory
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession, TrialWorker
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.sync import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.search_plan import SearchRequest

TINY = TrialConfig(depth=1, base_channels=1, dropout=0.0)
GPU = torch.device("cuda", 0)
BIG, SMALL = {"base_channels": 512}, {"depth": 2, "base_channels": 4, "batch_size": 4}


def test_the_count_of_a_tiny_network_is_its_closed_form() -> None:
    """One level, one channel, float32: bytes for each pixel, tensor by tensor."""
    image_and_padded, mask, logits = 4 + 4, 4, 4
    block = 4 * 4  # two convolutions, each with what normalisation makes of it
    pooled = (4 + 8) / 4  # with the places of the maxima
    bottom = 2 * block / 4  # twice the channels, a quarter of the pixels
    joined = 2 * 4  # the skip and what came from below
    held = image_and_padded + mask + block + pooled + bottom + joined + block + logits
    size = 32
    estimate = estimate_memory(TINY, size, bfloat16=False, val_images=1)
    # At the beginning of the backward pass gradients as big as the biggest tensor come; a loss is a number an image.
    assert estimate.image_bytes == pytest.approx((held + joined) * size**2, abs=16)
    parameters = sum(it.numel() for it in UNet(1, 1, 0.0).parameters())
    buffers = sum(it.nbytes for it in UNet(1, 1, 0.0).buffers())
    statistics = 2 * 4 * (2 + 4 + 2)  # mean and spread of each channel of six normalisations
    assert estimate.fixed_bytes == pytest.approx(4 * 4 * parameters + buffers + statistics, abs=16)


@pytest.mark.parametrize(
    "values",
    [{}, {"norm": "instance", "loss": "bce_dice"}, {"dropout": 0.0, "depth": 2}],
    ids=["paper", "other", "flat"],
)
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_what_is_counted_is_what_autograd_saves(values: dict[str, Any], bfloat16: bool) -> None:
    """In a real step on this CPU, by PyTorch's own hooks."""
    config, size, images = TrialConfig(**{"base_channels": 4, "depth": 3, **values}), 64, 3
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    unet = UNet(config.depth, config.base_channels, config.dropout, config.norm)
    inputs, masks = torch.rand(images, 1, size, size), torch.ones(images, 1, size, size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = unet(inputs)
        losses = slice_losses(logits, masks, config.loss)
    own = {it.untyped_storage().data_ptr() for it in unet.parameters()}
    kept = sum(it.untyped_storage().nbytes() for pointer, it in saved.items() if pointer not in own)
    estimate = estimate_memory(config, size, bfloat16, val_images=1)
    biggest = max(it.untyped_storage().nbytes() for pointer, it in saved.items() if pointer not in own)
    parameters = sum(it.nbytes for it in unet.parameters())
    state = sum(it.nbytes for it in unet.state_dict().values()) + 3 * parameters  # gradients, two averages of Adam
    there = state + kept + biggest + inputs.nbytes  # the images before they are padded are held by the step itself
    assert estimate.bytes(images) == pytest.approx(there, rel=0.02)
    assert len(losses) == images


def test_more_images_take_so_much_more() -> None:
    """A real step of five images on this CPU holds what steps of one and two let expect."""
    unet = UNet(2, 4, 0.5)
    own = list(unet.state_dict().values())
    inputs, masks = torch.rand(5, 1, 32, 32), torch.ones(5, 1, 32, 32)
    with LiveTensorBytes(own) as held:
        padded = inputs.clone()
        losses = slice_losses(unet(padded), masks.clone(), "bce")
    config = TrialConfig(depth=2, base_channels=4, dropout=0.5)
    estimate = estimate_memory(config, 32, bfloat16=False, val_images=1)
    assert estimate.bytes(5) - estimate.bytes(3) == 2 * estimate.image_bytes
    assert 5 * estimate.image_bytes == pytest.approx(held.now + 5 * held.largest_per_image, rel=0.01)
    assert losses.requires_grad
    del losses
    assert held.now < 0.1 * 5 * estimate.image_bytes  # what nobody has any more is held no more


def test_what_differs_between_trainings_differs_in_the_count() -> None:
    def of(bfloat16: bool = False, world: int = 1, val_images: int = 16, **values: Any) -> MemoryEstimate:
        return estimate_memory(TrialConfig(**values), 64, bfloat16, val_images, world)

    weights = 4 * 1_943_761  # the paper's
    paper = of()
    assert paper.fixed_bytes == pytest.approx(4 * weights, rel=0.01)  # with gradients and two averages
    assert paper.fixed_bytes - of(optimizer="sgd").fixed_bytes == weights
    assert of(world=2).fixed_bytes - paper.fixed_bytes == weights  # what is sent to the other ranks
    assert of(bfloat16=True).fixed_bytes - paper.fixed_bytes == pytest.approx(weights / 2, rel=0.01)
    assert of(bfloat16=True).image_bytes == pytest.approx(0.55 * paper.image_bytes, rel=0.05)
    assert of(dropout=0.0).image_bytes < 0.8 * paper.image_bytes
    assert estimate_memory(TrialConfig(), 128, False, 1).image_bytes == pytest.approx(4 * paper.image_bytes, rel=0.01)
    # 16 images to validate are more than one to train on; a single one is not.
    assert paper.bytes(1) == paper.fixed_bytes + paper.validation_bytes > paper.fixed_bytes + paper.image_bytes
    assert of(val_images=1).bytes(1) == paper.fixed_bytes + paper.image_bytes
    assert of(**{**BIG, "depth": 5}).bytes(1) > 100e9  # and nothing was allocated


def test_graphs_keep_what_they_hold() -> None:
    """Beside the graphs' memory the other size of batch warms up, or validation runs: by hand."""
    weights, image, validation = 10, 100, 650
    of = MemoryEstimate(4 * weights, weights, image, validation)
    assert of.bytes(5) == 40 + 650  # without graphs what a step held is free for validation
    assert of.bytes(7) == 40 + 700
    assert of.bytes(5, graphs=1) == 40 + 500 + 650
    assert of.bytes(5, graphs=2) == 40 + 500 + 650
    assert of.bytes(7, graphs=2) == 40 + 700 + (10 + 700)
    assert MemoryEstimate(40, 10, 100, 0).bytes(7, graphs=1) == 40 + 700 + 10  # gradients of the warm-up


@pytest.mark.parametrize("slices", [1, 5, 22, 43, 100])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_a_graph_for_each_size_of_batch(slices: int, batch_size: int) -> None:
    sizes = {len(batch) for batch in batches(slices, batch_size, torch.Generator())}
    config = TrialConfig(batch_size=batch_size)
    assert count_cuda_graphs(config, slices, GPU, several=False) == len(sizes)
    assert (
        count_cuda_graphs(config, slices, GPU, several=True)
        == count_cuda_graphs(config, slices, torch.device("cpu"), False)
        == 0
    )


@pytest.mark.parametrize("slices", [1, 5, 22, 43, 100])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_images_in_the_biggest_step(slices: int, batch_size: int, world: int) -> None:
    dealt = batches(slices, batch_size, torch.Generator())
    most = max(len(batch[rank::world]) for batch in dealt for rank in range(world))
    assert largest_step(TrialConfig(batch_size=batch_size), slices, world) == most


def test_a_slot_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_admission, "gpu_bytes", lambda _: 80 * 10**9)
    set_to: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: set_to.append(share))
    for gpus, bytes_there in ((1.0, 80e9), (2.0, 80e9), (0.25, 20e9)):
        slots = Slots(4, 1, 1, gpus)
        assert limit_bytes(GPU, slots) == bytes_there - CUDA_CONTEXT_BYTES
        limit_to_share(GPU, slots)
    assert set_to == [(20e9 - CUDA_CONTEXT_BYTES) / 80e9]
    assert limit_bytes(GPU) == 80e9 - CUDA_CONTEXT_BYTES
    limit_to_share(GPU, None)
    limit_to_share(torch.device("cpu"), Slots(4, 1, 1, 0.0))
    assert len(set_to) == 1


def test_a_cpu_slot_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    whole = memory_admission.machine_bytes()
    assert 2**30 < whole < 2**46
    (tmp_path / "memory.max").write_text("3000000000\n")
    monkeypatch.setattr(memory_admission, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "missing"))
    assert (memory_admission.machine_bytes(), limit_bytes(cpu)) == (3_000_000_000, 3_000_000_000)
    monkeypatch.setattr(memory_admission, "workers_on_this_node", lambda slots: slots.count * slots.workers)
    assert limit_bytes(cpu, Slots(2, 3, 1, 0.0)) == 500_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_admission.machine_bytes() == whole
    # A limit of address space counts what is only mapped, too.
    monkeypatch.setattr(memory_admission.resource, "getrlimit", lambda _: (10**9, 10**9))
    monkeypatch.setattr(memory_admission, "mapped_and_resident_bytes", lambda: (600_000_000, 200_000_000))
    assert limit_bytes(cpu) == 600_000_000


def test_what_does_not_fit_says_the_numbers(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MemoryFit(91_200_000_000, 70_000_000_000, 0.0).refusal == (
        "needs about 91.2 GB of memory, but 70 GB is available"
    )
    assert MemoryFit(1, 1, 0.0).refusal == ""
    data = PreparedData.open(prepared)
    fit = predict_peak_memory(TrialConfig(**BIG), data, "float32")
    assert fit.need_bytes > 4 * 4 * 1.9e9  # weights, gradients, two averages
    small = predict_peak_memory(TrialConfig(**SMALL), data, "float32")
    assert small.refusal == ""
    # The peak of the process: what it holds already, and what comes.
    assert small.peak_mb * 2**20 == pytest.approx(bytes_in_use(torch.device("cpu")) + small.need_bytes)
    with pytest.raises(InputError, match="size >= 2\\^"):
        predict_peak_memory(TrialConfig(depth=8), data, "float32")


def test_on_a_gpu_the_measured_line_counts(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU's data behind a GPU's name: what is asked for, and in what order."""

    class Named:
        device = GPU

    data = PreparedData.open(prepared)
    on_gpu: Any = type("OnGpu", (), {"train": data.train, "val": data.val, "manifest": data.manifest})()
    on_gpu.train = type("Train", (), {"images": Named(), "__len__": lambda _: len(data.train)})()
    asked: list[TrialConfig] = []

    def measure(config: TrialConfig, *_: object) -> MemoryEstimate:
        asked.append(config)
        return MemoryEstimate(10**9, 10**8, 2 * 10**9, 0)

    monkeypatch.setattr(memory, "measure_memory", measure)
    monkeypatch.setattr(memory_admission, "gpu_bytes", lambda _: 20 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300_000_000)
    fit = predict_peak_memory(TrialConfig(batch_size=5), on_gpu, "float32")
    images = largest_step(TrialConfig(batch_size=5), len(data.train))
    assert count_cuda_graphs(TrialConfig(batch_size=5), len(data.train), GPU, several=False) == 2
    once, each = PROCESS_OVERHEAD["cuda"]
    tensors = 10**9 + 2 * (2 * 10**9 * images) + 10**8  # the graphs', and those of a warm-up
    assert (fit.need_bytes, fit.left_bytes) == (once + each * tensors, 20 * 10**9 - CUDA_CONTEXT_BYTES - 300_000_000)
    assert fit.peak_mb == (fit.need_bytes + 300_000_000) / 2**20
    # Where the count says that not even two images fit, nothing is tried.
    predict_peak_memory(TrialConfig(**BIG), on_gpu, "float32")
    assert [config.base_channels for config in asked] == [16]


def test_the_line_is_measured_by_the_trainer_itself(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with a GPU's counters made up: a first step, then steps of one and two images, then validation."""
    peaks = iter([500, 400, 650, 700])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    seen: list[int] = []
    forward = UNet.forward

    def looked_at(self: UNet, images: Tensor) -> Tensor:
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(UNet, "forward", looked_at)
    data, config = PreparedData.open(prepared), TrialConfig(**SMALL)
    estimate = measure_memory(config, data, "float32")
    gradients = 4 * sum(it.numel() for it in UNet(config.depth, config.base_channels).parameters())
    assert estimate == MemoryEstimate(300 - 250, gradients, 250, 600 - (300 - 250))
    assert seen == [1, 1, 2, min(16, len(data.val))]
    assert (
        measure_memory(config.model_copy(update={"learning_rate": 0.5, "batch_size": 9}), data, "float32") is estimate
    )


def test_a_training_without_room_ends_before_it_begins(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process; what the run folder then says of it, and of one that fits."""
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 8 * 10**9)
    sent = Shipment(prepared, "here")
    job = WorkerJob(sent, RunSettings(epochs=1), torch.get_num_threads())
    found = {}
    for name, values in (("big", BIG), ("small", SMALL)):
        run = RunDir.create(tmp_path / name, run_record({"name": name}))
        assignment = TrialAssignment(config=TrialConfig(**values), checkpoint_location=str(run.path))
        training = TrainingSession(job, assignment)
        found[name] = training.step()
        training.close()
        write_result(run, found[name], set())
        run.set_status(found[name].ended, found[name].reason)
    big, small = RunDir(tmp_path / "big"), RunDir(tmp_path / "small")
    assert (found["big"].done, big.state, big.rows()) == (True, "out_of_memory", [])
    assert big.status().reason == found["big"].reason
    assert re.fullmatch(r"needs about [\d.]+ GB of memory, but [\d.]+ GB is available: not run", big.status().reason)
    assert big.status().predicted_memory_mb == found["big"].predicted_memory_mb > 8e9 / 2**20
    assert (small.state, len(small.rows())) == ("completed", 1)
    assert 100 < small.status().predicted_memory_mb < 8000
    # One that goes on from a checkpoint has found its room before.
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 0)
    assignment = TrialAssignment(config=TrialConfig(**SMALL), checkpoint_location=str(small.path), reported_epochs=1)
    again = TrainingSession(job, assignment)
    assert again.step().ended == "completed"
    again.close()


def test_all_ranks_begin_or_none(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each hears the least room of all ranks, and the most need."""
    of_other = torch.tensor([10**9, -(10**13)])
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda mine, _: mine.copy_(torch.minimum(mine, of_other)))
    data = PreparedData.open(prepared)
    fit = predict_peak_memory(TrialConfig(**SMALL), data, "float32")
    assert (fit.left_bytes, fit.need_bytes) == (10**9, 10**13)
    of_other = torch.tensor([10**15, -1])
    fit = predict_peak_memory(TrialConfig(**SMALL), data, "float32")
    assert 1 < fit.need_bytes < 10**9 < fit.left_bytes < 10**14


def test_the_report_draws_predicted_and_measured(tmp_path: Path) -> None:
    for number, (predicted, peaks) in enumerate([(100.0, [80.0, 90.0]), (None, [50.0]), (900.0, []), (400.0, [420.0])]):
        run = RunDir.create(tmp_path / str(number), run_record())
        if predicted is not None:
            run.set_predicted_memory(predicted)
        for epoch, peak in enumerate(peaks, start=1):
            run.append(epoch_row({"epoch": epoch, "peak_memory_mb": peak}))
        run.set_status("completed")
    board: Any = SimpleNamespace(trials=[SimpleNamespace(path=str(tmp_path / str(number))) for number in range(4)])
    pairs = figures.memory_of(board)
    assert pairs == [(100.0, 90.0), (400.0, 420.0)]
    figures.memory(tmp_path / "memory.png", pairs)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def tune(prepared: Path, out: Path, values: dict[str, Any], say: list[str], **settings: Any) -> Outcome:
    request = SearchRequest(
        SearchSpace.of(values),
        RunSettings(
            **{"epochs": 1, "trials": 6, "baseline": False, "forecast": False, "sampler": "random", **settings}
        ),
        prepared,
    )
    return tune_workflow.tune(SearchDir(out / "s"), request, default_uri(out), Observer(say=say.append))


@pytest.mark.usefixtures("one_ray")
def test_what_finds_no_room_is_never_run(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of 6 GB: networks of 8 GB of weights end before their first epoch, and the study hears why."""

    class OfSmallMachine(TrialWorker):
        def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
            from wmlsearch.search import memory_admission

            memory_admission.machine_bytes = lambda: 6 * 10**9
            super().setup(config, job)

    monkeypatch.setattr(tune_loop, "TrialWorker", OfSmallMachine)
    choices = {"choices": [4, 512]}
    outcome = tune(prepared, tmp_path, {"batch_size": 4, "depth": 4, "base_channels": choices}, [])
    search = SearchDir(outcome.run.path)
    assert (outcome.early, outcome.mlflow_problem) == ("", "")
    states: dict[int, list[str]] = {4: [], 16: [], 512: []}
    for run in search.trials():
        states[run.record().config.base_channels].append(run.state)
    assert states[16] == ["completed"]  # the paper's
    assert set(states[4]) <= {"completed", "stopped"}
    assert set(states[512]) == {"out_of_memory"}
    for run in search.trials():
        status = run.status()
        if run.state == "out_of_memory":
            assert not run.rows()
            assert not run.last.exists()
            assert re.fullmatch(r"needs about [\d.]+ GB of memory, but [\d.]+ GB is available: not run", status.reason)
            assert status.predicted_memory_mb > 4 * 4 * 1.9e9 / 2**20
        else:
            assert status.predicted_memory_mb > 300
    storage = JournalStorage(JournalFileBackend(str(search.journal)))
    for trial in optuna.load_study(study_name=None, storage=storage).trials:
        refused = search.trial(trial.user_attrs["trial"]).state == "out_of_memory"
        assert (trial.state.name == "PRUNED" and trial.constraints == {"out_of_memory": 1.0}) == refused
    assert "predicted_memory_mb" in (search.report / "leaderboard.csv").read_text().splitlines()[0]


@pytest.mark.usefixtures("one_ray")
def test_a_baseline_without_room_is_said_at_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 10**8)
    with pytest.raises(InputError) as refused:
        tune(prepared, tmp_path, {**SMALL, "learning_rate": {"low": 1e-4, "high": 1e-2}}, [], baseline=True)
    text = str(refused.value)
    assert text.startswith("the baseline configuration with batches of 5 images of 32 x 32 pixels needs about 0.")
    assert text.endswith(
        f" GB of memory, but 0 GB is available for each of {min(6, resources.available_cpus())} trials at a time; "
        "split each batch over more workers (--workers-per-trial), prepare the data with a smaller --size, or search "
        "without it (--no-baseline)"
    )
    assert not (tmp_path / "s" / "search.json").exists()
