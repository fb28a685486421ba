"""What is computed now, and what is used again: the normalized weights of layers, alone or grouped.

A :class:`Batch` is what shares one op call: layers of equal settings, with their plan.
:func:`read_batch` gives the results of one read, or of one forward of a group. It advances the
vectors of layers in training mode: at every call, or with ``update="step"`` once per change of a
weight (:mod:`fastsn.step`); never while a backward runs, which recomputes a forward that was.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastsn import regions
from fastsn.backends import requested_backend
from fastsn.node import Use, attach
from fastsn.op import Numbers, normalize, part_of
from fastsn.plan import Plan, plan_of
from fastsn.state.ranks import share_vectors
from fastsn.step import Sight, capture_now, look, scale_version

__all__ = [
    "Batch",
    "Computed",
    "Norm",
    "Results",
    "State",
    "alone",
    "autocast_dtype",
    "batches",
    "compute",
    "iterations_now",
    "part_batch",
    "read_batch",
    "settings_changed",
    "vectors_lock",
]

# Vectors are read and replaced by one thread at a time, so that no thread reads half of an advance.
# One lock for all, as a layer may belong to several groups.
_vectors_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked process, where the thread that held the lock is not."""
    global _vectors_lock
    _vectors_lock = threading.RLock()


def vectors_lock() -> threading.RLock:
    """Held while vectors are read or replaced."""
    return _vectors_lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Norm(Protocol):
    """What is needed of a parametrization here (:class:`~fastsn.parametrization.SpectralNorm`)."""

    training: bool
    dim: int
    kind: int
    eps: float
    n_power_iterations: int
    update: str
    scale: float | Tensor
    bound: float | None
    gradient: str
    shape: tuple[int, ...]
    vector_names: tuple[tuple[str, str], ...]
    state: State

    def vectors(self) -> list[tuple[Tensor, Tensor]]: ...

    _buffers: dict[str, Tensor | None]


_handles = itertools.count()
_living: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class State:
    """What belongs to a parametrization in this process alone: never copied, pickled or saved.

    Attributes:
        handle: a number by which it is found, by notes and by ops in compiled graphs.
        alone: the batch of a read outside of a group's forward.
        parts: batches of this layer and others, by their handles.
        sight: the weight for which the vectors were advanced last, with ``update="step"``.
        computed, place: the results for it, and which of them is this layer's.
        unread: training forwards since a backward recomputed one (:func:`iterations_now`).
        synchronized: the vectors are the same on all ranks.
    """

    __slots__ = ("alone", "computed", "handle", "parts", "place", "sight", "synchronized", "unread")

    def __init__(self, norm: Any) -> None:
        self.handle = next(_handles)
        self.alone: Batch | None = None  # made at the first read
        self.parts: dict[tuple[int, ...], Batch] = {}
        self.sight: Sight | None = None
        self.computed: Computed | None = None
        self.place = 0
        self.unread = 0
        self.synchronized = False
        _living[self.handle] = norm

    def forget_weight(self) -> None:
        """With ``update="step"``: takes the weight for changed at the next forward."""
        self.sight = self.computed = None


