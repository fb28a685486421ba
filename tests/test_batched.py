"""The batched backend's cost in launches, and that it never waits for the device.

Its numbers are tested with those of every backend that serves the CPU (fixture ``backend``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from cases import KINDS, assert_near, make_group, same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from fastsn.backends import BACKENDS, batched, explain, reference, select_backend
from fastsn.plan import Plan, plan_of

CPU = torch.device("cpu")

#: Ops that make a view or room for results, and launch nothing.
FREE = frozenset(
    ("alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "new_empty",
     "new_empty_strided", "permute", "reshape", "_reshape_alias", "select", "slice", "split",
     "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "_unsafe_view", "view")
)  # fmt: skip
#: Ops that wait for the device, or send it something that waits.
WAITING = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"))


class Launches(TorchDispatchMode):
    """Counts the ops that would each be a launch on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        self.names[name] += name not in FREE
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return self.names.total()


Call = tuple[Plan, list[Tensor], list[Tensor], list[Tensor]]


def convolutions(k: int) -> Call:
    weights = [torch.randn(8 + i, 4, 3, 3) for i in range(k)]
    shapes = tuple(tuple(weight.shape) for weight in weights)
    plan = plan_of(shapes, (0,) * k, (0,) * k, (1.0,) * k, 1e-12)
    us = [torch.randn(view.rows) for view in plan.flat_views]
    return plan, weights, us, [torch.randn(view.cols) for view in plan.flat_views]


def launches(call: Call, backend: Any = batched, **options: Any) -> tuple[Launches, Launches]:
    """Of forward, and of backward."""
    plan, weights, us, vs = call
    n, scales = options.get("n", 1), options.get("scales")
    with torch.no_grad(), Launches() as forward:
        results = backend.forward(plan, weights, us, vs, scales, n, options.get("out_dtype"))
    pulls = [torch.ones_like(result) for result in results[0]]
    with torch.no_grad(), Launches() as backward:
        backend.backward(plan, pulls, results[1], *results, scales, weights[0].dtype)
    return forward, backward


def launches_of_torch(k: int) -> tuple[Launches, Launches]:
    layers = [parametrizations.spectral_norm(nn.Conv2d(4, 8 + i, 3)) for i in range(k)]
    originals = [layer.parametrizations.weight.original for layer in layers]
    with Launches() as forward:
        weights = [layer.weight for layer in layers]
    pulls = [torch.ones_like(weight) for weight in weights]
    with Launches() as backward:
        torch.autograd.grad(weights, originals, pulls)
    return forward, backward


@pytest.mark.parametrize("k", [3, 10, 30])
def test_launches_are_fewer_than_those_of_torch(k: int) -> None:
    ours, torchs = launches(convolutions(k)), launches_of_torch(k)
    assert torchs[0].count >= 13 * k and torchs[1].count >= 9 * k
    assert sum(each.count for each in ours) < sum(each.count for each in torchs)
    assert ours[0].count <= 34 + 3 * k and ours[1].count <= 11 + 3 * k


def test_launches_of_a_weight_alone() -> None:
    """More than torch's 13 and 9: vectors stay where a norm is bad, and backward gets its numbers.

    The reference, which serves a weight alone as well, takes twice as many.
    """
    ours, specification = launches(convolutions(1)), launches(convolutions(1), reference)
    assert ours[0].count <= 30 and ours[1].count <= 13
    assert 2 * ours[0].count < specification[0].count


