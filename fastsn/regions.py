"""Activation checkpointing: a recomputation reads the weights that its forward has read.

Inside a region of ``torch.utils.checkpoint`` what a forward reads is noted with the region; the
recomputation, which runs inside a backward, finds it there and advances nothing. Both kinds are
known: a non-reentrant region by its hooks for saved tensors, a reentrant one by the Python frame of
its autograd function. These are torch's private names; where one is missing, or the checkpointing
is another library's, nothing is found, and :func:`fastsn.forward.iterations_now` decides.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

__all__ = ["Notes", "Region", "hooks_on_top", "in_backward", "inside", "regions"]


class Notes:
    """What the reads inside one region gave, in order, by handle of a parametrization."""

    def __init__(self) -> None:
        self._reads: dict[int, list[Any]] = {}
        self._next: dict[tuple[int, int], int] = {}

    def add(self, handle: int, result: Any) -> None:
        """Notes one more read of a forward."""
        self._reads.setdefault(handle, []).append(result)

    def repeat(self, handles: Sequence[int]) -> list[Any] | None:
        """The next results that the recomputation by this backward is to read; None if unknown."""
        backward = in_backward()
        places = [self._next.get((backward, handle), 0) for handle in handles]
        reads = [self._reads.get(handle, ()) for handle in handles]
        if any(len(read) <= place for read, place in zip(reads, places, strict=True)):
            return None
        for handle, place in zip(handles, places, strict=True):
            self._next[backward, handle] = place + 1
        return [read[place] for read, place in zip(reads, places, strict=True)]


#: Whether the region is being recomputed, and its notes.
Region = tuple[bool, Notes]

_NAME = "_fastsn_notes"
hooks_on_top = torch._C._autograd._top_saved_tensors_default_hooks
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks


in_backward = torch._C._current_graph_task_id
"""-1 outside a backward call of this thread."""


def inside(training: bool) -> bool:
    """Whether a region may be there: a quick look, which most forwards leave with False."""
    return (
        hooks_on_top(True) is not None
        or in_backward() != -1
        # a reentrant region's forward runs without gradients
        or (training and not torch.is_grad_enabled())
    )


def regions() -> list[Region]:
    """The regions this thread is in, innermost first: ``(is recomputed, notes)``."""
    module = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        return []
    found = [*_by_hooks(module), *_by_frames(module)]
    return [(recomputed, _notes_of(region)) for recomputed, region in found]


def _notes_of(region: Any) -> Notes:
    notes = getattr(region, _NAME, None)
    if notes is None:
        notes = Notes()
        setattr(region, _NAME, notes)
    return notes


def _by_hooks(module: Any) -> Iterator[tuple[bool, Any]]:
    """Non-reentrant regions. Only the innermost hooks can be seen: they are lifted for a moment."""
    kind: Any = getattr(module, "_CheckpointFrame", ())
    lifted: list[Any] = []
    try:
        while kind and (hooks := hooks_on_top(True)) is not None:
            lifted.append(hooks)
            _pop_hooks()
    finally:
        for hooks in reversed(lifted):
            _push_hooks(*hooks)
    for pack, _ in lifted:
        for function in (pack, getattr(pack, "__wrapped__", None)):
            for cell in getattr(function, "__closure__", None) or ():
                value = cell.cell_contents
                recomputed = isinstance(value, weakref.ref)
                value = value() if recomputed else value
                if isinstance(value, kind):
                    yield recomputed, value


def _by_frames(module: Any) -> Iterator[tuple[bool, Any]]:
    """Reentrant regions, by walking this thread's Python frames."""
    function = getattr(module, "CheckpointFunction", None)
    if function is None:
        return
    forward, backward = function.forward.__code__, function.backward.__code__
    frame: Any = sys._getframe()
    while (frame := frame.f_back) is not None:
        if frame.f_code is forward or frame.f_code is backward:
            context = frame.f_locals.get("ctx")
            if context is not None:
                yield frame.f_code is backward, context
