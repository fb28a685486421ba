"""Exact norms against dense SVDs; the paper's bounds against random weights, networks, Hessians."""

from __future__ import annotations

import copy
import math
import random
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsn
from fastsn import analysis
from fastsn.conv_map import ConvMap

LAYERS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


def _pick(rng: random.Random, count: int, options: list[int]) -> tuple[int, ...]:
    return tuple(rng.choice(options) for _ in range(count))


def random_layer(rng: random.Random, transposed: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """A random convolution layer in float64 without bias, and an input size it accepts."""
    while True:
        dims = rng.choice([1, 1, 2, 2, 2, 3])
        pick = partial(_pick, rng, dims)
        groups = rng.choice([1, 1, 2])
        options: dict[str, Any] = {"stride": pick([1, 1, 2, 3]), "dilation": pick([1, 1, 2])}
        if transposed:
            options["padding"] = pick([0, 1, 2])
            options["output_padding"] = tuple(
                rng.randrange(max(s, d))
                for s, d in zip(options["stride"], options["dilation"], strict=True)
            )
        else:
            options["padding_mode"] = rng.choice(["zeros", "circular", "reflect", "replicate"])
            options["padding"] = rng.choice([pick([0, 1, 2]), "valid", "same"])
            if options["padding"] == "same":
                options["stride"] = 1
        channels = [groups * rng.randint(1, 2), groups * rng.randint(1, 3)]
        layer = LAYERS[dims, transposed](
            *channels, pick([1, 2, 3, 4]), groups=groups, bias=False, dtype=torch.float64, **options
        )
        size = pick([3, 4, 5, 6] if dims < 3 else [2, 3, 4])
        try:
            ConvMap.of_module(layer, layer.weight.shape).input_shape(size)
        except ValueError:
            continue
        return layer, size


def geometry(layer: nn.Module) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "transposed")
    options = {name: getattr(layer, name) for name in names}
    if layer.transposed:
        options["output_padding"] = layer.output_padding
    return options


def random_cases(count: int) -> list[Any]:
    rng = random.Random(1)
    torch.manual_seed(1)
    cases = [random_layer(rng, transposed=i % 3 == 2) for i in range(count)]
    return [pytest.param(*case, id=f"{i}-{case[0]}-{case[1]}") for i, case in enumerate(cases)]


CASES = random_cases(45)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "size"), CASES)
def test_matrix_adjoint_and_norm_agree_with_the_layer(
    layer: nn.Module, size: tuple[int, ...]
) -> None:
    weight, options = layer.weight.detach(), geometry(layer)
    conv = ConvMap.of_module(layer, weight.shape)
    assert conv == ConvMap.of(weight.shape, **options)
    shape = conv.input_shape(size)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(conv.apply(weight, x), expected)
    assert conv.output_shape(shape) == tuple(expected.shape[1:])

    matrix = analysis.conv_matrix(weight, size, **options)
    torch.testing.assert_close(x.flatten(1) @ matrix.t(), expected.flatten(1))

    y = torch.randn_like(expected)
    adjoint = conv.adjoint(weight, y, shape)
    assert adjoint.shape == x.shape
    torch.testing.assert_close((adjoint * x).sum(), (y * expected).sum())
    (by_autograd,) = torch.autograd.grad(conv.apply(weight, x), x, y)
    torch.testing.assert_close(adjoint, by_autograd)

    w = weight.clone().requires_grad_()
    inner = (y[:1] * conv.apply(w, x[:1].detach())).sum()
    (by_autograd,) = torch.autograd.grad(inner, w)
    torch.testing.assert_close(conv.outer(weight, y[:1], x[:1].detach()), by_autograd)

    exact = float(torch.linalg.svdvals(matrix)[0])
    assert analysis.conv_norm(weight, size, **options) == pytest.approx(exact, rel=1e-6)
    assert analysis.conv_norm_of(layer, size) == analysis.conv_norm(weight, size, **options)


