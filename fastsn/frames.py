"""How a forward hands normalized weights to its layers, and how that ends.

The forward of a grouped model opens a :class:`Frame` in its own thread and closes it whatever ends
the call. A layer's weight property asks the frames of its own thread, innermost first; one that no
frame holds is computed by itself. So a result belongs to one forward: no other thread sees it, and
no later call. It is handed out only where computing it again would give the same.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn import regions
from fastsn.backends import reference, requested_backend
from fastsn.forward import (
    Batch,
    Norm,
    Results,
    alone,
    autocast_dtype,
    compute,
    give,
    note,
    part_batch,
    read_batch,
    recall,
)
from fastsn.node import Use
from fastsn.op import Numbers, library, normalize, part_of
from fastsn.state.ranks import require_plain
from fastsn.step import capture_now, look, scale_version

__all__ = ["Block", "Frame", "close", "open_frame", "read"]

# Bound here for :func:`read`, which every layer calls in every forward.
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_hooks_on_top = regions.hooks_on_top
_in_backward = regions.in_backward

# Of results without a node.
_NEVER_CONSUMED = Use()

# A plain local: torch.compile loses the frames of a subclass at graph breaks.
_local = threading.local()


class Block:
    """The results of one batch in one forward, and the circumstances they hold in."""

    __slots__ = (
        "addresses", "around", "autocast", "batch", "grad", "handed", "index", "inference",
        "others", "plain", "requires", "results", "tensors", "training", "use", "versions",
        "weights",
    )  # fmt: skip

    def __init__(
        self, batch: Batch, weights: Sequence[Tensor], addresses: Sequence[int], results: Results
    ) -> None:
        self.batch, self.index, self.weights, self.results = batch, batch.index, weights, results
        self.tensors, self.use = results.tensors, results.use or _NEVER_CONSUMED
        self.versions = [weight._version for weight in weights]
        self.addresses = addresses
        self.requires = [weight.requires_grad for weight in weights]
        self.grad = torch.is_grad_enabled()
        self.inference = results.computed.inference
        self.autocast = torch._C._is_any_autocast_enabled()
        self.training = batch.training
        # Nothing but the weight, its version and torch's modes decides what a read gives.
        self.plain = 0 not in addresses and not (
            self.autocast or self.inference or batch.learned_scales
        )
        self.handed = [False] * len(weights)
        self.around: Any = None
        self.others: dict[Any, Results] = {}

    def holds(self, i: int, norm: Norm, weight: Tensor) -> bool:
        """Whether the numbers are those a read by ``norm`` would give now, to the letter of torch.

        torch advances the vectors at every read. Here the reads of one forward share one, but not
        across a change of the weight or a backward: what comes after is as another forward.
        """
        return (
            weight is self.weights[i]
            and weight._version == self.versions[i]
            and address_of(weight) == self.addresses[i]
            and not (self.handed[i] and self.use.consumed and norm.training
                     and regions.in_backward() == -1)
            and (self.training or not norm.training)
            and (not self.batch.learned_scales or self._scale_holds(i, norm))
            and self.inference <= torch.is_inference_mode_enabled()
        )  # fmt: skip

    def has_seen(self, i: int, alias: Tensor) -> bool:
        """Whether the vectors were advanced for the weight behind ``alias``, as it is now."""
        return (
            alias._version == self.versions[i]
            and address_of(alias) == self.addresses[i]
            and not (self.handed[i] and self.use.consumed)
        )

    def _scale_holds(self, i: int, norm: Norm) -> bool:
        scales = self.results.computed.scales
        return scales is not None and scales[i] == scale_version(norm.scale)

    def hand_out(self, i: int, norm: Norm, weight: Tensor) -> Tensor | None:
        """The normalized weight ``i``; None where it must be computed again."""
        if not self.holds(i, norm, weight):
            return None
        tensor, use = self.tensors[i], self.use
        if not (
            torch.is_grad_enabled() is self.grad
            and weight.requires_grad is self.requires[i]
            and torch._C._is_any_autocast_enabled() is self.autocast is False
            and not regions.inside(False)
            and not use.consumed
        ):
            results = self._elsewhere(i, norm, weight)
            tensor, use = results.tensors[0], results.use or _NEVER_CONSUMED
        use.shared = use.shared or self.handed[i]
        self.handed[i] = True
        return tensor

    def _elsewhere(self, i: int, norm: Norm, weight: Tensor) -> Results:
        """The same numbers in another grad mode, dtype or region, with a node of their own."""
        entered = self._entered()
        computed = self.results.computed
        recalled = recall(entered, alone(norm), [weight])
        if recalled is not None:
            return recalled
        out_dtype = autocast_dtype(weight) if torch._C._is_any_autocast_enabled() else None
        grad, requires = torch.is_grad_enabled(), weight.requires_grad
        consumed = self.use.consumed
        if (
            out_dtype == computed.out_dtype
            and (grad, requires) == (self.grad, self.requires[i])
            and not consumed
        ):
            if entered:
                note(entered, [norm.state], computed.part(i), [self.tensors[i]])
            return Results([self.tensors[i]], self.use, computed)
        key = i, grad, requires, out_dtype, regions.in_backward(), *(id(n) for _, n in entered)
        results = self.others.get(key)
        if results is None or (results.use is not None and results.use.consumed):
            if out_dtype == computed.out_dtype:
                part = computed.part(i)
            else:
                pairs = self.batch.plan.split(computed.numbers.vectors)
                kept = [pairs[j] for j in self.batch.plan.views_at([i])]
                vectors = [u for u, _ in kept], [v for _, v in kept]
                part = compute(alone(norm), [weight], 0, out_dtype, vectors)
                if self.batch.through:  # the iteration that made these vectors
                    made = part_of(self.batch.plan, computed.numbers, [i]).vectors
                    part.numbers = part.numbers._replace(vectors=made)
            results = self.others[key] = give(alone(norm), part, [weight], keep=True)
            note(entered, [norm.state], part)
        return results

    def _entered(self) -> list[regions.Region]:
        """The checkpointed regions entered since the block was computed."""
        if not regions.inside(self.batch.training):
            return []
        before = {id(notes) for _, notes in self.around or ()}
        return [region for region in regions.regions() if id(region[1]) not in before]


class Frame:
    """The open forward of one model in one thread; frames of outer models are its ``outer``.

    Attributes:
        blocks: results computed by eager code.
        given: weights by handle that are handed out whatever happens: those that compiled code has
            computed for itself, and those of :meth:`~fastsn.SpectralNormGroup.frozen`.
    """

    __slots__ = ("blocks", "given", "outer")

    def __init__(self, outer: Frame | None, given: dict[int, Tensor] | None = None) -> None:
        self.outer = outer
        self.blocks: list[Block] = []
        self.given = given


def current() -> Frame | None:
    """This thread's innermost frame."""
    try:
        return _local.frame
    except AttributeError:
        return None


