"""The compiled network of a training: equal to PyTorch's layers, kept for other processes, and never in the way.

Most tests compile with a backend that needs no C++ compiler, and runs what torch has traced by PyTorch's operations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.compiler import needs_compiler
from tests.model.test_training import RANK, in_ranks
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model import compile_cache, compiled
from wmlsearch.model.compiled import COMPILING_PROCESSES, CompiledNetwork
from wmlsearch.model.kernels import VARIABLE
from wmlsearch.model.throughput import measure_throughput
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import Dropout, UNet

SMALL = TrialConfig(depth=1, base_channels=2, batch_size=7, dropout=0.0, optimizer="sgd", learning_rate=1e-2)
_compile = torch.compile


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch trace and not generate code, and forget what failed in this process."""
    monkeypatch.setattr(torch, "compile", partial(_compile, backend="aot_eager"))
    monkeypatch.setenv(COMPILING_PROCESSES, "1")
    monkeypatch.setattr(compiled, "_failed", set())
    monkeypatch.setattr(compile_cache, "_warned", set())
    yield
    torch.compiler.reset()


def train(
    data: PreparedData, config: TrialConfig = SMALL, count: int = 2, metric: str = "train_loss", **options: Any
) -> list[float]:
    """Return the training loss of each epoch, or another metric."""
    rows = epochs(config, data, max_epochs=count, **{"precision": "float32", **options})
    return [row.metrics[metric] or 0.0 for row in rows]


@pytest.mark.parametrize(
    ("values", "precision", "allowed"),
    [
        ({}, "float32", 1e-5),
        ({"norm": "instance", "network": "residual", "input_slices": 3, "up_kernel": 3}, "float32", 1e-5),
        ({"ema": 0.9}, "bfloat16", 2e-2),
    ],
    ids=str,
)
def test_a_training_equals_that_of_torchs_layers(
    values: dict[str, Any], precision: Any, allowed: float, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update=values)
    wanted = train(data, config, precision=precision)
    monkeypatch.setenv(VARIABLE, "compile")
    with warnings.catch_warnings(action="error"):
        assert train(data, config, precision=precision) == pytest.approx(wanted, rel=allowed)


def network(dropout: float = 0.5) -> tuple[UNet, list[int]]:
    """Return a network in training, and a list of the batches that its layers have run."""
    torch.manual_seed(0)
    return UNet(depth=1, base_channels=4, dropout=dropout).train(), []


def layers_of(unet: UNet, run: list[int]) -> Callable[[Tensor], Tensor]:
    def layers(images: Tensor) -> Tensor:
        run.append(len(images))
        logits: Tensor = unet(images)
        return logits

    return layers


def test_the_run_in_advance_changes_nothing() -> None:
    unet, run = network()
    calls = CompiledNetwork(unet, layers_of(unet, run))
    images = torch.rand(3, 1, 8, 8)
    before = [tensor.clone() for tensor in unet.state_dict().values()]
    state = torch.get_rng_state()
    calls._prepare(images)
    assert torch.equal(torch.get_rng_state(), state)
    for tensor, value in zip(unet.state_dict().values(), before, strict=True):
        assert torch.equal(tensor, value)
    assert all(weight.grad is None for weight in unet.parameters())
    calls(images).sum().backward()
    assert not torch.equal(torch.get_rng_state(), state), "dropout draws"
    assert all(weight.grad is not None for weight in unet.parameters() if weight.requires_grad)
    assert int(unet.state_dict()["down.0.1.num_batches_tracked"]) == 1
    assert run == []


def test_code_serves_other_sizes_and_another_probability_of_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the files of a search's first trials serve the later ones."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(_compile, backend=backend))
    unet, run = network()
    calls = CompiledNetwork(unet, layers_of(unet, run))
    for images in (64, 40, 64):
        assert calls(torch.rand(images, 1, 16, 16)).shape == (images, 1, 16, 16)
    assert len(graphs) == 1
    assert not any("0.5" in str(node) for graph in graphs for node in graph.graph.nodes), "it is no constant"


def test_the_probability_of_dropout_in_memory_is_that_of_the_layer() -> None:
    dropout = Dropout(0.3).train()
    dropout.rate = torch.tensor(0.3)
    torch.manual_seed(0)
    kept = dropout(torch.ones(1000, 100, dtype=torch.bfloat16))
    assert kept.dtype == torch.bfloat16
    assert kept.unique().tolist() == [0, torch.tensor(1 / 0.7).bfloat16().item()]
    assert (kept == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    assert torch.equal(dropout.eval()(torch.ones(5)), torch.ones(5))


def test_a_single_image_runs_torchs_layers() -> None:
    unet, run = network()
    calls = CompiledNetwork(unet, layers_of(unet, run))
    calls(torch.rand(1, 1, 8, 8))
    assert (run, calls.prepared) == ([1], set())


def test_a_resumed_training_equals_one_that_was_not_interrupted(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "compile")
    config = SMALL.model_copy(update={"dropout": 0.3})
    whole = train(data, config)
    training = epochs(config, data, max_epochs=2, precision="float32", last=tmp_path / "last.pt")
    next(training)
    training.close()
    resumed = train(data, config, last=tmp_path / "last.pt")
    assert resumed == whole[1:]


@pytest.mark.parametrize("given", [None, "5"])
def test_a_worker_compiles_in_as_many_processes_as_it_has_threads(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv(COMPILING_PROCESSES)
    else:
        monkeypatch.setenv(COMPILING_PROCESSES, given)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    unet, run = network()
    CompiledNetwork(unet, layers_of(unet, run))
    assert os.environ[COMPILING_PROCESSES] == (given or "3")


class CompilerMissing(Exception):
    """Stands for what torch raises where it cannot compile."""


@pytest.mark.parametrize("fails_in", ["trace", "backward"])
def test_where_compiling_fails_torchs_layers_train(
    fails_in: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"dropout": 0.3})
    wanted = train(data, config), train(data, config, metric="val_loss")
    attempts = []

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, _gradient: Tensor) -> Tensor:
            raise CompilerMissing("no g++\nand more")

    def broken(function: Callable[[Tensor], Tensor], **_options: Any) -> Callable[[Tensor], Tensor]:
        def call(images: Tensor) -> Tensor:
            attempts.append(len(images))
            if fails_in == "trace":
                raise RuntimeError("backend failed") from CompilerMissing("no g++\nand more")
            return Broken.apply(function(images))

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setenv(VARIABLE, "compile")
    with pytest.warns(UserWarning, match="training runs PyTorch's layers, since") as caught:
        validated = train(data, config, metric="val_loss")
    assert (train(data, config), validated) == wanted, "as without the variable, bit for bit"
    assert len(attempts) == 1, "this process does not try again"
    text = "training runs PyTorch's layers, since torch.compile failed: CompilerMissing: no g++"
    assert [str(warning.message) for warning in caught] == [text]


