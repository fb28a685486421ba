"""From parametrizations and their weights to one op call: what single layers and groups share.

:func:`normalize` is a forward: it advances the vectors of training layers, and returns the
normalized weights. With ``update="step"`` a :class:`Record` keeps what was computed until the
weight changes, and every forward hangs its own autograd node on it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsn.backend import requested_backend
from fastsn.distributed import is_sharded, share_vectors
from fastsn.op import gradients, library, spectral_normalize
from fastsn.problem import group_views, split_vectors

if TYPE_CHECKING:
    from fastsn.parametrization import SpectralNorm

__all__ = ["Record", "compute", "normalize", "weight_key"]


@dataclass(eq=False)
class Computed:
    """Arguments and results of one op call."""

    weights_sn: list[Tensor]
    sigmas: Tensor
    vectors: Tensor
    view_stats: Tensor
    dims: list[int]
    kinds: list[int]
    scales: list[float]


@dataclass(eq=False)
class Record:
    """One weight's share of an op call, kept for all forwards until the weight or its scale changes."""

    key: Any
    captured: bool
    source: Computed
    index: int


def normalize(norms: Sequence[SpectralNorm], weights: Sequence[Tensor]) -> list[Tensor]:
    """The normalized weights of one forward; layers of equal settings share one op call."""
    compiling = torch.compiler.is_compiling()
    if not compiling:
        share_vectors(norms)
    results: list[Tensor | None] = [None] * len(norms)
    buckets: dict[Any, list[int]] = {}
    for i, (norm, weight) in enumerate(zip(norms, weights, strict=True)):
        if weight.ndim == 1:
            results[i] = F.normalize(weight, dim=0, eps=norm.eps) * norm.scale
            continue
        if is_sharded(weight):
            raise RuntimeError(
                "fastsn: expected a plain weight, got a sharded DTensor: read it inside the forward of the "
                "module that FSDP gathers it for"
            )
        step = norm.training and norm.update == "step"
        iterations = norm.n_power_iterations if norm.training else 0
        out_dtype = autocast_dtype(weight)
        key = (step, iterations, weight.dtype, out_dtype, norm.eps, str(weight.device))
        buckets.setdefault(key, []).append(i)
    for (step, iterations, _, out_dtype, _, _), members in buckets.items():
        own = [norms[i] for i in members]
        inputs = [weights[i] for i in members]
        if not step:
            normalized = compute(own, inputs, iterations, out_dtype).weights_sn
        elif compiling:
            normalized = _step_compiled(own, inputs, out_dtype)
        else:
            normalized = _step(own, inputs, out_dtype)
        for i, result in zip(members, normalized, strict=True):
            results[i] = result
    return results  # type: ignore[return-value]