class Batch:
    """Layers that share an op call, and all about them that does not change from call to call."""

    def __init__(self, norms: Sequence[Norm]) -> None:
        first = norms[0]
        self.norms = tuple(norms)
        self.states = [norm.state for norm in norms]
        self.handles = [state.handle for state in self.states]
        self.index = {handle: i for i, handle in enumerate(self.handles)}
        self.made_at = changes
        self.n_power_iterations = first.n_power_iterations
        self.in_steps = first.update == "step"
        self.through = first.gradient == "through"
        scales = [norm.scale for norm in norms]
        self.learned_scales = any(isinstance(scale, Tensor) for scale in scales)
        self.plan = plan_of(
            tuple(norm.shape for norm in norms),
            tuple(norm.dim for norm in norms),
            tuple(norm.kind for norm in norms),
            tuple(1.0 if isinstance(scale, Tensor) else float(scale) for scale in scales),
            first.eps,
            tuple(norm.bound or 0.0 for norm in norms),
            tuple(norm.gradient == "through" for norm in norms),
        ).with_memory()
        names = [(norm._buffers, pair) for norm in norms for pair in norm.vector_names]
        self._us = [(buffers, u) for buffers, (u, _) in names]
        self._vs = [(buffers, v) for buffers, (_, v) in names]

    @property
    def training(self) -> bool:
        """Whether reads advance the vectors; the same for all layers of a read."""
        return self.norms[0].training

    def is_uniform(self, weights: Sequence[Tensor]) -> bool:
        """Whether one call can serve these weights as the layers are now."""
        training, dtype, device = self.training, weights[0].dtype, weights[0].device
        return all(
            norm.training is training and weight.dtype is dtype and weight.device == device
            for norm, weight in zip(self.norms, weights, strict=True)
        )

    def vectors(self) -> tuple[list[Any], list[Any]]:
        """The buffers u and v of all unfoldings, as they are now."""
        us = [buffers[name] for buffers, name in self._us]
        return us, [buffers[name] for buffers, name in self._vs]

    def scale_tensor(self, device: torch.device) -> Tensor | None:
        """Scales as the op takes them: None for floats, else ``[k]``, differentiable."""
        if not self.learned_scales:
            return None
        tensors = [
            norm.scale
            if isinstance(norm.scale, Tensor)
            else torch.full((), norm.scale, device=device)
            for norm in self.norms
        ]
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        return torch.stack([tensor.to(dtype) for tensor in tensors])


class Computed:
    """Numbers of one op call, kept for a forward or, with ``update="step"``, for several.

    Attributes:
        out_dtype: that autocast wanted, or None.
        scales: what tells the values of learned scales.
        inference: made in inference mode: nothing that can be differentiated.
        ready: where the numbers are on a GPU: their stream, and the event after which they exist.
        versions: of kept normalized weights, which a reader may have changed in place.
    """

    __slots__ = ("inference", "numbers", "out_dtype", "plan", "ready", "scales", "versions")

    def __init__(
        self,
        plan: Plan,
        numbers: Numbers,
        out_dtype: torch.dtype | None,
        scales: Any,
        ready: Any = None,
    ) -> None:
        self.plan, self.numbers, self.out_dtype, self.scales = plan, numbers, out_dtype, scales
        self.inference = torch.is_inference_mode_enabled()
        self.ready = ready
        self.versions: list[int] = []

    def bare(self) -> Computed:
        """The same without the node that the numbers may have been given."""
        numbers = self.numbers
        return self._with(
            self.plan,
            numbers._replace(
                weights_sn=[weight_sn.detach() for weight_sn in numbers.weights_sn],
                sigmas=numbers.sigmas.detach(),
            ),
            self.scales,
        )

    def part(self, i: int) -> Computed:
        """The share of weight ``i``, bare."""
        if len(self.plan) == 1:
            return self.bare()
        with torch.no_grad():
            numbers = part_of(self.plan, self.numbers, [i])
        scales = None if self.scales is None else [self.scales[i]]
        return self._with(self.plan.part([i]), numbers, scales).bare()

    def _with(self, plan: Plan, numbers: Numbers, scales: Any) -> Computed:
        result = Computed(plan, numbers, self.out_dtype, scales, self.ready)
        result.inference = self.inference
        return result


class Results:
    """What one read of a batch gives: normalized weights, the node they share, their numbers."""

    __slots__ = ("computed", "tensors", "use")

    def __init__(self, tensors: list[Tensor], use: Use | None, computed: Computed) -> None:
        self.tensors, self.use, self.computed = tensors, use, computed


#: Changes so far of any layer's settings: groups then make their batches anew.
changes = 0