def test_memory_that_runs_out_is_no_failure_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> Callable[[Tensor], Tensor]:
        def call(images: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    monkeypatch.setattr(torch, "compile", full)
    unet, run = network()
    with pytest.raises(torch.OutOfMemoryError):
        CompiledNetwork(unet, layers_of(unet, run))(torch.rand(2, 1, 8, 8))
    assert (compiled._failed, run) == (set(), [])


def test_batch_normalisation_over_several_gpus_is_not_compiled() -> None:
    unet, run = network()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(unet)
    with pytest.warns(UserWarning, match="batch normalisation over several GPUs cannot be compiled"):
        calls = CompiledNetwork(converted, layers_of(unet, run))
    assert calls.code is None
    assert all(module.rate is None for module in converted.modules() if isinstance(module, Dropout))


def test_two_ranks_on_a_cpu_equal_one(
    data: PreparedData, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"norm": "instance"})
    wanted = train(data, config)
    monkeypatch.setenv(VARIABLE, "compile")
    tracing = "torch.compile = __import__('functools').partial(torch.compile, backend='eager')"
    script = RANK.replace("prepared, folder,", f"{tracing}\nprepared, folder,", 1)
    assert tracing in script
    first, second = in_ranks(script, prepared, tmp_path / "two", config, max_epochs=2, precision="float32")
    losses = [[row["train_loss"] for row in rows] for rows in (first, second)]
    assert losses[0] == losses[1] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("value", [None, "torch"])
def test_nothing_is_compiled_where_it_is_not_selected(
    value: str | None, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    train(data, count=1)


def test_measurements_of_a_few_steps_compile_nothing(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "compile")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    measure_throughput(SMALL, data, limit_s=0.1)


# A process that trains with a store, and prints its losses, what was compiled anew, and its warnings.
TRAINING = """
import json, sys, warnings
from pathlib import Path
import torch
from wmlsearch.cluster.compiled_networks import CompiledNetworks
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.torch_patches import count_compilations
from wmlsearch.model.training import epochs
torch.set_num_threads(1)
prepared, store, config = sys.argv[1:]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rows = list(epochs(TrialConfig(**json.loads(config)), PreparedData.open(Path(prepared)), max_epochs=2,
                       precision="float32", compiled=CompiledNetworks(store)))
print(json.dumps([[row.metrics["train_loss"] for row in rows], count_compilations(),
                  [str(warning.message) for warning in caught if warning.category is UserWarning]]))
"""


def train_in_a_process(
    prepared: Path, store: Path, own_cache: Path, config: TrialConfig = SMALL, **environment: str
) -> tuple[list[float], int, list[str]]:
    """Return the losses, the number of graphs that were compiled anew, and the warnings."""
    values = json.dumps(config.model_dump(exclude_defaults=True))
    command = [sys.executable, "-c", TRAINING, str(prepared), str(store), values]
    variables = {VARIABLE: "compile", "TORCHINDUCTOR_CACHE_DIR": str(own_cache), **environment}
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses, compilations, texts = json.loads(done.stdout.splitlines()[-1])
    return losses, compilations, texts


@pytest.mark.slow
@needs_compiler
def test_a_second_process_compiles_nothing_anew(prepared: Path, data: PreparedData, tmp_path: Path) -> None:
    """Two machines, each with a temporary folder of its own, share a store."""
    store, first, second = (tmp_path / name for name in ("store", "first", "second"))
    losses, compilations, texts = train_in_a_process(prepared, store, first)
    assert losses == pytest.approx(train(data), rel=1e-5)
    assert compilations > 0
    assert texts == []
    (file,) = store.glob("*/*")
    written = file.stat().st_mtime_ns
    # On CPUs a file holds C++, which each machine compiles for half a minute. The second one has that part already.
    for library in first.rglob("*.so"):
        target = second / library.relative_to(first)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(library.read_bytes())
    assert train_in_a_process(prepared, store, second) == (losses, 0, [])
    assert file.stat().st_mtime_ns == written, "nothing new is to be kept"
    # A torn file, and no compiler: PyTorch's layers, with a warning for each.
    file.write_bytes(file.read_bytes()[:-1])
    eager, _, texts = train_in_a_process(prepared, store, tmp_path / "third", CXX="/nowhere/g++")
    assert eager == train(data)
    torn, missing = texts
    assert torn == f"the compiled network {file.parent.name}/{file.name} is ignored: ValueError: it is damaged"
    assert missing.startswith("training runs PyTorch's layers, since torch.compile failed: ")
    assert "compiler" in missing
