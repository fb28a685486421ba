"""The self-test of a backend on a device: its numbers against the reference's, and its manners.

Small weights of every kind, layout and awkward shape, with no, one and two iterations, forward and
backward. What the reference gives for them is computed on the CPU in float64. Memory that the
backend allocates is full of NaN and lies between guards, and so do its arguments: an element left
unwritten, a read past the end that matters, a write past the end and a write into an argument all
show. Everything is done twice and must give the same bits.

Nothing global is touched, random numbers included: other threads may go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastsn.backends import reference
from fastsn.plan import BSN, SN, SN_V_FIRST, Plan, accumulate_dtype, plan_of

__all__ = ["failures", "read_result", "seconds", "started", "write_result"]

#: (shape, dim, kind, whether channels_last) of the weights of a call.
_WEIGHTS = (
    ((1, 1), 0, SN, False), ((1, 7), 0, SN, False), ((7, 1), 0, SN, False),
    ((33, 65), 1, SN, False), ((1, 5000), 0, SN, False), ((5000, 1), 0, SN, False),
    ((300, 257), 0, SN, False), ((10, 4099), 0, SN, False), ((130, 129, 1, 1), 0, SN, False),
    ((64, 3, 3, 3), 0, SN, False), ((64, 32, 3, 3), 0, SN, True), ((40, 24, 4, 4), 1, SN, False),
    ((24, 40, 4, 4), 1, SN, True), ((16, 8, 5), 2, SN, False), ((5, 4, 3, 2, 2), 0, SN, False),
    ((48, 64, 3, 3), 0, BSN, False), ((64, 48, 3, 3), 1, BSN, False),
    ((32, 16, 3, 3), 0, BSN, True), ((3, 64, 4, 4), 0, BSN, False), ((7, 5, 3), 1, BSN, False),
    ((20, 30), 0, SN_V_FIRST, False), ((48, 16, 3, 3), 0, SN_V_FIRST, False),
    ((256, 130, 3, 3), 0, SN, False),
)  # fmt: skip

#: (iterations, whether scales are a tensor, whether results are of another dtype) of the calls.
_CALLS = ((1, False, False), (0, True, False), (2, True, True))

_GUARD = 1024  # bytes: more than the alignment of memory
_POISON, _INTACT = 0xFF, 0xA5  # NaN in every dtype; and a number no kernel has a reason to write
_ALLOCATIONS = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))


class _Guarded(TorchDispatchMode):
    """Memory allocated inside is full of NaN, between guards that :meth:`damage` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[Tensor, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace.startswith("fastsn_"):  # go in, to see what its C++ code allocates
            key = "CUDA" if func.namespace == "fastsn_cuda" else "CPU"
            with self:
                return func.redispatch(
                    torch._C.DispatchKeySet(torch._C.DispatchKey.__members__[key]),
                    *args,
                    **(kwargs or {}),
                )
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        return self.place(result, _INTACT) if name in _ALLOCATIONS else result

    def place(self, like: Tensor, guard: int) -> Tensor:
        """A tensor of poison with the shape, strides and dtype of ``like``."""
        if like.numel() == 0 or like.device.type == "meta":
            return like
        last = sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
        size = (last + 1) * like.element_size()
        buffer = torch.full((size + 2 * _GUARD,), guard, dtype=torch.uint8, device=like.device)
        inside = buffer[_GUARD : _GUARD + size].fill_(_POISON)
        self._buffers.append((buffer, size, guard))
        return inside.view(like.dtype).as_strided(like.shape, like.stride())

    def given(self, tensor: Tensor) -> Tensor:
        """An argument between poison, so that reading past its end shows in the results."""
        return self.place(tensor, _POISON).copy_(tensor)

    def damage(self) -> bool:
        """Whether anything was written outside of the memory asked for."""
        intact = [
            (part == guard).all()
            for buffer, size, guard in self._buffers
            for part in (buffer[:_GUARD], buffer[_GUARD + size :])
        ]
        return not bool(torch.stack(intact).all())


class _Inputs(NamedTuple):
    plan: Plan
    weights: list[Tensor]
    us: list[Tensor]
    vs: list[Tensor]
    scales: Tensor | None
    n: int
    out_dtype: torch.dtype | None
    grads: list[Tensor]
    grad_sigmas: Tensor


def failures(backend: Any, device: torch.device, dtype: torch.dtype) -> list[str]:
    """What is wrong with a backend (:class:`fastsn.backends.Backend`); an empty list for nothing.

    Raises:
        torch.OutOfMemoryError: there is no room for the test, which says nothing of the backend.
    """
    if reasons := backend.unsupported_reasons(device, dtype, None):
        return list(reasons)
    with _undisturbed(device):
        for n, has_scales, other in _CALLS:
            out_dtype = None
            if other:
                out_dtype = torch.float32 if dtype.itemsize == 2 else torch.bfloat16
            inputs = _inputs(dtype, n, has_scales, out_dtype)
            where = f"{dtype} weights, {n} iterations"
            try:
                wrong = _compare(backend, device, inputs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever it is, it would be the user's otherwise
                first = (str(error).strip() or "no message").splitlines()[0]
                wrong = f"{type(error).__name__}: {first}"
            if wrong:
                return [f"its self-test failed ({where}): {wrong}"]
    return []


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no mode of the user's, and leave to wait for the device."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode(0)
        yield


def _inputs(dtype: torch.dtype, n: int, has_scales: bool, out_dtype: torch.dtype | None) -> _Inputs:
    """Weights on the CPU with vectors near their singular ones: sums that do not cancel.

    One weight is zero, and one holds a NaN: the vectors of both must stay.
    """
    generator = torch.Generator("cpu").manual_seed(n + 1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    shapes, dims, kinds, last = zip(*_WEIGHTS, strict=True)
    weights, grads = [], []
    for shape, channels_last in zip(shapes, last, strict=True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        weights.append(random(*shape).to(dtype).contiguous(memory_format=layout))
        grads.append(random(*shape).to(dtype).contiguous(memory_format=layout))
    scales = tuple(1.0 if i % 3 else 0.7 for i in range(len(shapes)))
    plan = plan_of(shapes, dims, kinds, scales, 1e-12)
    us = [random(view.rows) for view in plan.flat_views]
    vs = [random(view.cols) for view in plan.flat_views]
    exact = [weight.double() for weight in weights]
    pairs = plan.split(reference.forward(plan, exact, us, vs, None, 3, None)[2])
    accumulate = accumulate_dtype(dtype)
    weights[3] = torch.zeros_like(weights[3])
    if n:
        weights[9].view(-1)[5] = torch.nan
    scale_tensor = random(len(shapes)).abs().add(0.5).to(accumulate) if has_scales else None
    return _Inputs(
        plan, weights, [u.to(accumulate) for u, _ in pairs], [v.to(accumulate) for _, v in pairs],
        scale_tensor, n, out_dtype, grads, random(len(shapes)).to(accumulate),
    )  # fmt: skip


def _compare(backend: Any, device: torch.device, inputs: _Inputs) -> str:
    """What is wrong with one call and its backward; ``""`` for nothing."""
    results, again = (_run(backend, device, inputs) for _ in range(2))
    if isinstance(results, str) or isinstance(again, str):
        return results if isinstance(results, str) else str(again)
    for (name, first), (_, second) in zip(results, again, strict=True):
        if not _same_bits(first, second):
            return f"{name}: other bits when it is called again"
    for (name, actual), (expected, bound) in zip(results, _expected(inputs, results), strict=True):
        if actual.shape != expected.shape or actual.dtype not in (bound[1], None):
            return f"{name}: expected {bound[1]} of shape {tuple(expected.shape)}"
        error = (actual.double() - expected).abs()
        lost = actual.isnan() != expected.isnan()
        if bool(lost.any()) or bool((error.nan_to_num(0.0) > bound[0]).any()):
            largest = float(error.nan_to_num(torch.inf).max())
            return f"{name}: error {largest:.3g}, expected at most {bound[0]:.3g}"
    return ""


def _run(backend: Any, device: torch.device, inputs: _Inputs) -> list[tuple[str, Tensor]] | str:
    """The named results of forward and backward, on the CPU; or what was done to memory."""
    guarded = _Guarded()

    def there(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [guarded.given(tensor.to(device)) for tensor in tensors]

    weights, us, vs, grads = (
        there(each) for each in (inputs.weights, inputs.us, inputs.vs, inputs.grads)
    )
    scales = None if inputs.scales is None else there([inputs.scales])[0]
    (grad_sigmas,) = there([inputs.grad_sigmas])
    arguments = [*weights, *us, *vs, *grads, grad_sigmas]
    before = [tensor.clone() for tensor in arguments]
    options = (False,) if backend.stores_vectors else ()
    with guarded:
        weights_sn, *numbers = backend.forward(
            inputs.plan, weights, us, vs, scales, inputs.n, inputs.out_dtype, *options
        )
        # gradients come in the dtype of what they are gradients of
        pulls = [grad.to(each.dtype) for grad, each in zip(grads, weights_sn, strict=True)]
        grad_weights, grad_scales = backend.backward(
            inputs.plan, pulls, grad_sigmas, weights_sn, *numbers, scales, inputs.weights[0].dtype
        )
    if guarded.damage():
        return "it writes past the end of memory"
    if not all(map(_same_bits, arguments, before)):
        return "it writes into its arguments"
    named = [(f"normalized weight {i}", each) for i, each in enumerate(weights_sn)]
    named += zip(("sigmas", "vectors", "view_stats"), numbers, strict=True)
    named += [(f"gradient of weight {i}", each) for i, each in enumerate(grad_weights)]
    named.append(("gradients of scales", grad_scales))
    return [(name, tensor.cpu()) for name, tensor in named]


def _expected(
    inputs: _Inputs, results: list[tuple[str, Tensor]]
) -> list[tuple[Tensor, tuple[float, torch.dtype]]]:
    """Per result what the reference gives in float64, the largest error allowed, and the dtype.

    Backward is judged for what forward gave: its roundings are not backward's.
    """
    plan, k, dtype = inputs.plan, len(inputs.plan), inputs.weights[0].dtype
    accumulate, out_dtype = accumulate_dtype(dtype), inputs.out_dtype or dtype
    weights, us, vs = (
        [tensor.double() for tensor in each] for each in (inputs.weights, inputs.us, inputs.vs)
    )
    scales = None if inputs.scales is None else inputs.scales.double()
    weights_sn, *numbers = reference.forward(plan, weights, us, vs, scales, inputs.n, None)
    tolerance = 100 * torch.finfo(accumulate).eps  # of sums of thousands of terms

    def allowed(expected: Tensor, kind: torch.dtype) -> tuple[Tensor, tuple[float, torch.dtype]]:
        size = float(expected.abs().nan_to_num(0.0).max())
        return expected, (size * (tolerance + 2 * torch.finfo(kind).eps), kind)

    judged = [allowed(each, out_dtype) for each in weights_sn]
    judged += [allowed(each, accumulate) for each in numbers]
    exact = [tensor.double() for _, tensor in results[: k + 3]]
    pulls = [grad.to(out_dtype).double() for grad in inputs.grads]
    grad_weights, grad_scales = reference.gradients(
        plan,
        pulls,
        inputs.grad_sigmas.double(),
        exact[:k],
        exact[k],
        exact[k + 1],
        exact[k + 2],
        scales,
    )
    sizes = []
    for i, (pull, weight_sn) in enumerate(zip(pulls, exact[:k], strict=True)):
        # differences, whose errors are those of their terms
        product = float(pull.norm() * weight_sn.norm())
        pulled = product + float(inputs.grad_sigmas[i].abs() * exact[k][i])
        sigma, scale = float(exact[k][i]), plan.scales[i] if scales is None else float(scales[i])
        sizes.append(product / scale)
        size = (scale * float(pull.abs().max()) + pulled) / sigma if sigma else 0.0
        bound = size * (tolerance + 2 * torch.finfo(dtype).eps)
        judged.append((grad_weights[i], (bound, dtype)))
    largest = max((size for size in sizes if size == size), default=0.0)
    judged.append((grad_scales, (largest * tolerance, accumulate)))
    return judged


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (a, b)))


def seconds(backend: Any, device: torch.device, plan: Plan, weights: list[Tensor]) -> float:
    """Time of a forward and backward, device and host, once all is compiled and warm."""
    accumulate = accumulate_dtype(weights[0].dtype)
    options = (False,) if backend.stores_vectors else ()
    with _undisturbed(device):
        us = [torch.ones(view.rows, dtype=accumulate, device=device) for view in plan.flat_views]
        vs = [torch.ones(view.cols, dtype=accumulate, device=device) for view in plan.flat_views]

        def run(times: int) -> float:
            start = time.perf_counter()
            for _ in range(times):
                results = backend.forward(plan, weights, us, vs, None, 1, None, *options)
                backend.backward(plan, weights, None, *results, None, weights[0].dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - start) / times

        run(2)
        return min(run(5) for _ in range(3))


# The result of a test in a child process


def write_result(backend: Any, device: torch.device, dtype: torch.dtype, result: Path) -> None:
    """Tests a backend and writes what is wrong with it; and before that, that the test begins.

    This process is the test's own: memory of C++ code, too, is filled with NaN.
    """
    torch.set_num_threads(1)  # what the CPU has to do is little
    torch.zeros(1, device=device).item()  # finding the device takes seconds
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic  # whose stubs lack it
    deterministic.fill_uninitialized_memory = True
    started(result).touch()
    found = failures(backend, device, dtype)
    draft = result.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.replace(result)


def read_result(result: Path) -> list[str] | None:
    """What :func:`write_result` has written; None where it has not."""
    return list(json.loads(result.read_text())) if result.exists() else None


def started(result: Path) -> Path:
    """The file that says that the test has begun."""
    return result.with_suffix(".started")
