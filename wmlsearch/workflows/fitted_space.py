"""A shipped search space without what a data set, or the workers of a trial, cannot have.

A space of the user's own stays as it is: preflight refuses what it asks for in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wmlsearch.config import TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.model.checks import input_faults, smallest_batch, smallest_size
from wmlsearch.space import Choices, Range, SearchSpace, is_shipped


def space_for_data(space: SearchSpace, data: Path, workers: int, say: Callable[[str], None]) -> SearchSpace:
    """Return a shipped space fitted to a data set, and say what is left out; another space as it is.

    Args:
        space: The space.
        data: Folder of the prepared data set. Raises InputError if its manifest cannot be read.
        workers: The workers that train one trial together. Each needs a slice of every batch.
        say: Shows the user what is left out, and why.
    """
    if not is_shipped(space):
        return space
    manifest = Manifest.read(data)
    return _batches(_inputs(_depths(space, manifest, say), manifest, say), manifest, workers, say)


def _depths(space: SearchSpace, manifest: Manifest, say: Callable[[str], None]) -> SearchSpace:
    """Leave out networks whose lowest level would be a single pixel."""
    domain, fitted_space = space.domain("depth"), space
    depths = [value for value in domain.values if isinstance(value, int)] if isinstance(domain, Choices) else []
    possible = [depth for depth in depths if smallest_size(depth) <= manifest.size]
    for depth in depths if possible else ():
        if depth not in possible:
            fitted_space = fitted_space.without("depth", depth)
            say(
                f"note: {space.source} is searched without depth {depth}: it needs slices of {smallest_size(depth)} "
                f"pixels, and these have {manifest.size}"
            )
    return fitted_space


def _inputs(space: SearchSpace, manifest: Manifest, say: Callable[[str], None]) -> SearchSpace:
    """Leave out inputs of the network that cannot be made of the slices of every fold."""
    fitted_space = space
    for name in ("intensity", "input_slices"):
        domain = space.domain(name)
        for value in domain.values if isinstance(domain, Choices) else ():
            config = TrialConfig.from_mapping({name: value})
            faults = [fault for fold in range(manifest.fold_count) for fault in input_faults(config, manifest, fold)]
            if faults:
                fitted_space = fitted_space.without(name, value)
                say(f"note: {space.source} is searched without {name} {value}: {faults[0][0]}")
    return fitted_space


def _batches(space: SearchSpace, manifest: Manifest, workers: int, say: Callable[[str], None]) -> SearchSpace:
    """Leave out batches too small for the workers, in the epoch of any fold."""
    domain = space.domain("batch_size")
    if not isinstance(domain, Range):
        return space
    epochs = [len(manifest.indices("train", kept_only=True, fold=fold)) for fold in range(manifest.fold_count)]
    sizes = range(int(domain.low), int(domain.high) + 1)
    enough = [size for size in sizes if all(smallest_batch(slices, size) >= workers for slices in epochs if slices)]
    if not enough or enough[0] == domain.low:
        return space
    # All from here on are enough, since a larger `batch_size` never makes the smallest batch smaller.
    say(f"note: {space.source} is searched with batch_size from {enough[0]}: {workers} workers share each batch")
    return space.with_lower_bound("batch_size", enough[0])