def settings_changed() -> None:
    """After a change of a layer's scale, eps, iterations or update."""
    global changes
    changes += 1


def alone(norm: Norm) -> Batch:
    """The batch of one layer."""
    batch = norm.state.alone
    if batch is None or batch.made_at != changes:
        batch = norm.state.alone = Batch([norm])
    return batch


def batches(norms: Sequence[Norm], weights: Sequence[Tensor]) -> list[tuple[Batch, list[int]]]:
    """Batches of layers of equal settings, with the indices of their layers."""
    members: dict[Any, list[int]] = {}
    for i, (norm, weight) in enumerate(zip(norms, weights, strict=True)):
        key = (
            norm.training, norm.n_power_iterations, norm.update, norm.eps, norm.bound is None,
            norm.gradient, weight.dtype, weight.device,
        )  # fmt: skip
        members.setdefault(key, []).append(i)
    return [
        (
            alone(norms[indices[0]]) if len(indices) == 1 else Batch([norms[i] for i in indices]),
            indices,
        )
        for indices in members.values()
    ]


# One op call


def compute(
    batch: Batch,
    weights: Sequence[Tensor],
    n_power_iterations: int,
    out_dtype: torch.dtype | None = None,
    vectors: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
) -> Computed:
    """Numbers of ``weights``; where it iterates, the new vectors go into the buffers.

    Args:
        vectors: others than the layers' own, ``(us, vs)``.
    """
    grad = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        scale_tensor = batch.scale_tensor(weights[0].device) if batch.learned_scales else None
        with _vectors_lock:
            us, vs = batch.vectors() if vectors is None else vectors
            numbers = normalize(
                batch.plan, weights, us, vs, scale_tensor, n_power_iterations, out_dtype,
                requested_backend(), store=n_power_iterations > 0,
            )  # fmt: skip
    finally:
        torch._C._set_grad_enabled(grad)
    scales = [scale_version(norm.scale) for norm in batch.norms] if batch.learned_scales else None
    return Computed(batch.plan, numbers, out_dtype, scales)


def give(batch: Batch, computed: Computed, weights: Sequence[Tensor], *, keep: bool) -> Results:
    """The numbers, with a node of their own if derivatives are wanted."""
    scale_tensor = batch.scale_tensor(weights[0].device) if batch.learned_scales else None
    tensors, _, use = attach(computed.plan, computed.numbers, scale_tensor, weights, keep=keep)
    return Results(tensors, use, computed)


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """Dtype in which autocast wants the normalized weight, or None outside autocast."""
    kind = weight.device.type
    if not weight.is_floating_point() or weight.dtype == torch.float64:
        return None
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


# One read, or one forward of a group


def read_batch(batch: Batch, weights: Sequence[Tensor]) -> Results:
    """The normalized weights of one read, in eager code."""
    traced = torch._C._get_tracing_state() is not None
    if traced and batch.training:
        raise RuntimeError(
            "fastsn: expected a model in evaluation mode, got one that torch.jit traces while it "
            "trains: call model.eval(), or fastsn.fold(model), first"
        )
    share_vectors(batch.norms)
    any_autocast = torch._C._is_any_autocast_enabled()
    out_dtype = autocast_dtype(weights[0]) if any_autocast else None
    around = regions.regions() if regions.inside(batch.training) else []
    if around and (recalled := recall(around, batch, weights)) is not None:
        return recalled
    if traced or torch._C._are_functorch_transforms_active():
        results = _transformed(batch, weights, out_dtype)
    elif batch.in_steps and batch.training:
        results = _read_in_steps(batch, weights, out_dtype)
    else:
        iterations = iterations_now(batch.states, batch.training, batch.n_power_iterations)
        if batch.through and batch.training and not iterations:
            _refuse_recomputation()
        computed = compute(batch, weights, iterations, out_dtype)
        results = give(batch, computed, weights, keep=False)
    if around:
        note(around, batch.states, results.computed)
    return results