def test_weights_are_read_by_products_and_a_quotient_alone() -> None:
    """Passes over memory: two products and a division forward, three reads backward."""
    k = 12
    forward, backward = launches(convolutions(k))
    assert forward.names["mv"] == 2 * k and forward.names["bmm"] == 0
    assert backward.names["dot"] == backward.names["addcmul_"] == k
    assert not forward.names["clone"] > 1 and not backward.names["clone"]


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_nothing_waits_for_the_device(kind: str, n: int) -> None:
    group = make_group(kind, torch.float32)
    shapes = tuple(tuple(weight.shape) for weight in group.weights)
    k = len(shapes)
    flat = [pair for pairs in group.pairs for pair in pairs]
    for scales in (None, torch.ones(k)):
        plan = plan_of(shapes, tuple(group.dims), tuple(group.kinds), (0.5,) * k, 1e-12)
        call = plan, group.weights, [u for u, _ in flat], [v for _, v in flat]
        for counted in launches(call, n=n, scales=scales, out_dtype=torch.bfloat16):
            assert counted.count and not WAITING & set(counted.names)
            assert not {"index", "index_select", "gather", "lift_fresh"} & set(counted.names)


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_result_is_the_references(kind: str, n: int, dtype: torch.dtype) -> None:
    """All four, with scales of all sizes, a zero weight, one that is infinite, and odd vectors."""
    group = make_group(kind, dtype)
    k = len(group.weights)
    group.weights[0] = torch.zeros_like(group.weights[0])
    group.weights[1] = torch.full_like(group.weights[1], torch.inf)
    flat = [(u * (i + 1), v) for i, (u, v) in enumerate(p for own in group.pairs for p in own)]
    shapes = tuple(tuple(weight.shape) for weight in group.weights)
    scales = tuple(0.0 if i == k - 1 else i - 1.5 for i in range(k))
    plan = plan_of(shapes, tuple(group.dims), tuple(group.kinds), scales, 1e-12)
    call: Any = plan, group.weights, [u for u, _ in flat], [v for _, v in flat], None, n, None
    ours, expected = batched.forward(*call), reference.forward(*call)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    for mine, theirs in zip([*ours[0], *ours[1:]], [*expected[0], *expected[1:]], strict=True):
        assert mine.dtype == theirs.dtype and mine.stride() == theirs.stride()
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.equal(mine.isinf(), theirs.isinf())
        finite = theirs.isfinite()
        assert_near(mine[finite], theirs[finite], tolerance)
    sizes = [sum(view.rows + view.cols for view in views) for views in plan.views]
    before = [torch.cat([x.to(ours[2].dtype) for pair in flat for x in pair]), ours[2]]
    for i in (0, 1):  # whose vectors stay
        assert same_bits(*(vectors.split(sizes)[i] for vectors in before))
    pulls = [torch.randn(shape).to(dtype) for shape in shapes]
    saved: Any = torch.randn(k).to(ours[1].dtype), *expected, None, dtype
    mine_grads, mine_scales = batched.backward(plan, pulls, *saved)
    their_grads, their_scales = reference.backward(plan, pulls, *saved)
    for mine, theirs in zip([*mine_grads, mine_scales], [*their_grads, their_scales], strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        finite = theirs.isfinite()
        assert_near(mine[finite], theirs[finite], 20 * tolerance)


def test_what_it_does_not_cover_is_a_reason() -> None:
    for dtype in (torch.complex64, torch.complex128, torch.float8_e4m3fn):
        (reason,) = explain(CPU, dtype)["batched"]
        assert reason.startswith("expected float32, float64") and str(dtype) in reason
        assert select_backend("auto", CPU, dtype, None).name == "reference"
    assert len(BACKENDS["batched"].unsupported_reasons(CPU, torch.int8, torch.int8)) == 2


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "meta"])
def test_auto_takes_it_on_devices_without_a_kernel(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTSN_BACKEND", raising=False)
    where = torch.device(device, 0)
    if device == "cuda":
        for name in ("cuda", "triton"):
            refusing = BACKENDS[name].unsupported_reasons
            if not refusing(where, torch.float32, None):
                pytest.skip(f"backend {name!r} serves this device")
    for dtype in (torch.float32, torch.bfloat16):
        assert select_backend("auto", where, dtype, None).name == "batched"
    assert select_backend("auto", where, torch.complex64, None).name == "reference"
