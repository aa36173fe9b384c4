"""What ranks exchange, in real process groups of three processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import json, os, sys
import torch
from torch import distributed, nn
from wmlsearch.model.torch_patches import LiveTensorBytes
from wmlsearch.model.ranks import broadcast_tensors, in_process_group, sum_gradients, sum_over_ranks
folder, rank = sys.argv[1], int(sys.argv[2])
assert not in_process_group()
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
assert in_process_group()
torch.manual_seed(rank)
layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 2)]).to(memory_format=torch.channels_last)
broadcast_tensors(layers.state_dict().values())
state = {name: tensor.tolist() for name, tensor in layers.state_dict().items()}
strides = layers[0].weight.stride()
unused = layers[2].weight
for number, parameter in enumerate(layers.parameters()):
    values = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + 100 * number
    if values.ndim == 4:
        values = values.to(memory_format=torch.channels_last)
    if parameter is not unused:
        parameter.grad = values * 10**rank
gradients = [parameter.grad for parameter in layers.parameters() if parameter is not unused]
with LiveTensorBytes(gradients) as live:
    sum_gradients(layers.parameters())
assert live.peak == sum(gradient.nbytes for gradient in gradients), "one copy of the gradients"
assert unused.grad is None
assert layers[0].weight.stride() == strides == layers[0].weight.grad.stride()
counts = torch.arange(1.0, 4.0).mul(rank + 1).requires_grad_()
total = sum_over_ranks(counts)
(total.prod() * (rank + 1) + total.sum()).backward()
sums = [total.tolist(), counts.tolist(), counts.grad.tolist()]
print(json.dumps([state, [p.grad.tolist() for p in layers.parameters() if p is not unused], sums]), flush=True)
distributed.barrier()
os._exit(0)
"""


def test_all_ranks_have_the_state_of_rank_0_and_the_sum_of_the_gradients(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ranks = [subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(3)]
    results = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0, 0]
    sums = [result.pop() for result in results]
    assert results[0] == results[1] == results[2]
    state, gradients = results[0]
    torch.manual_seed(0)
    assert state["0.weight"] == torch.nn.Conv2d(3, 4, 3).weight.tolist()
    assert state["1.num_batches_tracked"] == 0
    for number, values in zip((0, 1, 2, 3, 5), gradients, strict=True):
        flat = torch.tensor(values).flatten()
        assert flat.tolist() == [111 * (100 * number + index) for index in range(len(flat))]
    # As if one process had the counts of all ranks, and the sum of their losses.
    counts = torch.stack([torch.arange(1.0, 4.0) * (rank + 1) for rank in range(3)]).requires_grad_()
    total = counts.sum(0)
    (total.prod() * (1 + 2 + 3) + 3 * total.sum()).backward()
    assert counts.grad is not None
    for rank, values in enumerate(sums):
        assert values == [total.tolist(), counts[rank].tolist(), counts.grad[rank].tolist()]