def note(
    around: Sequence[regions.Region],
    states: Sequence[State],
    computed: Computed,
    outside: Sequence[Tensor] | None = None,
) -> None:
    """Notes what was read inside of regions that a backward may recompute.

    Args:
        outside: the tensors that were read, if their node was made before these regions.
    """
    for recomputed, notes in around:
        if not recomputed:
            bare = computed.bare()  # a node would hold the region, and the region the node
            for place, state in enumerate(states):
                notes.add(state.handle, (bare, place, None if outside is None else outside[place]))


def recall(
    around: Sequence[regions.Region], batch: Batch, weights: Sequence[Tensor]
) -> Results | None:
    """What the forward has read that is now recomputed, if it is known."""
    for recomputed, notes in around:
        found = notes.repeat(batch.handles) if recomputed else None
        if found is None:
            continue
        tensors = [tensor for *_, tensor in found]
        computed = _gather(batch, [(computed, place) for computed, place, _ in found])
        if all(tensor is not None and tensor.requires_grad for tensor in tensors):
            note(around, batch.states, computed, tensors)
            return Results(tensors, None, computed)
        note(around, batch.states, computed)
        return give(batch, computed, weights, keep=True)
    return None


def iterations_now(states: Sequence[State], training: bool, n_power_iterations: int) -> int:
    """Iterations of this read: none while a backward runs, which recomputes what was read before.

    Raises:
        RuntimeError: several training forwards have been since the last recomputation, and it
            cannot be known which of them this one repeats.
    """
    if not training:
        return 0
    if regions.in_backward() == -1:
        for state in states:
            state.unread += 1
        return n_power_iterations
    if torch.is_grad_enabled():
        if any(state.unread > 1 for state in states):
            raise RuntimeError(
                "fastsn: a backward recomputes a forward, and of several since the last one it "
                "cannot be known which, so the weight that it used is not known either: use "
                'torch.utils.checkpoint, or update="step", with which all forwards between two '
                "changes of the weights use one"
            )
        for state in states:
            state.unread = 0
    return 0


def _transformed(batch: Batch, weights: Sequence[Tensor], out_dtype: torch.dtype | None) -> Results:
    """Under a functorch transform, or in a trace: results belong to it, and nothing is kept."""
    iterations = iterations_now(batch.states, batch.training, batch.n_power_iterations)
    if batch.in_steps and iterations:
        fresh = [
            state.sight is None or not state.sight.shows(weight, None)
            for state, weight in zip(batch.states, map(_unwrapped, weights), strict=True)
        ]
        iterations = iterations if any(fresh) or batch.through else 0
    elif batch.through and batch.training and not iterations:
        _refuse_recomputation()
    us, vs = batch.vectors()
    scale_tensor = batch.scale_tensor(weights[0].device)
    numbers = normalize(
        batch.plan, weights, us, vs, scale_tensor, iterations, out_dtype, requested_backend(),
        store=iterations > 0,
    )  # fmt: skip
    if batch.in_steps and iterations:
        for state, weight in zip(batch.states, weights, strict=True):
            state.computed = None
            state.sight = look(_unwrapped(weight), None)
    return Results(numbers.weights_sn, None, Computed(batch.plan, numbers, out_dtype, None))