def address_of(weight: Tensor) -> int:
    """Where a weight lies; 0 for one that has no memory of its own."""
    try:
        return weight.data_ptr()
    except RuntimeError:  # a tensor of a functorch transform, or a fake one
        return 0


def read(norm: Norm, weight: Tensor) -> Tensor:
    """The normalized weight of one layer: what its ``weight`` property gives."""
    if torch.compiler.is_compiling():
        return _read_traced(norm, weight)
    handle = norm.state.handle
    try:
        frame = _local.frame
    except AttributeError:
        frame = None
    while frame is not None:
        for block in frame.blocks:
            i = block.index.get(handle)
            if i is None:
                continue
            # The common case of :meth:`Block.hand_out`, in line: a call costs as much again.
            if (
                block.plain
                and weight is block.weights[i]
                and weight._version == block.versions[i]
                and weight.data_ptr() == block.addresses[i]
                and not block.handed[i]
                and not block.use.consumed
                and norm.training is block.training
                and _is_grad_enabled() is block.grad
                and weight.requires_grad is block.requires[i]
                and not _is_any_autocast_enabled()
                and _hooks_on_top(True) is None
                and _in_backward() == -1
            ):
                block.handed[i] = True
                return block.tensors[i]
            tensor = block.hand_out(i, norm, weight)
            return _read_alone(norm, weight) if tensor is None else tensor
        if frame.given is not None and handle in frame.given:
            return frame.given[handle]
        frame = frame.outer
    return _read_alone(norm, weight)


def _divided(norm: Norm, weight: Tensor) -> Tensor:
    """A 1-d weight, by its Euclidean norm."""
    if norm.bound is not None:
        length = torch.linalg.vector_norm(weight)
        return weight * norm.scale / (length / norm.bound).clamp_min(1)
    return F.normalize(weight, dim=0, eps=norm.eps) * norm.scale


def _read_alone(norm: Norm, weight: Tensor) -> Tensor:
    if not norm.vector_names:  # 1-d
        return _divided(norm, weight)
    require_plain(weight)
    return read_batch(alone(norm), [weight]).tensors[0]


def held(norm: Norm, weight: Tensor) -> bool:
    """Whether a read now would be served by an open frame."""
    frame, handle = current(), norm.state.handle
    while frame is not None:
        for block in frame.blocks:
            i = block.index.get(handle)
            if i is not None:
                return block.holds(i, norm, weight)
        if frame.given is not None and handle in frame.given:
            return True
        frame = frame.outer
    return False


