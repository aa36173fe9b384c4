"""CUDA graphs of the steps of a training: a GPU replays what a step has launched, without the host."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch

from wmlsearch.model.ranks import in_process_group
from wmlsearch.model.torch_patches import reset_after_failed_capture

Kind = Literal["training", "validation", "prediction"]  # of a step


class StepGraphs:
    """The CUDA graphs of one training, or of predictions: one for each kind of step and its size.

    There are graphs on a GPU without other ranks; elsewhere all steps run as usual. All graphs have one stream and one
    memory, which is as large as the largest step needs: they are replayed one after another, and a step finds nothing
    there that an earlier one has left. What steps hand on is in tensors that were made outside.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.possible = device.type == "cuda" and not in_process_group()
        self.stream = graph_stream(device) if self.possible else None
        self.pool = self._new_pool()
        self.failed: set[Kind] = set()
        self.replays: dict[tuple[Kind, Hashable], Callable[[], None]] = {}

    def _new_pool(self) -> Any:
        """Return a name for memory that graphs will share. It cannot be used again after its last graph is gone."""
        return torch.cuda.graph_pool_handle() if self.stream is not None else None

    def allows(self, kind: Kind) -> bool:
        """Return whether steps of this kind are captured."""
        return self.possible and kind not in self.failed

    def sizes(self, kind: Kind) -> list[Hashable]:
        """Return the sizes whose step is a graph, in the order of their capture."""
        return [size for one, size in self.replays if one == kind]

    def forget(self, kind: Kind, size: Hashable | None = None) -> None:
        """Drop the graphs of this kind, or that of one size, which use memory that is not in use any more."""
        if sizes := [one for one in self.sizes(kind) if size is None or one == size]:
            for one in sizes:
                del self.replays[kind, one]
            if not self.replays:
                self.pool = self._new_pool()

    def run(
        self,
        kind: Kind,
        size: Hashable,
        step: Callable[[], None],
        is_warm: bool,
        capturing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> bool:
        """Run a step of this size, by its graph if there is one. Return whether it was a graph.

        Args:
            kind: Kind of the step.
            size: Decides, together with `kind`, which kernels the step launches; for a training step, the number of
                images.
            step: Launches the step on the current stream, without waiting for it.
            is_warm: Whether such a step has run before, so that set-up which a capture forbids is done. A graph is then
                captured if there is none.
            capturing: Context manager that surrounds a capture.
        """
        if self.allows(kind) and is_warm and (kind, size) not in self.replays:
            self._capture(kind, size, step, capturing)
        replay = self.replays.get((kind, size))
        (replay or step)()
        return replay is not None

    def _capture(
        self,
        kind: Kind,
        size: Hashable,
        step: Callable[[], None],
        capturing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Capture a step, which does not execute it. If that fails, steps of its kind run as usual from here on."""
        try:
            with capturing():
                self.replays[kind, size] = capture_graph(step, self.stream, self.pool)
        except Exception as error:  # of many kinds, and everything works without graphs
            self.failed.add(kind)
            self.replays.clear()  # of all kinds: the reset replaces the GPU's generator, which graphs hold
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"{kind} continues without CUDA graphs, since a capture failed: {reason}", stacklevel=2)
            if self.stream is not None:
                reset_after_failed_capture(self.device, self.pool)
                self.pool = self._new_pool()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Run the block on the graphs' stream, in order with what runs before and after."""
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outer.wait_stream(self.stream)


@cache
def graph_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all trainings of this process, since libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)


def capture_graph(step: Callable[[], None], stream: torch.cuda.Stream | None, pool: Any) -> Callable[[], None]:
    """Return a function that replays all that `step` launches on this stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        step()
    return graph.replay