def _unwrapped(weight: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(weight):
        weight = torch._C._functorch.get_unwrapped(weight)
    return weight


def _read_in_steps(
    batch: Batch, weights: Sequence[Tensor], out_dtype: torch.dtype | None
) -> Results:
    capture = capture_now(weights[0])
    fresh: list[int] = []
    lost: list[int] = []
    for i, (state, weight) in enumerate(zip(batch.states, weights, strict=True)):
        sight, computed = state.sight, state.computed
        if sight is None or not sight.shows(weight, capture):
            alias = sight is not None and sight.shows(weight, capture, itself=False)
            (lost if alias else fresh).append(i)
        elif (
            computed is None
            or computed.out_dtype != out_dtype
            or computed.numbers.weights_sn[state.place]._version != computed.versions[state.place]
            or (computed.scales is not None and computed.scales[state.place]
                != scale_version(batch.norms[i].scale))
        ):  # fmt: skip
            lost.append(i)
    if batch.through and lost:  # whose iteration is not known: another one is made
        fresh, lost = sorted([*fresh, *lost]), []
    if fresh and regions.in_backward() != -1:
        if batch.through:
            _refuse_recomputation()
        fresh, lost = [], sorted([*fresh, *lost])
    kept: list[tuple[Computed, int]] = [
        (state.computed, state.place) for state in batch.states  # type: ignore[misc]
    ]  # fmt: skip
    for members, iterations in ((fresh, batch.n_power_iterations), (lost, 0)):
        if members:
            _compute_and_keep(batch, weights, members, iterations, out_dtype, capture, kept)
    if weights[0].is_cuda:
        _wait_for(computed for computed, _ in kept)
    return give(batch, _gather(batch, kept), weights, keep=True)


def _refuse_recomputation() -> None:
    raise RuntimeError(
        "fastsn: a backward recomputes a forward with gradient='through', and does not know the "
        "iteration that it made: use torch.utils.checkpoint"
    )


def _compute_and_keep(
    batch: Batch,
    weights: Sequence[Tensor],
    members: Sequence[int],
    iterations: int,
    out_dtype: torch.dtype | None,
    capture: Any,
    kept: list[tuple[Computed, int]],
) -> None:
    whole = len(members) == len(weights)
    part = batch if whole else part_batch(tuple(batch.states[i].handle for i in members))
    given = weights if whole else [weights[i] for i in members]
    # Kept results outlive an inference_mode block, and training goes on with them.
    with torch.inference_mode(weights[0].is_inference()):
        sights = [look(weight, capture) for weight in given]
        computed = compute(part, given, iterations, out_dtype)
        if not weights[0].is_inference():
            computed.versions = [weight_sn._version for weight_sn in computed.numbers.weights_sn]
    if weights[0].is_cuda and not capture:
        stream = torch.cuda.current_stream(weights[0].device)
        computed.ready = stream, stream.record_event()
    for place, (i, sight) in enumerate(zip(members, sights, strict=True)):
        kept[i] = computed, place
        state = batch.states[i]
        state.sight, state.computed, state.place = sight, computed, place


def _wait_for(kept: Any) -> None:
    """Makes the current stream wait for numbers that another stream computes."""
    for computed in {id(c): c for c in kept}.values():
        if computed.ready is None:
            continue
        stream, event = computed.ready
        current = torch.cuda.current_stream(computed.numbers.sigmas.device)
        if current != stream:
            current.wait_event(event)
            for tensor in (*computed.numbers.weights_sn, *computed.numbers[1:]):
                tensor.record_stream(current)


def _gather(batch: Batch, kept: Sequence[tuple[Computed, int]]) -> Computed:
    """What was kept as the results of one op call; normally it is just that."""
    first = kept[0][0]
    if len(kept) == len(first.plan) and all(
        computed is first and place == i for i, (computed, place) in enumerate(kept)
    ):
        return first
    parts = [part_of(computed.plan, computed.numbers, [place]) for computed, place in kept]
    numbers = Numbers(
        [part.weights_sn[0] for part in parts],
        *(torch.cat([part[j] for part in parts]) for j in (1, 2, 3)),  # type: ignore[misc]
    )
    return Computed(batch.plan, numbers, first.out_dtype, None)


def part_batch(handles: tuple[int, ...]) -> Batch:
    """The batch of the layers with these handles."""
    norms = [_living[handle] for handle in handles]
    if len(norms) == 1:
        return alone(norms[0])
    parts = norms[0].state.parts
    batch = parts.get(handles)
    if batch is None or batch.made_at != changes:
        batch = parts[handles] = Batch(norms)
    return batch
