"""The compiled network on a GPU: in CUDA graphs, beside PyTorch's layers, and kept for another process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model import steps as module
from wmlsearch.model.kernels import VARIABLE
from wmlsearch.model.training import Trainer, epochs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here"),
]
EPOCHS = 6  # of 6 batches of 7 slices and one of 6: both sizes are captured
SMALL = TrialConfig(depth=2, base_channels=8, batch_size=7, dropout=0.0, learning_rate=3e-3, optimizer="sgd")
TRAINING = """
import json, sys
from pathlib import Path
from wmlsearch.cluster.compiled_networks import CompiledNetworks
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.torch_patches import count_compilations
from wmlsearch.model.training import epochs
prepared, store, config = sys.argv[1:]
rows = list(epochs(TrialConfig(**json.loads(config)), PreparedData.open(Path(prepared), "cuda"), max_epochs=2,
                   compiled=CompiledNetworks(store)))
print(json.dumps([[row.metrics["train_loss"] for row in rows], count_compilations()]))
"""


def losses(config: TrialConfig, data: PreparedData, **options: Any) -> list[float]:
    return [report.metrics["train_loss"] or 0.0 for report in epochs(config, data, max_epochs=EPOCHS, **options)]


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-2), ("bfloat16", 5e-2)])
def test_a_compiled_training_equals_that_of_torchs_layers(
    precision: Any, allowed: float, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(prepared, "cuda")
    wanted = losses(SMALL, data, precision=precision)
    monkeypatch.setenv(VARIABLE, "compile")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(training|validation) (continues|runs)")
        graphed = losses(SMALL, data, precision=precision)
    monkeypatch.setattr(module, "WARM_UP", 10**9)
    eager = losses(SMALL, data, precision=precision)
    assert graphed == pytest.approx(wanted, rel=allowed)
    assert eager == pytest.approx(wanted, rel=allowed)


def test_dropout_differs_at_each_replay(prepared: Path) -> None:
    data = PreparedData.open(prepared, "cuda")
    for dropout, different in ((0.5, True), (0.0, False)):
        trainer = Trainer(SMALL.model_copy(update={"dropout": dropout}), data, 1, 0, "float32")
        trainer.compile_network(None)
        trainer.unet.train()
        same = tuple(torch.arange(7) for _ in range(9))
        computed = trainer.steps.run(same, [0.0] * 9, None, 1)  # nothing is learned at a rate of 0
        assert trainer.graphs.sizes("training") == [7]
        assert (len({round(loss, 5) for loss in computed[module.WARM_UP :]}) > 1) == different


def test_a_second_process_with_another_configuration_compiles_nothing_anew(prepared: Path, tmp_path: Path) -> None:
    """Two machines, each with temporary folders of its own, share a store, and so do other sizes of batches."""
    computed = []
    for name, batch_size in (("first", 7), ("second", 7), ("third", 12)):
        config = json.dumps({**SMALL.model_dump(exclude_defaults=True), "dropout": 0.1, "batch_size": batch_size})
        command = [sys.executable, "-c", TRAINING, str(prepared), str(tmp_path / "store"), config]
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name), "TRITON_CACHE_DIR": str(tmp_path / name / "triton")}
        environment = {**os.environ, VARIABLE: "compile", **caches}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        computed.append(json.loads(done.stdout.splitlines()[-1]))
    (first, compilations), (second, again), (_, of_another_size) = computed
    assert compilations > 0
    assert (again, of_another_size) == (0, 0)
    assert second == pytest.approx(first, rel=1e-2)  # sums of floats have no fixed order on a GPU
