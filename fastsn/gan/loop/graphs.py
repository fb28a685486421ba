"""One CUDA graph for all updates of an iteration: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CapturedStep"]

#: Iterations before the capture: they make the optimizers' state, and let cuDNN choose.
WARM_UP = 3


class CapturedStep:
    """``step(inputs)``, captured at the fourth call and replayed from then on.

    The first calls are real iterations too, so nothing is computed twice and nothing is lost.

    Args:
        step: works in place on tensors that stay where they are, and waits for nothing.
    """

    def __init__(self, step: Callable[[list[Tensor]], None]) -> None:
        self.step = step
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []

    def __call__(self, inputs: list[Tensor]) -> None:
        if self.calls < WARM_UP:
            self._warm_up(inputs)
        else:
            if self._graph is None:
                self._capture(inputs)
            assert self._graph is not None
            torch._foreach_copy_(self._inputs, inputs)
            self._graph.replay()
        self.calls += 1

    def _warm_up(self, inputs: list[Tensor]) -> None:
        # Work that autograd first meets on the capturing stream must not wait for the default one.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step(inputs)
        torch.cuda.current_stream().wait_stream(side)

    def _capture(self, inputs: list[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.step(self._inputs)
