"""``update="step"``: how a weight, once seen, is recognized; and what is known of its changes.

A :class:`Sight` is one look at a weight. It holds the weight's memory, so that no other tensor can
come to its address; it compares the tensor itself, its version counter and its shape; and it
watches the memory for optimizers that count nothing. A replayed CUDA graph changes a weight without
a trace, so after a capture no sight is trusted outside of it.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastsn.backends import native

__all__ = ["Sight", "capture_now", "look"]


class Watch:
    """One piece of memory that holds a weight.

    Attributes:
        steps: optimizer steps that changed it.
        captured: a CUDA graph, whose replays cannot be seen, reads or writes it.
    """

    __slots__ = ("__weakref__", "captured", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.captured = False


# By address; a watch lives as long as a sight does, which keeps the memory in its place.
_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()


class Sight:
    """One look at a weight; see the module's docstring."""

    __slots__ = (
        "address", "alias", "capture", "identity", "shape", "steps", "version", "watch",
    )  # fmt: skip

    def __init__(self, weight: Tensor, watch: Watch, capture: Any) -> None:
        # An alias, not the weight: a temporary one would keep its graph.
        self.alias, self.identity, self.shape = weight.detach(), id(weight), weight.shape
        self.address, self.version = weight.data_ptr(), weight._version
        self.watch, self.steps, self.capture = watch, watch.steps, capture

    def shows(self, weight: Tensor, capture: Any, *, itself: bool = True) -> bool:
        """Whether ``weight`` is the one that was seen, unchanged.

        Args:
            capture: of :func:`capture_now`.
            itself: the same tensor object; without it an alias is enough, as compiled code has.
        """
        try:
            return (
                (self.identity == id(weight) or not itself)
                and self.version == weight._version
                and self.address == weight.data_ptr()
                and self.steps == self.watch.steps
                and self.shape == weight.shape
                and (self.capture == capture if capture else not self.watch.captured)
            )
        except RuntimeError:  # an inference tensor has no version
            return False


def look(weight: Tensor, capture: Any) -> Sight | None:
    """A look at ``weight``; None if it cannot be recognized later."""
    _watch_optimizers()
    while torch._C._functorch.is_functorch_wrapped_tensor(weight):
        weight = torch._C._functorch.get_unwrapped(weight)
    try:
        memory = weight.untyped_storage().data_ptr()
        watch = _watches.get(memory) or Watch()
        sight = Sight(weight, watch, capture)
    except RuntimeError:  # an inference tensor has no version, a meta tensor no address
        return None
    _watches[memory] = watch
    if capture:
        watch.captured = True
    return sight


def scale_version(scale: Any) -> Any:
    """What tells a learned scale's value: the tensor and its version."""
    return (id(scale), scale._version) if isinstance(scale, Tensor) else scale


def capture_now(weight: Tensor) -> Any:
    """The CUDA graph capture that this thread's stream is part of; None outside of one.

    Where captures cannot be told apart, every call gives another one: nothing is then shared.
    """
    if not weight.is_cuda or not torch.cuda.is_current_stream_capturing():
        return None
    return native.capture_id(weight.device) or object()


@cache
def _watch_optimizers() -> None:
    """From now on an optimizer's step is a change of the weights in it, whatever it counts itself.

    torch's fused optimizers, and kernels of other libraries, leave the version counters alone.
    """

    def changed(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not _watches:
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is None or type(weight) not in (torch.nn.Parameter, Tensor):
                    continue
                watch = _watches.get(weight.untyped_storage().data_ptr())
                if watch is not None:
                    watch.steps += 1
                    if capture_now(weight) is not None:
                        watch.captured = True

    register_optimizer_step_post_hook(changed)
