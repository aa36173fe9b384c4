"""Memory admission: what memory a slot has, and what does not fit is not run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from records import epoch_row, run_record
from torch import distributed

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model import memory
from wmlsearch.model.memory import (
    CUDA_CONTEXT_BYTES,
    PROCESS_OVERHEAD,
    MemoryEstimate,
    count_cuda_graphs,
    largest_step,
)
from wmlsearch.model.process_memory import bytes_in_use
from wmlsearch.report import figures
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.machine import available_cpus
from wmlsearch.search import memory_admission, tune_loop
from wmlsearch.search.final_training import write_result
from wmlsearch.search.memory_admission import MemoryFit, limit_bytes, limit_to_share, predict_peak_memory
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession, TrialWorker
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.search_plan import SearchRequest

GPU = torch.device("cuda", 0)
BIG, SMALL = {"base_channels": 512}, {"depth": 2, "base_channels": 4, "batch_size": 4}


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


def test_a_cpu_slot_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 2**30 < memory_admission.machine_bytes() < 2**46
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 3_000_000_000)
    assert limit_bytes(cpu) == 3_000_000_000
    monkeypatch.setattr(memory_admission, "workers_on_this_node", lambda slots: slots.count * slots.workers)
    assert limit_bytes(cpu, Slots(2, 3, 1, 0.0)) == 500_000_000
    # A limit of address space counts what is only mapped, too.
    monkeypatch.setattr(memory_admission.resource, "getrlimit", lambda _: (10**9, 10**9))
    monkeypatch.setattr(memory_admission, "mapped_and_resident_bytes", lambda: (600_000_000, 200_000_000))
    assert limit_bytes(cpu) == 600_000_000


def test_a_refusal_gives_the_numbers(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_on_a_gpu_the_measurement_counts(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU's data behind a GPU's name: what is asked for, and in what order."""

    data = PreparedData.open(prepared)
    named: Any = SimpleNamespace(device=GPU)
    on_gpu = replace(data, train=replace(data.train, images=named))
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


def test_a_trial_that_does_not_fit_is_not_trained(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process; what the run folder then says of it, and of one that fits."""
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 8 * 10**9)
    sent = Shipment(prepared, "here")
    job = WorkerJob(sent, RunSettings(epochs=1), threads=torch.get_num_threads())
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


def test_all_ranks_start_or_none(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    pairs = figures.peak_memories(board)
    assert pairs == [(100.0, 90.0), (400.0, 420.0)]
    figures.memory(tmp_path / "memory.png", pairs)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def tune(prepared: Path, out: Path, values: dict[str, Any], say: list[str], **settings: Any) -> Outcome:
    request = SearchRequest(
        SearchSpace.from_mapping(values),
        RunSettings(
            **{"epochs": 1, "trials": 6, "baseline": False, "forecast": False, "sampler": "random", **settings}
        ),
        prepared,
    )
    return tune_workflow.tune(SearchDir(out / "s"), request, default_uri(out), Observer(say=say.append))


@pytest.mark.usefixtures("one_ray")
def test_a_search_skips_trials_that_do_not_fit(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert outcome.early_end is not None
    assert outcome.early_end.text == "all 2 configurations of the space have been tried"
    assert outcome.mlflow_problem == ""
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
def test_a_baseline_that_does_not_fit_is_refused_at_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_admission, "machine_bytes", lambda: 10**8)
    with pytest.raises(InputError) as refused:
        tune(prepared, tmp_path, {**SMALL, "learning_rate": {"low": 1e-4, "high": 1e-2}}, [], baseline=True)
    text = str(refused.value)
    assert text.startswith("the baseline configuration with batches of 5 images of 32 x 32 pixels needs about 0.")
    assert text.endswith(
        f" GB of memory, but 0 GB is available for each of {min(6, available_cpus())} trials at a time; "
        "split each batch over more workers (--workers-per-trial), prepare the data with a smaller --size, or search "
        "without it (--no-baseline)"
    )
    assert not (tmp_path / "s" / "search.json").exists()