@pytest.mark.parametrize(("layer", "size"), CASES)
def test_tsuzuku_bounds_hold(layer: nn.Module, size: tuple[int, ...]) -> None:
    weight, options = layer.weight.detach(), geometry(layer)
    exact = float(torch.linalg.svdvals(analysis.conv_matrix(weight, size, **options))[0])
    lower, upper = analysis.tsuzuku_bounds(weight, size, **options)
    assert lower * (1 - 1e-12) <= exact <= upper * (1 + 1e-12)
    # With all weights 1 the map's columns sum to how often an input element is read.
    ones = torch.ones(1, 1, *weight.shape[2:], dtype=torch.float64)
    reads = analysis.conv_matrix(ones, size, **{**options, "groups": 1})
    counts = reads.sum(1 if options["transposed"] else 0)
    alpha = analysis.tsuzuku_alpha(weight.shape, size, **options)
    assert alpha == pytest.approx(math.sqrt(float(counts.max())))
    by_group = weight.flatten(1).unflatten(0, (layer.groups, -1))
    kernel = float(torch.linalg.svdvals(by_group)[:, 0].max())
    assert upper == pytest.approx(alpha * kernel)
    assert lower in (0.0, pytest.approx(kernel))
    if options["transposed"]:
        reads = reads.t()
    # A row of prod(kernel) different ones is a position that reads a full, unpadded patch.
    full = ((reads == 1).sum(1) == ones.numel()).any()
    assert (lower > 0) == bool(full)


def test_random_cases_cover_what_matters() -> None:
    layers = [case.values[0] for case in CASES]
    assert {layer.padding_mode for layer in layers} == {"zeros", "circular", "reflect", "replicate"}
    assert {len(layer.kernel_size) for layer in layers if layer.transposed} == {1, 2, 3}
    assert {len(layer.kernel_size) for layer in layers if not layer.transposed} == {1, 2, 3}
    assert {layer.groups for layer in layers} == {1, 2}
    assert any(
        o >= s for c in layers for o, s in zip(c.output_padding, c.stride, strict=False) if o
    )
    assert any(layer.padding == "same" for layer in layers)
    lowers = [
        analysis.tsuzuku_bounds(case.values[0].weight, case.values[1], **geometry(case.values[0]))
        for case in CASES
    ]
    assert {lower > 0 for lower, _ in lowers} == {True, False}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_fourier_norm_is_the_dense_norm(dims: int, groups: int, dilation: int) -> None:
    for size, kernel in ((5 if dims < 3 else 4, 3), (3, 2), (2, 3), (3, 1)):
        if dilation * (kernel - 1) > 2 * size:
            continue
        weight = torch.randn(4, 3, *[kernel] * dims, dtype=torch.float64)[:, : 3 if dims < 3 else 1]
        options: dict[str, Any] = {"padding": "same", "padding_mode": "circular"}
        options |= {"groups": groups, "dilation": dilation}
        exact = float(torch.linalg.svdvals(analysis.conv_matrix(weight, size, **options))[0])
        norm = analysis.conv_norm(weight, size, method="fourier", **options)
        assert norm == pytest.approx(exact, rel=1e-12)
        iterated = analysis.conv_norm(weight, size, method="lanczos", **options)
        assert iterated == pytest.approx(exact, rel=1e-6)


def test_close_singular_values_converge() -> None:
    # Ones on a long zero-padded signal: the norm is 1 + 2 cos(pi / (n + 1)), gaps of order 1 / n^2.
    n = 400
    weight = torch.ones(1, 1, 3)
    expected = 1 + 2 * math.cos(math.pi / (n + 1))
    assert analysis.conv_norm(weight, n, padding=1) == pytest.approx(expected, rel=1e-9)


def test_conv_norm_says_when_it_has_not_converged() -> None:
    weight = torch.randn(4, 4, 3, 3)
    exact = analysis.conv_norm(weight, 8, padding=1)
    with pytest.warns(
        RuntimeWarning, match=r"did not converge in 2 products.*estimated relative error"
    ):
        rough = analysis.conv_norm(weight, 8, padding=1, max_products=2)
    assert 0.5 * exact < rough < exact


def test_conv_norm_of_extreme_weights() -> None:
    weight = torch.randn(2, 3, 3)
    norm = analysis.conv_norm(weight, 6, padding=1)
    for factor in (1e-30, 1e30):
        scaled = analysis.conv_norm(weight.double() * factor, 6, padding=1)
        assert scaled == pytest.approx(norm * factor, rel=1e-6)
    assert analysis.conv_norm(torch.zeros(2, 3, 3), 6) == 0.0
    weight[0, 0, 0] = math.inf
    assert math.isnan(analysis.conv_norm(weight, 6))
    assert all(math.isnan(bound) for bound in analysis.tsuzuku_bounds(weight, 6))
    # A kernel without a center on inputs of one element: the map is zero, the weight is not.
    assert analysis.conv_norm(torch.tensor([[[1.0, 0.0, 1.0]]]), 1, padding=1) == 0.0


def test_conv_norm_is_repeatable_and_leaves_the_generator_alone() -> None:
    weight = torch.randn(4, 4, 3, 3)
    state = torch.get_rng_state()
    assert len({analysis.conv_norm(weight, 7, stride=2) for _ in range(3)}) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_one_by_one_convolution_is_its_matrix() -> None:
    weight = torch.randn(6, 4, 1, 1)
    exact = analysis.spectral_norm_exact(weight)
    assert analysis.conv_norm(weight, 5) == pytest.approx(exact)
    assert analysis.tsuzuku_bounds(weight, 5) == pytest.approx((exact, exact))


