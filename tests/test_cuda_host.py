"""The CUDA kernels and their binding, run on the CPU: csrc/host lets g++ compile their very source.

Every CUDA thread is a fiber there (csrc/host/shim.h), in blocks and tiles as large as a GPU's, so
these tests cover arithmetic, indices and argument checks, and tests/test_cuda_race.py the barriers;
not speed, nor what nvcc makes of the source (tests/test_cuda_compile.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_host import (
    BACKWARDS,
    CASES,
    EPS,
    Case,
    Host,
    assert_same_bits,
    build,
    distance,
    flat,
    make_group,
)
from flat import reference
from test_backends import EDGES, LARGE, check_accuracy, laid_out, random_case, random_shape

import fastsn
from fastsn import backends as choice
from fastsn.backends.native import NativeBackend
from fastsn.plan import BSN, SN, SN_V_FIRST

# relative errors of results, of sums in the accumulation dtype, and of vectors
ERRORS = {
    torch.float64: (1e-14, 1e-13, 1e-14),
    torch.float32: (1e-6, 2e-6, 1e-6),
    torch.float16: (5e-4, 2e-6, 1e-6),
    torch.bfloat16: (3e-3, 2e-6, 1e-6),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    return build("ops.so", tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture
def host(
    library: Path | str, poisoned: None, require_backend: Callable[[str, Sequence[str]], None]
) -> Host:
    require_backend("cuda-host", [library] if isinstance(library, str) else [])
    return Host(Path(library))


@pytest.fixture
def simulated(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend ``cuda``, in use, with the simulated device's kernels behind it."""
    kernels = NativeBackend("cuda_host", "", "")  # its ops: torch.ops.fastsn_cuda_host
    kernels = {"forward": kernels.forward, "backward": kernels.backward}
    backend = replace(choice.BACKENDS["cuda"], **kernels, unsupported_reasons=lambda *args: [])
    monkeypatch.setitem(choice.BACKENDS, "cuda", backend)
    choice.forget_choices()
    with fastsn.use_backend("cuda"):
        yield
    choice.forget_choices()


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_60_random_weights_are_as_accurate_as_torch(dtype: torch.dtype) -> None:
    """The rule that every backend is held to, through all of fastsn but the GPU."""
    random.seed(str(dtype))
    shapes = EDGES + [random_shape() for _ in range(60 - len(EDGES))]
    random.shuffle(shapes)
    for n in (0, 1, 2):
        for group in (shapes[20 * n : 20 * n + 3], shapes[20 * n + 3 : 20 * n + 20]):
            check_accuracy([random_case(shape, dtype) for shape in group], dtype, n)


@pytest.mark.usefixtures("simulated")
def test_weights_of_many_tiles_are_as_accurate_as_torch() -> None:
    random.seed(0)
    cases = [random_case(shape, torch.float32) for shape, _ in LARGE]
    cases = [
        case._replace(weight=laid_out(case.weight, layout))
        for case, (_, layout) in zip(cases, LARGE, strict=True)
    ]
    check_accuracy(cases, torch.float32, 1)