def block_of(batch: Batch, weights: Sequence[Tensor], addresses: Sequence[int]) -> Block | None:
    """Computes ``batch`` for one forward; None where results cannot be shared by its reads."""
    if weights[0].is_inference():  # no change of theirs could be seen
        return None
    around = regions.regions() if regions.inside(batch.training) else None
    block = Block(batch, weights, addresses, read_batch(batch, weights))
    block.around = around
    return block


def open_frame(frame: Frame | None) -> None:
    """Makes ``frame`` this thread's innermost; what was opened inside of it is no more."""
    _local.frame = frame


def close(frame: Frame) -> None:
    """Ends ``frame``: nobody will read what it holds."""
    innermost = current()
    if innermost is frame:
        _local.frame = frame.outer
        return
    # A generator's block can end after others that were opened inside of it.
    while innermost is not None:
        if innermost.outer is frame:
            innermost.outer = frame.outer
            return
        innermost = innermost.outer


# Compiled code cannot look at versions, nor at what an eager forward around it has computed. This
# op looks at run time: it advances the vectors of those layers whose reads would advance them now.
# W_sn is then computed from them every time.
library.define("advance(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, int[] handles) -> ()")


def _advance(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], handles: Sequence[int]
) -> None:
    batch = part_batch(tuple(handles))
    capture = capture_now(weights[0])
    if batch.in_steps:
        fresh = [
            i
            for i, (state, weight) in enumerate(zip(batch.states, weights, strict=True))
            if state.sight is None or not state.sight.shows(weight, capture, itself=False)
        ]
    else:
        fresh = [i for i, weight in enumerate(weights) if not _advanced(handles[i], weight)]
    if not fresh or regions.in_backward() != -1:
        return
    part = batch if len(fresh) == len(weights) else part_batch(tuple(handles[i] for i in fresh))
    given = [weights[i] for i in fresh]
    views = batch.plan.views_at(fresh)
    # Into the vectors handed in: functionalized graphs pass copies of the buffers.
    vectors = [us[j] for j in views], [vs[j] for j in views]
    compute(part, given, part.n_power_iterations, None, vectors)
    if batch.in_steps:
        for state, weight in zip(part.states, given, strict=True):
            state.sight, state.computed = look(weight, capture), None


def _advanced(handle: int, weight: Tensor) -> bool:
    """Whether an eager forward around compiled code has advanced the vectors for this weight."""
    frame = current()
    while frame is not None:
        for block in frame.blocks:
            i = block.index.get(handle)
            if i is not None:
                return block.has_seen(i, weight)
        frame = frame.outer
    return False


library.impl("advance", _advance, "CompositeExplicitAutograd")
torch.library.register_fake("fastsn::advance", lambda *args: None, lib=library)


def _read_traced(norm: Norm, weight: Tensor) -> Tensor:
    if not norm.vector_names:
        return _divided(norm, weight)
    frame = current()
    while frame is not None:
        if frame.given is not None and norm.state.handle in frame.given:
            return frame.given[norm.state.handle]
        frame = frame.outer
    return traced_batch(alone(norm), [weight])[0]


def _exporting_to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


# torch.compiler.assume_constant_result, without its import of the compiler: the tracer would take
# the answer for False.
_exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def traced_batch(batch: Batch, weights: Sequence[Tensor]) -> list[Tensor]:
    """The normalized weights of one read, in compiled code."""
    require_plain(weights[0])
    out_dtype = autocast_dtype(weights[0])
    us, vs = batch.vectors()
    iterations = batch.n_power_iterations if batch.training else 0
    if iterations and _exporting_to_onnx():
        raise RuntimeError(
            "fastsn: expected a model in evaluation mode, got one exported to ONNX in training: "
            "call model.eval(), or fastsn.fold(model), first"
        )
    # Another process, which gets an exported program, has neither our weights nor our frames.
    looks = (batch.in_steps or current() is not None) and not torch.compiler.is_exporting()
    if iterations and looks and batch.through:
        raise RuntimeError(
            "fastsn: expected gradient='through' with update='forward' in a model that is compiled "
            "as a whole, got update='step' or a part of a grouped model: its iteration is not seen "
            "by the compiled code"
        )
    if iterations and looks:
        with torch.no_grad():
            torch.ops.fastsn.advance([weight.detach() for weight in weights], us, vs, batch.handles)
        iterations = 0
    call = normalize
    if torch.compiler.is_exporting() and not iterations:  # in plain torch, for ONNX and others
        call = lambda *args, store: Numbers(*reference.differentiable(*args[:-1]))  # noqa: E731
    numbers = call(
        batch.plan, weights, us, vs, batch.scale_tensor(weights[0].device), iterations, out_dtype,
        requested_backend(), store=iterations > 0,
    )  # fmt: skip
    return numbers.weights_sn
