"""``update="step"``: what was computed is kept until a weight changes.

A :class:`Record` holds one weight's results; every forward hangs an autograd node of its own on the
records, so that separate backward calls work.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastsn.checks import is_claimed
from fastsn.compute import Computed, attach, compute
from fastsn.op import library
from fastsn.plan import group_views, split_vectors

if TYPE_CHECKING:
    from fastsn.parametrization import SpectralNorm

__all__ = ["Record", "new_handle", "normalize_step", "normalize_step_compiled", "weight_key"]


@dataclass(eq=False)
class Record:
    """One weight's share of an op call, kept until the weight or its scale changes."""

    key: Any
    captured: bool
    source: Computed
    index: int


def weight_key(weight: Tensor) -> Any:
    """What identifies a weight's values: address and version; None if it has neither."""
    while torch._C._functorch.is_functorch_wrapped_tensor(weight):
        weight = torch._C._functorch.get_unwrapped(weight)
    try:
        return weight.data_ptr(), weight._version, tuple(weight.shape)
    except RuntimeError:  # an inference tensor has no version, a meta tensor no address
        return None


@cache
def _count_optimizer_steps() -> None:
    """From now on an optimizer's step is a change of the weights in it, whatever it counts itself.

    torch's fused optimizers, and kernels of other libraries, leave the version counters alone.
    """

    def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        changed = [
            weight
            for group in optimizer.param_groups
            for weight in group["params"]
            if is_claimed(weight) and weight.grad is not None and not weight.is_inference()
        ]
        if changed:
            torch.autograd.graph.increment_version(changed)

    register_optimizer_step_post_hook(count)


def normalize_step(
    norms: Sequence[SpectralNorm], weights: Sequence[Tensor], out_dtype: torch.dtype | None
) -> list[Tensor]:
    _count_optimizer_steps()
    capturing = weights[0].is_cuda and torch.cuda.is_current_stream_capturing()
    changed, lost = [], []
    for i, (norm, weight) in enumerate(zip(norms, weights, strict=True)):
        key = weight_key(weight)
        record = norm._record
        # A captured graph must compute what it will replay, and what it computed is its own.
        mine = record is not None and record.captured == capturing
        if key is None or norm._weight_key != key or (capturing and not mine):
            changed.append(i)
        elif record is None or not mine or record.key != (key, _scale_key(norm), out_dtype):
            lost.append(i)
    if torch._C._are_functorch_transforms_active():
        return _transformed(norms, weights, out_dtype, changed)
    for members, iterations in ((changed, norms[0].n_power_iterations), (lost, 0)):
        if members:
            own, inputs = [norms[i] for i in members], [weights[i] for i in members]
            with torch.no_grad():
                source = compute(own, inputs, iterations, out_dtype)
            for index, (norm, weight) in enumerate(zip(own, inputs, strict=True)):
                norm._weight_key = weight_key(weight)
                key = norm._weight_key, _scale_key(norm), out_dtype
                norm._record = Record(key, capturing, source, index)
    flat = _gather([norm._record for norm in norms if norm._record is not None])
    return attach(flat, norms, weights, again=True)


def _transformed(
    norms: Sequence[SpectralNorm],
    weights: Sequence[Tensor],
    out_dtype: torch.dtype | None,
    changed: list[int],
) -> list[Tensor]:
    """Under a functorch transform results belong to the transform and cannot be recorded."""
    results: dict[int, Tensor] = {}
    others = [i for i in range(len(norms)) if i not in changed]
    for members, iterations in ((changed, norms[0].n_power_iterations), (others, 0)):
        if members:
            own, inputs = [norms[i] for i in members], [weights[i] for i in members]
            computed = compute(own, inputs, iterations, out_dtype).weights_sn
            results.update(zip(members, computed, strict=True))
    for i in changed:
        norms[i]._record, norms[i]._weight_key = None, weight_key(weights[i])
    return [results[i] for i in range(len(norms))]


def _scale_key(norm: SpectralNorm) -> Any:
    return weight_key(norm.scale) if isinstance(norm.scale, Tensor) else norm.scale


def _gather(records: Sequence[Record]) -> Computed:
    """The records as the results of one op call; normally they are just that."""
    source = records[0].source
    if len(records) == len(source.dims) and all(
        record.source is source and record.index == i for i, record in enumerate(records)
    ):
        return source
    vectors, stats = [], []
    for record in records:
        source, index = record.source, record.index
        problems = group_views(source.weights_sn, source.dims, source.kinds)
        first = sum(len(views) for views in problems[:index])
        own = range(first, first + len(problems[index]))
        pairs = split_vectors(source.vectors, [view for views in problems for view in views])
        vectors += [part for j in own for part in pairs[j]]
        stats += [source.view_stats[j] for j in own]
    return Computed(
        [record.source.weights_sn[record.index] for record in records],
        torch.stack([record.source.sigmas[record.index] for record in records]),
        torch.cat(vectors),
        torch.stack(stats),
        [record.source.dims[record.index] for record in records],
        [record.source.kinds[record.index] for record in records],
        [record.source.scales[record.index] for record in records],
    )


# Compiled code cannot look at versions and records. This op looks at run time, so that a compiled
# forward advances the vectors once per change of the weights as well; W_sn is then computed from
# them every time.
library.define(
    "advance_if_changed(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, int[] handles) -> ()"
)


def _advance_if_changed(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], handles: Sequence[int]
) -> None:
    _count_optimizer_steps()
    capturing = weights[0].is_cuda and torch.cuda.is_current_stream_capturing()
    first = 0
    for weight, handle in zip(weights, handles, strict=True):
        norm = living(handle)
        own = range(first, first + len(norm.views))
        first += len(own)
        key = weight_key(weight)
        if capturing or key is None or norm._weight_key != key:
            # Into the vectors handed in: functionalized graphs pass copies of the buffers.
            pairs = [(us[j], vs[j]) for j in own]
            compute([norm], [weight], norm.n_power_iterations, pairs=pairs)
            norm._record, norm._weight_key = None, key


library.impl("advance_if_changed", _advance_if_changed, "CompositeExplicitAutograd")
torch.library.register_fake("fastsn::advance_if_changed", lambda *args: None, lib=library)


def normalize_step_compiled(
    norms: Sequence[SpectralNorm], weights: Sequence[Tensor], out_dtype: torch.dtype | None
) -> list[Tensor]:
    if torch.compiler.is_exporting():  # another process has neither our weights nor our records
        return compute(norms, weights, norms[0].n_power_iterations, out_dtype).weights_sn
    pairs = [pair for norm in norms for pair in norm.vectors()]
    with torch.no_grad():
        torch.ops.fastsn.advance_if_changed(
            [weight.detach() for weight in weights],
            [u for u, _ in pairs],
            [v for _, v in pairs],
            [norm.handle for norm in norms],
        )
    return compute(norms, weights, 0, out_dtype).weights_sn


_living: weakref.WeakValueDictionary[int, SpectralNorm] = weakref.WeakValueDictionary()
_handles = itertools.count()


def new_handle(norm: SpectralNorm) -> int:
    """A number by which ops find a living parametrization again."""
    handle = next(_handles)
    _living[handle] = norm
    return handle


def living(handle: int) -> SpectralNorm:
    return _living[handle]