@pytest.mark.parametrize(
    ("dtype", "n"),
    [
        *((torch.float32, 0), (torch.float32, 1), (torch.float64, 2)),
        *((torch.float16, 0), (torch.bfloat16, 1)),
    ],
)
def test_matches_reference(host: Host, dtype: torch.dtype, n: int) -> None:
    group = make_group(CASES, dtype)
    weights_sn, sigmas, vectors, stats = results = host.forward(*group, None, n, EPS, None)
    expected = reference.forward(*group.double(), None, n, EPS, None)
    result_error, sum_error, vector_error = ERRORS[dtype]
    for case, got, weight, want in zip(CASES, weights_sn, group.weights, expected[0], strict=True):
        assert got.dtype == dtype and got.stride() == weight.stride(), case
        assert distance(got, want) < result_error, case
    torch.testing.assert_close(sigmas.double(), expected[1], rtol=sum_error, atol=0)
    torch.testing.assert_close(vectors.double(), expected[2], rtol=0, atol=vector_error)
    torch.testing.assert_close(stats.double(), expected[3], rtol=sum_error, atol=0)

    grads = [torch.empty_like(w).copy_(torch.randn(w.shape)) for w in weights_sn]
    grad_sigmas = torch.randn(len(CASES), dtype=sigmas.dtype)
    rest = (group.dims, group.kinds, group.scales, None)
    gradients = host.backward(grads, grad_sigmas, *results, *rest, dtype)
    wide = [[t.double() for t in tensors] for tensors in (grads, weights_sn)]
    saved = (sigmas.double(), vectors.double(), stats.double())
    scales = torch.tensor(group.scales, dtype=torch.float64)
    expected = reference.backward(
        wide[0], grad_sigmas.double(), wide[1], *saved, *rest[:3], scales, torch.float64
    )
    factors = (scales / sigmas.double()).clamp_min(1)
    for case, got, want, grad, factor in zip(
        CASES, gradients[0], expected[0], wide[0], factors, strict=True
    ):
        # where the weight is a single element the gradient is what rounding leaves of its terms
        rounding = 0.1 * grad.norm() * (factor if got.numel() == 1 else 1)
        error = (got.double() - want).norm() / max(want.norm(), rounding)
        assert error < 2 * result_error, case
    sizes = torch.stack([g.norm() * w.norm() for g, w in zip(*wide, strict=True)]) / scales
    assert bool(((gradients[1] - expected[1]).abs() < sum_error * sizes).all())

    if n == 1:
        host.set_device(*BACKWARDS)
        assert_same_bits(host.forward(*group, None, n, EPS, None), results)
        assert_same_bits(host.backward(grads, grad_sigmas, *results, *rest, dtype), gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stores_the_new_vectors_into_the_given_ones(host: Host, dtype: torch.dtype) -> None:
    group = make_group([*CASES[2:6], CASES[-1]], dtype)
    group.weights[1].zero_()  # its vectors stay as they are
    given = [vector.clone() for pair in zip(group.us, group.vs, strict=True) for vector in pair]
    expected = host.forward(*group, None, 2, EPS, None)
    assert_same_bits([group.us, group.vs], [given[0::2], given[1::2]])
    results = host.forward(*group, None, 2, EPS, None, True)
    assert_same_bits(results, expected)
    stored = [vector for pair in zip(group.us, group.vs, strict=True) for vector in pair]
    new = results[2].split([vector.numel() for vector in stored])
    for i, (vector, computed, before) in enumerate(zip(stored, new, given, strict=True)):
        assert torch.equal(vector, before if i // 2 == 1 else computed.to(dtype)), i


def test_neither_group_nor_device_changes_a_bit(host: Host) -> None:
    group = make_group(CASES[3:9], torch.float32)
    results = host.forward(*group, None, 1, EPS, None)
    assert_same_bits(host.forward(*group, None, 1, EPS, None), results)
    for device in ((1, 0), (5, 1)):
        host.set_device(*device)
        assert_same_bits(host.forward(*group, None, 1, EPS, None), results)
    alone = [host.forward(*group.part(i), None, 1, EPS, None) for i in range(len(group.weights))]
    weights_sn = [result[0][0] for result in alone]
    joined = [weights_sn, *(torch.cat([result[k] for result in alone]) for k in (1, 2, 3))]
    assert_same_bits(joined, results)


SMALL_CASES = [Case((2, 3)), Case((3, 4, 2), BSN), Case((5, 2), SN_V_FIRST), Case((300, 3))]


@pytest.mark.parametrize(("layers", "tables"), [(1, 1), (22, 1), (175, 1), (176, 2)])
def test_launches_serve_175_weights(host: Host, layers: int, tables: int) -> None:
    """Three launches forward and two backward, for as many weights as a table has room for."""
    cases = [SMALL_CASES[i % len(SMALL_CASES)] for i in range(layers)]
    group = make_group(cases, torch.float32)
    before = host.launches()
    results = host.forward(*group, None, 1, EPS, None)
    assert host.launches() - before == 3 * tables
    expected = reference.forward(*group.double(), None, 1, EPS, None)
    rest = (group.dims, group.kinds, group.scales, None, torch.float32)
    grads = [torch.randn(weight.shape) for weight in group.weights]
    gradients = host.backward(grads, None, *results, *rest)
    assert host.launches() - before == 5 * tables
    wanted = reference.backward(grads, None, *results, *rest)
    for got, want in zip(flat([*results, *gradients]), flat([*expected, *wanted]), strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("launch", range(5))
def test_refused_launch_says_so_and_changes_nothing(host: Host, launch: int) -> None:
    group = make_group([Case((40, 24)), Case((9, 5, 3, 3), BSN)], torch.float32)
    results = host.forward(*group, None, 1, EPS, None)
    given = [tensor.clone() for tensor in flat([group.us, group.vs])]
    rest = (group.dims, group.kinds, group.scales, None)
    grads = [torch.randn(weight.shape) for weight in group.weights]
    host.refuse(launch)
    name = "weights" if launch < 3 else "weights_sn"
    where = rf"launch refused by backend cuda on device -?\d+ for {name}\[0\] to {name}\[1\]"
    try:
        with pytest.raises(RuntimeError, match=rf"{where} of float32: fastsn_\w+_f32_few: refused"):
            host.forward(*group, None, 1, EPS, None, True)
            host.backward(grads, None, *results, *rest, torch.float32)
    finally:
        host.refuse(-1)
    if launch < 3:
        assert_same_bits([group.us, group.vs], given)


def test_options_of_the_ops(host: Host) -> None:
    group = make_group([Case((40, 24)), Case((9, 5, 3, 3), BSN)], torch.bfloat16)
    wide = group._replace(us=[u.float() for u in group.us], vs=[v.half() for v in group.vs])
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    results = host.forward(*wide[:5], [], scale, 1, EPS, torch.float32)
    double = wide.double()
    expected = reference.forward(*double[:5], scale.tolist(), None, 1, EPS, None)
    assert [w.dtype for w in results[0]] == [torch.float32] * 2
    for got, want in zip(flat(results), flat(expected), strict=True):
        assert distance(got, want) < 1e-6
    grads = [torch.randn(weight.shape) for weight in group.weights]
    rest = (group.dims, group.kinds)
    gradients = host.backward(grads, None, *results, *rest, [], scale, torch.float16)
    expected = reference.backward(grads, None, *results, *rest, [], scale.float(), torch.float32)
    assert [w.dtype for w in gradients[0]] == [torch.float16] * 2
    for got, want in zip(flat(gradients), flat(expected), strict=True):
        assert distance(got, want) < 5e-4


def test_memory_without_alignment(host: Host) -> None:
    group = make_group([Case((64, 96)), Case((64, 96))], torch.float32)
    shifted = [torch.empty(weight.numel() + 1)[1:] for weight in group.weights]
    shifted = [s.view(64, 96).copy_(w) for s, w in zip(shifted, group.weights, strict=True)]
    assert_same_bits(
        host.forward(shifted, *group[1:], None, 1, EPS, None),
        host.forward(*group, None, 1, EPS, None),
    )


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [SN, BSN, SN_V_FIRST])
def test_degenerate_weights(host: Host, kind: int, value: float, n: int) -> None:
    case = Case((6, 5, 2), kind)
    group = make_group([case, case, case], torch.float32)
    if value == 0:
        group.weights[1].zero_()
    else:
        group.weights[1][2, 3, 1] = value
    weights_sn, sigmas, vectors, _ = results = host.forward(*group, None, n, EPS, None)
    for i in (0, 2):
        good = host.forward(*group.part(i), None, n, EPS, None)
        assert_same_bits([weights_sn[i], sigmas[i : i + 1]], [good[0][0], good[1]])
    bad = group.part(1)
    given = [x.flatten() for pair in zip(bad.us, bad.vs, strict=True) for x in pair]
    entries = sum(x.numel() for x in given)
    assert torch.equal(vectors[entries : 2 * entries], torch.cat(given))
    rest = (group.dims, group.kinds, group.scales, None, torch.float32)
    grads = [torch.randn(weight.shape) for weight in group.weights]
    grad_weights, grad_scales = host.backward(grads, None, *results, *rest)
    assert bool(grad_weights[0].isfinite().all() and grad_weights[2].isfinite().all())
    if value == 0:
        assert sigmas[1] == 0 and grad_scales[1] == 0
        assert not weights_sn[1].any() and not grad_weights[1].any()
    else:
        assert not sigmas[1].isfinite() and bool(weights_sn[1].isnan().any())


def test_zero_scale(host: Host) -> None:
    group = make_group([Case((6, 5))], torch.float32)._replace(scales=[0.0])
    results = host.forward(*group, None, 1, EPS, None)
    rest = (group.dims, group.kinds, group.scales, None, torch.float32)
    grad_weights, grad_scales = host.backward([torch.ones(6, 5)], None, *results, *rest)
    assert not results[0][0].any() and not grad_weights[0].any() and grad_scales == 0


REFUSED = {
    "expected us to have 2 elements, got 1": lambda a: a["us"].pop(),
    "expected scales to have 2 elements, got 0": lambda a: a["scales"].clear(),
    r"expected us\[1\] to have 7 elements, got 4": lambda a: a["us"].__setitem__(1, torch.ones(4)),
    r"expected vs\[0\] to be contiguous": lambda a: a["vs"].__setitem__(0, torch.ones(8)[::2]),
    r"expected weights\[1\] to be Float as weights\[0\], got Double": (
        lambda a: a["weights"].__setitem__(1, torch.ones(7, 3, dtype=torch.float64))
    ),
    r"weights\[0\] to be contiguous or channels_last .* sizes \(5, 4\) and strides \(1, 5\)": (
        lambda a: a["weights"].__setitem__(0, torch.ones(4, 5).t())
    ),
    r"expected weights\[1\] to have 2 or more dimensions, got 1": (
        lambda a: a["weights"].__setitem__(1, torch.ones(7))
    ),
    r"expected dims\[1\] to be from 0 to 1, got 2": lambda a: a["dims"].__setitem__(1, 2),
    r"expected kinds\[0\] to be 0, 1 or 2, got 3": lambda a: a["kinds"].__setitem__(0, 3),
    r"expected weights\[0\] of kind 1 to have 3 or more": lambda a: a["kinds"].__setitem__(0, BSN),
    "expected n_power_iterations to be 0 or more, got -1": lambda a: a.update(n=-1),
    "expected out_dtype to be float32, bfloat16 or float16": (
        lambda a: a.update(out_dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_arguments(host: Host, message: str) -> None:
    arguments = {
        "weights": [torch.ones(5, 4), torch.ones(7, 3)],
        "us": [torch.ones(5), torch.ones(7)],
        "vs": [torch.ones(4), torch.ones(3)],
        "dims": [0, 0],
        "kinds": [SN, SN],
        "scales": [1.0, 1.0],
        **{"scale_tensor": None, "n": 1, "eps": EPS, "out_dtype": None},
    }
    host.forward(*arguments.values())
    REFUSED[message](arguments)
    with pytest.raises(RuntimeError, match=message):
        host.forward(*arguments.values())