def compute(
    norms: Sequence[SpectralNorm],
    weights: Sequence[Tensor],
    n_power_iterations: int,
    out_dtype: torch.dtype | None = None,
    pairs: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Computed:
    """One op call; the new vectors go into the buffers (or ``pairs``), in place, if it iterated."""
    pairs = pairs or [pair for norm in norms for pair in norm.vectors()]
    us, vs = [u for u, _ in pairs], [v for _, v in pairs]
    dims = [norm.dim for norm in norms]
    kinds = [norm.kind for norm in norms]
    scales, scale_tensor = stack_scales(norms, weights[0].device)
    weights_sn, sigmas, vectors, view_stats = spectral_normalize(
        list(weights),
        us,
        vs,
        dims,
        kinds,
        scales,
        scale_tensor,
        n_power_iterations,
        norms[0].eps,
        out_dtype,
        requested_backend(),
    )
    if n_power_iterations:
        with torch.no_grad():
            parts = split_vectors(vectors, [view for norm in norms for view in norm.views])
            torch._foreach_copy_(us + vs, [u for u, _ in parts] + [v for _, v in parts])
    return Computed(weights_sn, sigmas, vectors, view_stats, dims, kinds, scales)


def stack_scales(
    norms: Sequence[SpectralNorm], device: torch.device
) -> tuple[list[float], Tensor | None]:
    """Scales as the op takes them: floats, or one ``[k]`` tensor as soon as one of them is a tensor."""
    scales = [norm.scale for norm in norms]
    if not any(isinstance(scale, Tensor) for scale in scales):
        return scales, None
    tensors = [
        scale if isinstance(scale, Tensor) else torch.full((), scale, device=device)
        for scale in scales
    ]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [1.0] * len(scales), torch.stack([tensor.to(dtype) for tensor in tensors])


def autocast_dtype(weight: Tensor) -> torch.dtype | None:
    """Dtype in which autocast wants the normalized weight, or None outside autocast."""
    kind = weight.device.type
    if not weight.is_floating_point() or weight.dtype == torch.float64:
        return None
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


# update="step"


def weight_key(weight: Tensor) -> Any:
    """What identifies a weight's values: address and version; None for tensors that have neither."""
    while torch._C._functorch.is_functorch_wrapped_tensor(weight):
        weight = torch._C._functorch.get_unwrapped(weight)
    try:
        return weight.data_ptr(), weight._version, tuple(weight.shape)
    except RuntimeError:  # an inference tensor has no version, a meta tensor no address
        return None


def _step(
    norms: Sequence[SpectralNorm], weights: Sequence[Tensor], out_dtype: torch.dtype | None
) -> list[Tensor]:
    capturing = weights[0].is_cuda and torch.cuda.is_current_stream_capturing()
    changed, lost = [], []
    for i, (norm, weight) in enumerate(zip(norms, weights, strict=True)):
        key = weight_key(weight)
        record = norm._record
        # A captured graph must compute what it will replay, and what it computed is its own.
        foreign = record is None or record.captured != capturing
        if key is None or norm._weight_key != key or (capturing and foreign):
            changed.append(i)
        elif foreign or record.key != (key, _scale_key(norm), out_dtype):
            lost.append(i)
    if torch._C._are_functorch_transforms_active():
        return _step_transformed(norms, weights, out_dtype, changed)
    for members, iterations in ((changed, norms[0].n_power_iterations), (lost, 0)):
        if members:
            own, inputs = [norms[i] for i in members], [weights[i] for i in members]
            with torch.no_grad():
                source = compute(own, inputs, iterations, out_dtype)
            for index, (norm, weight) in enumerate(zip(own, inputs, strict=True)):
                norm._weight_key = weight_key(weight)
                key = norm._weight_key, _scale_key(norm), out_dtype
                norm._record = Record(key, capturing, source, index)
    flat = _gather([norm._record for norm in norms])
    _, scale_tensor = stack_scales(norms, weights[0].device)
    return list(_Recorded.apply(flat, requested_backend(), scale_tensor, *weights)[:-1])


def _step_transformed(
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


class _Recorded(torch.autograd.Function):
    """The op with its forward already done: hands out recorded results; gradients are the op's."""

    @staticmethod
    def forward(
        ctx: Any, recorded: Computed, backend: str, scale_tensor: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = [weight_sn.detach() for weight_sn in recorded.weights_sn]
        # sigmas are an output, although nobody reads it, so that double backward can flow through
        # them.
        sigmas = recorded.sigmas.detach()
        ctx.save_for_backward(sigmas, scale_tensor, *outputs)
        ctx.recorded, ctx.backend, ctx.dtype = recorded, backend, weights[0].dtype
        ctx.set_materialize_grads(False)
        return *outputs, sigmas

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        sigmas, scale_tensor, *weights_sn = ctx.saved_tensors
        recorded: Computed = ctx.recorded
        grad_weights, grad_scale = gradients(
            grads[:-1], grads[-1], weights_sn, sigmas, recorded.vectors, recorded.view_stats, recorded.dims,
            recorded.kinds, recorded.scales, scale_tensor, ctx.dtype, ctx.backend, ctx.needs_input_grad[3:],
        )  # fmt: skip
        return None, None, grad_scale, *grad_weights


# Compiled code cannot look at versions and records. This op looks at run time, so that a compiled
# forward advances the vectors once per change of the weights as well; W_sn is then computed from
# them every time.
library.define(
    "advance_if_changed(Tensor[] weights, Tensor(a!)[] us, Tensor(b!)[] vs, int[] handles) -> ()"
)


def _advance_if_changed(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], handles: Sequence[int]
) -> None:
    capturing = weights[0].is_cuda and torch.cuda.is_current_stream_capturing()
    first = 0
    for weight, handle in zip(weights, handles, strict=True):
        norm = living(handle)
        own = range(first, first + len(norm.views))
        first += len(own)
        key = weight_key(weight)
        if capturing or key is None or norm._weight_key != key:
            # Into the vectors that were handed in: functionalized graphs pass copies of the buffers.
            pairs = [(us[j], vs[j]) for j in own]
            compute([norm], [weight], norm.n_power_iterations, pairs=pairs)
            norm._record, norm._weight_key = None, key


library.impl("advance_if_changed", _advance_if_changed, "CompositeExplicitAutograd")
torch.library.register_fake("fastsn::advance_if_changed", lambda *args: None, lib=library)


def _step_compiled(
    norms: Sequence[SpectralNorm], weights: Sequence[Tensor], out_dtype: torch.dtype | None
) -> list[Tensor]:
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