def test_tsuzuku_lower_bound_needs_an_unpadded_patch() -> None:
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0] = 1.0  # a corner, which reads only padding on a 1x1 input
    assert analysis.conv_norm(weight, 1, padding=1) == 0.0
    assert analysis.spectral_norm_exact(weight) == pytest.approx(1.0)
    lower, upper = analysis.tsuzuku_bounds(weight, 1, padding=1)
    assert lower == 0.0
    assert upper == pytest.approx(1.0)
    # A random one, where SN_Conv divides by less than SN.
    weight = torch.randn(8, 8, 3, 3)
    assert analysis.conv_norm(weight, 1, padding=1) < 0.8 * analysis.spectral_norm_exact(weight)
    lowers = [analysis.tsuzuku_bounds(weight, size, padding=1).lower for size in (1, 2, 3)]
    assert lowers == [0.0, 0.0, pytest.approx(analysis.spectral_norm_exact(weight))]


def test_tsuzuku_bounds_are_per_group_and_along_dimension_0() -> None:
    # Equal filters in every group: all rows together have a norm that the convolution has not.
    weight = torch.ones(16, 1, 1, 1)
    assert analysis.spectral_norm_exact(weight) == pytest.approx(4.0)
    assert analysis.conv_norm(weight, 4, groups=16) == pytest.approx(1.0)
    assert analysis.tsuzuku_bounds(weight, 4, groups=16) == pytest.approx((1.0, 1.0))
    # A transposed convolution whose kernels do not overlap is one matrix, unfolded along dimension
    # 0; the norm along dimension 1, torch's for these layers, is a bound on neither side.
    norms = {}
    for shape in ((32, 2, 2), (2, 32, 2)):
        weight = torch.randn(shape)
        norms[shape] = analysis.conv_norm(weight, 4, stride=2, transposed=True)
        assert norms[shape] == pytest.approx(analysis.spectral_norm_exact(weight, 0))
        bounds = analysis.tsuzuku_bounds(weight, 4, stride=2, transposed=True)
        assert bounds == pytest.approx((norms[shape], norms[shape]))
        norms[shape] /= analysis.spectral_norm_exact(weight, 1)
    assert norms[32, 2, 2] < 0.9
    assert norms[2, 32, 2] > 1.1


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "count"),
    [(3, 1, 1, 9), (4, 2, 1, 4), (3, 2, 1, 4), (3, 2, 2, 9), (4, 4, 2, 4), (5, 3, 1, 4)],
)
def test_alpha_of_large_inputs(kernel: int, stride: int, dilation: int, count: int) -> None:
    alpha = analysis.tsuzuku_alpha(
        (8, 8, kernel, kernel), 32, stride=stride, dilation=dilation, padding=1
    )
    assert alpha == pytest.approx(math.sqrt(count))
    assert count == math.ceil(kernel / (stride // math.gcd(stride, dilation))) ** 2


def test_unfold_and_exact_sigmas() -> None:
    weight = torch.randn(4, 3, 2, 5)
    assert torch.equal(analysis.unfold(weight, 0), weight.reshape(4, 30))
    assert torch.equal(analysis.unfold(weight, 1), weight.permute(1, 0, 2, 3).reshape(3, 40))
    assert torch.equal(analysis.unfold(weight, -1), weight.permute(3, 0, 1, 2).reshape(5, 24))
    sigmas = [
        float(torch.linalg.matrix_norm(analysis.unfold(weight, d).double(), 2)) for d in (0, 1)
    ]
    assert analysis.spectral_norm_exact(weight, 0) == pytest.approx(sigmas[0], rel=1e-12)
    assert analysis.spectral_norm_exact(weight, 1) == pytest.approx(sigmas[1], rel=1e-12)
    mean = sum(sigmas) / 2
    assert analysis.bsn_sigma_exact(weight) == pytest.approx(mean, rel=1e-12)
    assert analysis.bsn_sigma_exact(weight, 1) == pytest.approx(mean, rel=1e-12)
    assert sigmas[0] != pytest.approx(sigmas[1], rel=1e-3)
    matrix = torch.randn(5, 7, dtype=torch.complex64)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert analysis.bsn_sigma_exact(matrix) == pytest.approx(exact, rel=1e-5)
    assert math.isnan(analysis.spectral_norm_exact(torch.tensor([[1.0, math.nan]])))
    assert analysis.spectral_norm_exact(torch.zeros(3, 4)) == 0.0


def entries(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """I.i.d. symmetric entries."""
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator)
    return {
        "normal": normal,
        "uniform": uniform - 0.5,
        "signs": (uniform - 0.5).sign(),
        "heavy tails": normal / uniform,
    }[name]


DISTRIBUTIONS = ["normal", "uniform", "signs", "heavy tails"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_theorem_2(distribution: str) -> None:
    generator = torch.Generator().manual_seed(2)
    for m, n in [(1, 1), (2, 3), (8, 8), (64, 27), (32, 288), (1, 50)]:
        bound = analysis.theorem2_bound(m, n)
        assert bound == 1 / max(m, n)
        draws = [entries(distribution, (m, n), generator) for _ in range(10)]
        variances = [analysis.parameter_variance(a, analysis.spectral_norm_exact(a)) for a in draws]
        assert max(variances) <= bound * (1 + 1e-12)
        if distribution == "normal" and m >= 2:
            # Some constant serves all sizes: Gaussian matrices stay within a log of the bound.
            assert sum(variances) / 10 >= analysis.theorem2_lower_bound(m, n, constant=0.1)
    # The bound is attained: all singular values of an orthogonal matrix are equal.
    q = torch.linalg.qr(entries("normal", (16, 16), generator)).Q
    assert analysis.parameter_variance(q, 1.0) == pytest.approx(analysis.theorem2_bound(16, 16))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_theorem_3_and_the_bound_that_always_holds(distribution: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for c_out, c_in, k in [(8, 8, 3), (16, 8, 3), (32, 16, 4), (12, 3, 5), (64, 3, 3)]:
        draws = [entries(distribution, (c_out, c_in, k, k), generator) for _ in range(5)]
        variances = [analysis.parameter_variance(w, analysis.bsn_sigma_exact(w)) for w in draws]
        proven = analysis.bsn_variance_bound(c_out, c_in, k)
        assert max(variances) <= proven * (1 + 1e-12)
        if k * k < max(c_out / c_in, c_in / c_out):
            with pytest.raises(ValueError, match="the condition of Theorem 3"):
                analysis.theorem3_bound(c_out, c_in, k)
            continue
        stated = analysis.theorem3_bound(c_out, c_in, k)
        assert stated == 2 / (k * k * (c_out + c_in))
        assert stated * (1 - 1e-12) <= proven <= 2 * stated
        assert sum(variances) / 5 <= stated
        if distribution == "normal":
            mean = sum(variances) / 5
            assert mean >= analysis.theorem3_lower_bound(c_out, c_in, k, constant=0.1)
    assert analysis.bsn_variance_bound(8, 8, 3) == pytest.approx(analysis.theorem3_bound(8, 8, 3))


def test_theorem_3_fails_for_very_different_channel_numbers() -> None:
    generator = torch.Generator().manual_seed(4)
    draws = [entries("normal", (64, 3, 7, 7), generator) for _ in range(4)]
    variances = [analysis.parameter_variance(w, analysis.bsn_sigma_exact(w)) for w in draws]
    stated = analysis.theorem3_bound(64, 3, 7)
    assert min(variances) > 1.05 * stated
    assert max(variances) < analysis.bsn_variance_bound(64, 3, 7)


def test_parameter_variance() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert analysis.parameter_variance(weight) == pytest.approx(14 / 4)
    assert analysis.parameter_variance(weight, 2.0) == pytest.approx(14 / 16)


SLOPES = {"identity": 1.0, "relu": 1.0, "sigmoid": 0.25}


def dense_net(weights: list[Tensor], x: Tensor, slope: float, output: str) -> Tensor:
    for weight in weights[:-1]:
        x = F.leaky_relu(weight @ x, slope)
    x = weights[-1] @ x
    return {"identity": x, "relu": x.relu(), "sigmoid": x.sigmoid()}[output].squeeze()


def random_weights(sizes: list[int], norms: list[float]) -> list[Tensor]:
    weights = []
    for n, m, norm in zip(sizes[:-1], sizes[1:], norms, strict=True):
        weight = torch.randn(m, n, dtype=torch.float64)
        weights.append((weight * norm / torch.linalg.matrix_norm(weight, 2)).requires_grad_())
    return weights


@pytest.mark.parametrize("output", list(SLOPES))
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_proposition_1(output: str, slope: float) -> None:
    tightest = 0.0
    for seed in range(30):
        torch.manual_seed(seed)
        depth = 1 + seed % 4
        norms = [1.0] * depth if seed < 15 else [0.5 + 2 * random.random() for _ in range(depth)]
        weights = random_weights([6, *[5, 4, 6][: depth - 1], 1], norms)
        x = torch.randn(6, dtype=torch.float64)
        grads = torch.autograd.grad(dense_net(weights, x, slope, output), weights)
        lipschitz = [1.0] * (depth - 1) + [SLOPES[output]]
        bounds = analysis.proposition1_bound(float(x.norm()), lipschitz, norms)
        sizes = [float(grad.norm()) for grad in grads]
        for size, bound in zip(sizes, bounds.per_layer, strict=True):
            assert size <= bound * (1 + 1e-9)
        assert math.hypot(*sizes) <= bounds.overall * (1 + 1e-9)
        tightest = max(tightest, sizes[-1] / bounds.per_layer[-1])
        if norms == [1.0] * depth:
            common = float(x.norm()) * SLOPES[output]
            assert bounds.per_layer == pytest.approx((common,) * depth)
            assert bounds.overall == pytest.approx(math.sqrt(depth) * common)
    assert tightest > 0.5  # a wrong power of a norm would leave no case near its bound


def test_proposition_1_is_attained_by_a_chain_of_numbers() -> None:
    norms = [2.0, 0.5, 3.0]
    weights = [torch.tensor([[n]], dtype=torch.float64, requires_grad=True) for n in norms]
    x = torch.tensor([1.5], dtype=torch.float64)
    grads = torch.autograd.grad(dense_net(weights, x, 0.0, "identity"), weights)
    bounds = analysis.proposition1_bound(1.5, 1.0, norms)
    assert bounds.per_layer == pytest.approx([float(grad) for grad in grads])
    assert bounds.overall == pytest.approx(math.hypot(*map(float, grads)))
    assert analysis.proposition1_bound(1.5, 1.0, [0.0, 2.0]).per_layer == (3.0, 0.0)
    by_number = analysis.proposition1_bound(2.0, 0.5, 3.0, n_layers=4)
    assert by_number.per_layer == pytest.approx((2.0 * 0.5**4 * 3.0**3,) * 4)
    assert by_number.overall == pytest.approx(2 * by_number.per_layer[0])


def test_proposition_1_of_convolutions_needs_their_reuse() -> None:
    # Constant input and gradient on a ring: every tap sums over all positions.
    weight = torch.full((1, 1, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    n = 8
    x = torch.ones(1, 1, n, dtype=torch.float64)
    y = F.conv1d(F.pad(x, (1, 1), mode="circular"), weight)
    final = torch.full((n,), n**-0.5, dtype=torch.float64)
    (grad,) = torch.autograd.grad(y.flatten() @ final, weight)
    norm = analysis.conv_norm(weight, n, padding=1, padding_mode="circular")
    assert norm == pytest.approx(1.0)
    plain = analysis.proposition1_bound(float(x.norm()), 1.0, [norm, 1.0])
    assert float(grad.norm()) > 1.7 * plain.per_layer[0]
    alpha = analysis.tsuzuku_alpha(weight.shape, n, padding=1, padding_mode="circular")
    bound = analysis.proposition1_bound(float(x.norm()), 1.0, [norm, 1.0], reuse=[alpha, 1.0])
    assert float(grad.norm()) == pytest.approx(bound.per_layer[0])


def test_proposition_1_of_random_convolutional_networks() -> None:
    geometries = [{"padding": 1}, {"stride": 2, "padding": 1}, {}]
    shapes, sizes = [(4, 2, 3, 3), (3, 4, 4, 4), (1, 3, 4, 4)], [8, 8, 4]
    for seed in range(5):
        torch.manual_seed(seed)
        weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
        y = x
        for weight, options in zip(weights, geometries, strict=True):
            y = F.conv2d(F.relu(y) if weight is not weights[0] else y, weight, **options)
        grads = torch.autograd.grad(y.squeeze(), weights)
        table = list(zip(weights, sizes, geometries, strict=True))
        norms = [analysis.conv_norm(w, n, **options) for w, n, options in table]
        reuse = [analysis.tsuzuku_alpha(w.shape, n, **options) for w, n, options in table]
        bounds = analysis.proposition1_bound(float(x.norm()), 1.0, norms, reuse=reuse)
        for grad, bound in zip(grads, bounds.per_layer, strict=True):
            assert 0.001 * bound < float(grad.norm()) <= bound


def test_raw_gradient_bound() -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        raw = random_weights([6, 5, 4, 1], [0.3, 2.0, 5.0])
        scales = [1.2, 0.7, 2.0]
        normalized = [
            s * w / torch.linalg.matrix_norm(w, 2) for s, w in zip(scales, raw, strict=True)
        ]
        x = torch.randn(6, dtype=torch.float64)
        grads = torch.autograd.grad(dense_net(normalized, x, 0.1, "sigmoid"), raw)
        bounds = analysis.raw_gradient_bound(
            float(x.norm()), [1.0, 1.0, 0.25], [0.3, 2.0, 5.0], scales
        )
        for grad, bound in zip(grads, bounds.per_layer, strict=True):
            assert float(grad.norm()) <= bound
        assert bounds.overall == pytest.approx(math.hypot(*bounds.per_layer))
    # Two inputs orthogonal to the singular vector: the first term alone, half of the bound.
    weight = torch.diag(torch.tensor([3.0, 0.0], dtype=torch.float64)).requires_grad_()
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    out = (
        torch.tensor([0.0, 1.0], dtype=torch.float64)
        @ (weight / torch.linalg.matrix_norm(weight, 2))
        @ x
    )
    (grad,) = torch.autograd.grad(out, weight)
    assert float(grad.norm()) == pytest.approx(
        analysis.raw_gradient_bound(1.0, 1.0, [3.0]).overall / 2
    )


def test_proposition_3() -> None:
    steepest = 1 / (6 * math.sqrt(3))
    largest = 0.0
    for seed in range(20):
        torch.manual_seed(seed)
        norms = [1.5, 0.8, 1.2]
        weights = [weight.detach() for weight in random_weights([4, 3, 3, 1], norms)]
        x = torch.randn(4, dtype=torch.float64)
        bounds = analysis.proposition3_bound(float(x.norm()), steepest, norms)
        for t, bound in enumerate(bounds):

            def output(
                weight: Tensor, t: int = t, weights: list[Tensor] = weights, x: Tensor = x
            ) -> Tensor:
                return dense_net([*weights[:t], weight, *weights[t + 1 :]], x, 0.2, "sigmoid")

            hessian = torch.autograd.functional.hessian(output, weights[t])
            n = weights[t].numel()
            size = float(torch.linalg.matrix_norm(hessian.view(n, n), 2))
            assert size <= bound * (1 + 1e-9)
            largest = max(largest, size / bound)
    assert largest > 0.3
    assert analysis.proposition3_bound(2.0, 0.0, 1.0, n_layers=3) == (0.0, 0.0, 0.0)


W = torch.ones(2, 2, 3)
conv_norm = analysis.conv_norm


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: analysis.unfold(torch.ones(3)), ValueError, "2 or more dimensions"),
        (lambda: analysis.unfold(torch.ones(3, 3), 2), IndexError, r"range of \[-2, 1\] but got 2"),
        (lambda: analysis.bsn_sigma_exact(torch.ones(2, 2, 2), 2), ValueError, "got dim=2"),
        (
            lambda: analysis.parameter_variance(torch.ones(2, 2), 0.0),
            ValueError,
            "sigma to be positive",
        ),
        (lambda: analysis.theorem2_bound(0, 3), ValueError, "at least 1"),
        (lambda: analysis.theorem2_lower_bound(1, 3, 1.0), ValueError, "needs m, n >= 2"),
        (lambda: analysis.theorem2_lower_bound(2, 2, 1.0), ValueError, r"max\(m, n\) >= 3"),
        (
            lambda: analysis.theorem2_lower_bound(3, 3, 0.0),
            ValueError,
            "constant to be finite and positive",
        ),
        (lambda: analysis.theorem3_bound(64, 3, 3), ValueError, r"prod\(kernel_size\)=9, c_out=64"),
        (lambda: analysis.theorem3_bound(64, 3, (3, 0)), ValueError, "at least 1"),
        (lambda: analysis.theorem3_lower_bound(2, 1, 3, 1.0), ValueError, "c_in, c_out >= 2"),
        (lambda: analysis.theorem3_lower_bound(2, 2, 1, 1.0), ValueError, "c_in k >= 3"),
        (lambda: analysis.proposition1_bound(1.0, 1.0), ValueError, "one number of layers"),
        (lambda: analysis.proposition1_bound(1.0, [1.0], [1.0, 1.0]), ValueError, "'norms': 2"),
        (lambda: analysis.proposition1_bound(1.0, [], []), ValueError, "one number of layers"),
        (lambda: analysis.proposition1_bound(-1.0, [1.0]), ValueError, "x_norm to be finite"),
        (
            lambda: analysis.proposition1_bound(1.0, [math.nan]),
            ValueError,
            "lipschitz to be finite",
        ),
        (lambda: analysis.raw_gradient_bound(1.0, 1.0, [0.0]), ValueError, "sigmas to be positive"),
        (lambda: analysis.proposition3_bound(1.0, -1.0, [1.0]), ValueError, "output_hessian"),
        (lambda: conv_norm(torch.ones(2, 2), 3), ValueError, "3 to 5 dimensions"),
        (lambda: conv_norm(W, 2), ValueError, "no output in spatial dimension 0"),
        (lambda: conv_norm(W, (3, 3)), ValueError, r"\(size\) or \(2, size\)"),
        (lambda: conv_norm(W, 0), ValueError, "positive ints, got 0"),
        (lambda: conv_norm(W, 4, stride=0), ValueError, "stride to be an int"),
        (lambda: conv_norm(W, 4, padding=(1, 1)), ValueError, "padding to be"),
        (lambda: conv_norm(W, 4, padding="full"), ValueError, "got padding='full'"),
        (lambda: conv_norm(W, 4, padding="same", stride=2), ValueError, "stride 1"),
        (lambda: conv_norm(torch.ones(3, 2, 3), 4, groups=2), ValueError, "groups=2"),
        (lambda: conv_norm(W, 4, padding_mode="wrap"), ValueError, "got 'wrap'"),
        (
            lambda: conv_norm(W, 2, padding=2, padding_mode="reflect"),
            ValueError,
            "reflect padding of at most 1",
        ),
        (lambda: conv_norm(W, 4, output_padding=1), ValueError, "output_padding 0"),
        (
            lambda: conv_norm(W, 4, transposed=True, output_padding=1),
            ValueError,
            "smaller than stride or dilation",
        ),
        (lambda: conv_norm(W, 4, strides=2), TypeError, r"\['strides'\]"),
        (lambda: conv_norm(W, 4, method="svd"), ValueError, "got 'svd'"),
        (lambda: conv_norm(W, 4, method="fourier"), ValueError, "circular padding"),
        (lambda: conv_norm(W, 4, tol=0.0), ValueError, "tol > 0"),
        (lambda: analysis.conv_norm_of(nn.Linear(2, 2), 4), TypeError, "got Linear"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def discriminator() -> nn.Sequential:
    """A layer of every kind the report knows, and two that evaluation mode changes."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 4, stride=2, padding=1)),
        nn.utils.spectral_norm(nn.Conv2d(6, 6, 3, padding=1)),
        fastsn.spectral_norm(nn.Conv2d(6, 5, 3, padding=1), bidirectional=True, scale=1.2),
        fastsn.conv_spectral_norm(nn.Conv2d(5, 5, 3, padding=1), scale=1.75),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(5, 5, 1)),
        nn.BatchNorm2d(5),
        nn.Dropout(0.5),
        fastsn.spectral_norm(nn.ConvTranspose2d(5, 3, 2, stride=2), scale=0.5),
        nn.Flatten(),
        fastsn.spectral_norm(nn.Linear(3 * 8 * 8, 1), scale=nn.Parameter(torch.tensor(2.0))),
    )


IMAGE = (1, 2, 8, 8)


def test_layer_report() -> None:
    model = discriminator()
    model(torch.randn(IMAGE))
    report = analysis.layer_report(model, torch.randn(IMAGE))
    rows = {row.name: row for row in report}
    assert [row.norm for row in report] == [
        "none", "SN", "SN", "BSN", "SN_Conv", "_WeightNorm", "SN", "SN"
    ]  # fmt: skip
    assert list(rows) == [f"{i}.weight" for i in (0, 1, 2, 3, 4, 5, 8, 10)]
    assert [row.scale for row in report] == [None, 1.0, 1.0, 1.2, 1.75, None, 0.5, 2.0]
    sizes = {"0": 8, "1": 8, "2": 4, "3": 4, "4": 4, "5": 4, "8": 4}
    for name, row in rows.items():
        layer = model[int(name.split(".")[0])]
        if row.norm in ("none", "_WeightNorm"):
            raw = layer.weight
            assert row.exact is row.sigma is row.ratio is row.variance_bound is None
        else:
            raw = (
                layer.weight_orig if name == "2.weight" else layer.parametrizations.weight.original
            )
        assert row.shape == tuple(raw.shape)
        assert row.sigma_0 == analysis.spectral_norm_exact(raw, 0)
        assert row.sigma_1 == analysis.spectral_norm_exact(raw, 1)
        used = copy.deepcopy(layer).eval().weight if name != "2.weight" else layer.weight
        if name != "2.weight":
            assert row.variance == pytest.approx(analysis.parameter_variance(used), rel=1e-5)
        if isinstance(layer, nn.Linear):
            assert row.input_shape is row.conv_norm is None
        else:
            assert row.input_shape == (layer.in_channels, *[sizes[name.split(".")[0]]] * 2)
            norm = analysis.conv_norm(raw, row.input_shape, **geometry(layer))
            assert row.conv_norm == pytest.approx(norm)
            bounds = analysis.tsuzuku_bounds(raw, row.input_shape, **geometry(layer))
            assert (row.conv_lower, row.conv_upper) == pytest.approx(bounds)
        if row.scale is not None:
            exact = {
                "BSN": (row.sigma_0 + row.sigma_1) / 2,
                "SN_Conv": row.conv_norm,
                "SN": row.sigma_1 if name == "8.weight" else row.sigma_0,
            }[row.norm]
            assert row.exact == pytest.approx(exact)
            assert row.ratio == pytest.approx(row.sigma / row.exact)
            assert 0.5 < row.ratio < 1.000001
            assert row.variance <= row.variance_bound / row.ratio**2 * (1 + 1e-6)
            if name != "2.weight":
                weight = (row.scale * raw / row.sigma).detach()
                torch.testing.assert_close(weight, used.detach(), rtol=1e-5, atol=1e-7)
    hook = model[2]
    sigma = hook.weight_u @ hook.weight_orig.detach().flatten(1) @ hook.weight_v
    assert rows["2.weight"].sigma == pytest.approx(float(sigma), rel=1e-5)
    assert rows["1.weight"].variance_bound == 1 / 64
    bound = 1.44 * analysis.bsn_variance_bound(5, 6, 3)
    assert rows["3.weight"].variance_bound == pytest.approx(bound)
    assert rows["4.weight"].variance_bound == pytest.approx(1.75**2 / 45)


def test_layer_report_without_an_input() -> None:
    model = discriminator()
    rows = {row.name: row for row in analysis.layer_report(model)}
    lazy = rows["4.weight"]
    assert (lazy.norm, lazy.sigma, lazy.exact, lazy.input_shape) == ("SN_Conv", None, None, None)
    assert rows["0.weight"].conv_norm is None
    assert rows["3.weight"].ratio is not None
    model(torch.randn(IMAGE))
    row = analysis.layer_report(model)[4]
    assert row.input_shape == (5, 4, 4)
    assert row.ratio == pytest.approx(row.sigma / row.conv_norm)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ran_before", [True, False])
def test_layer_report_changes_nothing(training: bool, ran_before: bool) -> None:
    model = discriminator().train(training)
    x = torch.randn(IMAGE)
    if ran_before:
        model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    versions = {name: value._version for name, value in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    addresses = [id(parameter) for parameter in model.parameters()]
    state = torch.get_rng_state()
    analysis.layer_report(model, x)
    analysis.layer_report(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert [id(parameter) for parameter in model.parameters()] == addresses
    assert {name: value._version for name, value in model.named_buffers()} == versions
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_layer_report_of_grouped_and_lazy_models() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    fastsn.apply(model, method="bssn", scale=1.5, update="step")
    x = torch.randn(IMAGE)
    model(x)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    convolution, linear = analysis.layer_report(model, x)
    assert (convolution.norm, linear.norm) == ("BSN", "SN")  # of a matrix, BSN is SN
    assert convolution.scale == 1.5
    assert 0.8 < convolution.ratio < 1.000001
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), name

    lazy = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    (row,) = analysis.layer_report(lazy, x)
    assert row.input_shape == (2, 8, 8)
    assert isinstance(lazy[2].weight, nn.parameter.UninitializedParameter)


def test_layer_report_prints_a_table() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 4), fastsn.spectral_norm(nn.Linear(4, 3), scale=1.25), nn.LayerNorm(3)
    )
    lines = str(analysis.layer_report(model)).splitlines()
    columns = "name norm shape sigma_0 sigma_1 exact sigma ratio scale variance variance_bound"
    assert lines[0].split() == columns.split()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["0.weight", "none", "10x4"],
        ["1.weight", "SN", "3x4"],
    ]
    cells = ["-", "-", "-", "-", f"{model[0].weight.square().mean():.4g}", "-"]
    assert lines[1].split()[5:] == cells
    assert lines[2].split()[8] == "1.25"
    assert analysis.layer_report(nn.ReLU()) == []


def test_conv_norm_of_a_normalized_layer() -> None:
    layer = fastsn.conv_spectral_norm(nn.Conv2d(3, 4, 3, padding=1), input_shape=6, scale=1.5)
    layer.parametrizations.weight[0].advance(layer.parametrizations.weight.original, 500)
    u = layer.parametrizations.weight[0]._u.clone()
    assert analysis.conv_norm_of(layer, (6, 6)) == pytest.approx(1.5, rel=1e-3)
    assert torch.equal(layer.parametrizations.weight[0]._u, u)
    assert layer.training
