"""Every CUDA kernel in every dtype: as g++ compiles it, as nvcc does, and the reference, agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cuda_host import CASES, EPS, Case, Group, Host, build, distance, flat, make_group
from flat import reference
from torch import Tensor

from fastsn.plan import plan_of

from .cuda import CudaMachine

pytestmark = pytest.mark.ptx

KERNELS = ("forward_rows", "forward_cols", "forward_finish", "backward_dot", "backward_store")
#: By dtype: how kernels call it, and errors of results and of what is kept in the wider dtype.
DTYPES = {
    torch.float64: ("f64", 1e-14, 1e-13),
    torch.float32: ("f32", 1e-6, 2e-6),
    torch.float16: ("f16", 5e-4, 2e-6),
    torch.bfloat16: ("bf16", 3e-3, 2e-6),
}
#: One of each kind of tile; 22 weights have the kernels for many.
FEW = [CASES[i] for i in (0, 2, 3, 4, 5, 8, 12, 19)]
MANY = [Case((5 + i, 12)) for i in range(22)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    return build("ops.so", tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture
def host(library: Path | str, require_backend: Callable[[str, Sequence[str]], None]) -> Host:
    require_backend("cuda-host", [library] if isinstance(library, str) else [])
    return Host(Path(library))


class Calls(NamedTuple):
    """Forward of a group, and backward with what some forward returned."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]


def calls(
    host: Host, cuda: CudaMachine, group: Group, n: int, grads: list[Tensor], grad_sigmas: Tensor
) -> tuple[Calls, Calls, Calls]:
    """By the machine, the host shim and the reference, which computes in float64."""
    dtype, wide = group.weights[0].dtype, group.double()
    shapes = tuple(tuple(weight.shape) for weight in group.weights)
    rest = (group.dims, group.kinds, group.scales)
    plan = plan_of(shapes, *map(tuple, rest), EPS)
    scales = torch.tensor(group.scales, dtype=torch.float64)

    def exact(results: Any) -> Any:
        weights_sn, *others = results
        return reference.backward(
            [grad.double() for grad in grads], grad_sigmas.double(),
            [weight.double() for weight in weights_sn], *(other.double() for other in others),
            *rest, scales, torch.float64,
        )  # fmt: skip

    return (
        Calls(
            lambda: cuda.forward(plan, group.weights, group.us, group.vs, None, n, None),
            lambda results: cuda.backward(plan, grads, grad_sigmas, *results, None, dtype),
        ),
        Calls(
            lambda: host.forward(*group, None, n, EPS, None),
            lambda results: host.backward(grads, grad_sigmas, *results, *rest, None, dtype),
        ),
        Calls(lambda: reference.forward(*wide, None, n, EPS, None), exact),
    )


@pytest.mark.parametrize("size", ["few", "many"])
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_host_machine_and_reference_agree(
    host: Host, cuda: CudaMachine, dtype: torch.dtype, n: int, size: str
) -> None:
    cuda.load_all()
    torch.manual_seed(0)
    cases = FEW if size == "few" else MANY
    group = make_group(cases, dtype)
    grads = [torch.empty_like(w).copy_(torch.randn(w.shape)) for w in group.weights]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    grad_sigmas = torch.randn(len(cases), dtype=accumulate)
    own = calls(host, cuda, group, n, grads, grad_sigmas)
    cuda.take_statistics()
    results = [call.forward() for call in own]
    # what forward rounds is no error of backward: all have the machine's
    gradients = [call.backward(results[0]) for call in own]
    ran = {launch.kernel for launch in cuda.take_statistics().launches}
    name, result_error, sum_error = DTYPES[dtype]
    kernels = [kernel for kernel in KERNELS if n or kernel != "forward_cols"]
    assert ran == {f"fastsn_{kernel}_{name}_{size}" for kernel in kernels}
    both = [flat([*one, *other]) for one, other in zip(results, gradients, strict=True)]
    for compiled, shimmed, exact in zip(*both, strict=True):
        assert (compiled.dtype, compiled.stride()) == (shimmed.dtype, shimmed.stride())
        # gradients and grad_scales are differences
        bound = 4 * (result_error if compiled.dtype == dtype else sum_error)
        for one, other in ((compiled, shimmed), (compiled, exact), (shimmed, exact)):
            assert distance(one, other) < bound, compiled.shape
