"""What the ranks of one training exchange: their initial state, their gradients, and counts of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, distributed


def in_process_group() -> bool:
    """Return whether this process is a rank of a process group, which may be its only one."""
    return distributed.is_available() and distributed.is_initialized()


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Give all ranks the values of rank 0, in place. Each rank passes the same shapes in the same order.

    The tensors must not require gradients, as those of `state_dict()` do not.
    """
    for tensor in tensors:
        values = tensor.contiguous()  # weights are channels_last, and backends differ in what they send as it is
        distributed.broadcast(values, 0)
        tensor.copy_(values)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of `parameters` over all ranks, in place. Parameters without a gradient are left out.

    The gradients are sent in one buffer, a second copy of them, in the order of `parameters`. With three ranks or more,
    the order in which an all-reduce adds the ranks' values depends on the position in the buffer, and so does the
    rounding. A fixed layout makes a resumed training repeat the sums bit for bit. `DistributedDataParallel` changes the
    layout after the first step of each process (https://docs.pytorch.org/docs/stable/notes/ddp.html), so a resumed
    training would not.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sizes = [gradient.numel() for gradient in gradients]
    buffer = gradients[0].new_empty(sum(sizes))
    parts = [part.view_as(gradient) for part, gradient in zip(buffer.split(sizes), gradients, strict=True)]
    for part, gradient in zip(parts, gradients, strict=True):
        part.copy_(gradient)
    distributed.all_reduce(buffer)
    for part, gradient in zip(parts, gradients, strict=True):
        gradient.copy_(part)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, through which gradients flow. Each rank passes the same shape.

    Each rank's loss depends on the tensors of all ranks, so the gradient of the sum is summed over the ranks too. The
    function of PyTorch that does the same, in `torch.distributed.nn`, is deprecated in PyTorch 2.13.
    """
    return cast(Tensor, _SumOverRanks.apply(tensor))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        return _all_reduced(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)  # the gradient of a sum is expanded: one value for all
    distributed.all_reduce(total)
    return total
