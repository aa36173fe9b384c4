"""The size of the checkpoints of a configuration, and what --max-checkpoint-gb leaves for the best trials."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.model.optimizers import OPTIMIZER_STATE
from wmlsearch.model.unet import UNet
from wmlsearch.search.pbt import most_snapshots
from wmlsearch.space import Choices, SearchSpace

# The hyperparameters that decide the shapes of weights.
SHAPE = ("input_slices", "depth", "base_channels", "network", "norm", "up_kernel")
RECORD_BYTES = 305  # of a checkpoint, for each tensor beside its numbers: names, checksum, alignment


class CheckpointBytes(NamedTuple):
    """The size of the checkpoints of a trial or run."""

    last: int  # of `last.pt`: weights and the state of the optimiser
    best: int  # of `best.pt`: weights


def checkpoint_bytes(config: TrialConfig) -> CheckpointBytes:
    """Return the bytes of the checkpoints of a configuration."""
    weights, records, parameters, tensors = _count_weights(
        TrialConfig(**{name: getattr(config, name) for name in SHAPE})
    )
    copies, counts = OPTIMIZER_STATE[config.optimizer]
    best = weights + RECORD_BYTES * records
    state = copies * (4 * parameters + RECORD_BYTES * tensors) + counts * tensors * (4 + RECORD_BYTES)
    return CheckpointBytes(last=best + state + (best if config.ema else 0), best=best)


def most_checkpoint_bytes(space: SearchSpace) -> CheckpointBytes:
    """Return the bytes of the checkpoints of the largest network: of the space, or the baseline's."""
    options: dict[str, list[Any]] = {}
    for name in (*SHAPE, "optimizer"):
        if name in space.dimensions:
            domain = space.dimensions[name].domain
            options[name] = list(domain.values) if isinstance(domain, Choices) else [int(domain.high)]
        else:
            options[name] = [space.defaults[name]]
    if "ema" in space.dimensions:
        domain = space.dimensions["ema"].domain
        options["ema"] = [max(domain.values, key=bool) if isinstance(domain, Choices) else domain.high]
    else:
        options["ema"] = [space.defaults["ema"]]
    corners = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    sizes = [checkpoint_bytes(TrialConfig(**corner)) for corner in corners] + [checkpoint_bytes(TrialConfig())]
    return CheckpointBytes(max(size.last for size in sizes), max(size.best for size in sizes))


def bytes_for_best_weights(space: SearchSpace, settings: RunSettings, slots: Slots) -> float:
    """Return the bytes that --max-checkpoint-gb leaves for the weights of ended trials.

    A running trial needs up to three checkpoints, since a new `last.pt` is written beside the old one. Raises
    InputError if the limit is too small for the running trials and one `best.pt`.
    """
    if settings.max_checkpoint_gb is None:
        return math.inf
    last, best = most_checkpoint_bytes(space)
    running = slots.count * (last + best + last)
    snapshots = most_snapshots(settings, slots.count)
    snapshot_bytes = snapshots * (last + best)
    remaining = settings.max_checkpoint_gb * 1e9 - running - snapshot_bytes
    if remaining < best:
        for_pbt = f", {snapshots} snapshots for children {snapshot_bytes / 1e9:.3g} GB" if snapshots else ""
        raise InputError(
            f"--max-checkpoint-gb {settings.max_checkpoint_gb:g}: {slots.count} running trials may need "
            f"{running / 1e9:.3g} GB{for_pbt} and the best weights {best / 1e9:.3g} GB; "
            f"give at least {math.ceil((running + snapshot_bytes + best) / 1e6) / 1000:g}, or search smaller networks"
            + (", or compare less often (--grace-epochs)" if snapshots else "")
        )
    return remaining


@functools.cache
def _count_weights(config: TrialConfig) -> tuple[int, int, int, int]:
    """Return bytes and number of a network's tensors, then the number of trained parameters and of their tensors."""
    with torch.device("meta"):  # tensors without memory
        unet = UNet.of(config)
    tensors = unet.state_dict().values()
    trained = [tensor for tensor in unet.parameters() if tensor.requires_grad]
    return sum(tensor.nbytes for tensor in tensors), len(tensors), sum(t.numel() for t in trained), len(trained)
