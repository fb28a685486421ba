"""The two ops as PyTorch sees them: schemas, derivatives, fake tensors, compile, export, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from cases import KINDS, Results, assert_near, call, call_group, make_group, plain, same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastsn
import fastsn.op

OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
FORWARD = torch.ops.fastsn.spectral_normalize.default
BACKWARD = torch.ops.fastsn.spectral_normalize_backward.default


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def forward_arguments(kind: str, options: dict[str, Any], backend: str) -> list[Any]:
    """Arguments of the op for two weights or three; the second needs no gradient."""
    group = make_group(kind, options.get("dtype", torch.float32), 3 if kind == "mixed" else 2)
    if options.get("channels_last"):
        group.weights[1] = group.weights[1].transpose(1, 2).contiguous().transpose(1, 2)
    for weight in group.weights[::2]:
        weight.requires_grad_()
    k = len(group.weights)
    scale_tensor = torch.rand(k).add(1).requires_grad_() if options.get("tensor") else None
    flat = [pair for own in group.pairs for pair in own]
    return [
        group.weights, [u for u, _ in flat], [v for _, v in flat], group.dims, group.kinds,
        [1.1] * k, options.get("bounds", [0.0] * k), scale_tensor, options.get("n", 1), 1e-12,
        options.get("out_dtype"), backend,
    ]  # fmt: skip


#: What opcheck checks. Derivatives and tracing see the op, whose backend is one of its arguments.
CHECKS = dict.fromkeys(("cpu", "batched"), ("test_schema", "test_faketensor"))
CHECKS["reference"] = OPCHECKS

OPTIONS = {
    "mixed": ("mixed", {}),
    "channels_last": ("bsn", {"channels_last": True}),
    "evaluation": ("mixed", {"n": 0, "dtype": torch.float64}),
    "scale_tensor": ("sn", {"n": 2, "tensor": True}),
    "out_dtype": ("bsn", {"out_dtype": torch.bfloat16}),
    "soft": ("mixed", {"bounds": [0.5, 0.0, 100.0]}),
    "bfloat16": ("sn", {"dtype": torch.bfloat16, "tensor": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_opcheck_of_the_forward_op(backend: str, name: str) -> None:
    kind, options = OPTIONS[name]
    arguments = forward_arguments(kind, options, backend)
    torch.library.opcheck(FORWARD, arguments, test_utils=CHECKS[backend])


@pytest.mark.parametrize("name", OPTIONS)
def test_opcheck_of_the_backward_op(backend: str, name: str) -> None:
    kind, options = OPTIONS[name]
    arguments = forward_arguments(kind, options, backend)
    weights, _, _, dims, kinds, scales, bounds, scale_tensor, *_ = arguments
    with torch.no_grad():
        weights_sn, sigmas, vectors, view_stats = FORWARD(*arguments)
    grads = [torch.randn_like(weight).requires_grad_() for weight in weights_sn]
    # What sum() sends back: all elements are one.
    grads[0] = torch.ones((), dtype=grads[0].dtype).expand_as(grads[0])
    weights_sn[-1].requires_grad_()
    grad_sigmas = None if name == "scale_tensor" else torch.randn_like(sigmas).requires_grad_()
    torch.library.opcheck(
        BACKWARD,
        [grads, grad_sigmas, weights_sn, sigmas.requires_grad_(), vectors, view_stats, dims, kinds,
         scales, bounds, scale_tensor, weights[0].dtype, backend],
        test_utils=CHECKS[backend],
    )  # fmt: skip


# Derivatives


def checkable(kind: str, dtype: torch.dtype) -> tuple[Callable[..., Any], list[Tensor]]:
    """A function of two weights and their scales, and where to check it."""
    k = KINDS[kind]
    weights = [torch.randn(2, 3, dtype=dtype), torch.randn(2, 2, 2, dtype=dtype)]
    if kind == "bsn":
        weights[0] = weights[0].unsqueeze(2)
    pairs = [[] for _ in weights]
    for own, weight in zip(pairs, weights, strict=True):
        for rows, cols in oracle.vector_sizes(weight.shape, 1, k):
            own.append((torch.randn(rows, dtype=dtype), torch.randn(cols, dtype=dtype)))

    def function(first: Tensor, second: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        result = call([first, second], pairs, [1, 1], [k, k], scale=scale, n=0)
        return *result.weights, result.sigmas

    at = [*weights, torch.tensor([1.3, -0.6], dtype=torch.float64)]
    return function, [tensor.requires_grad_() for tensor in at]


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(backend: str, kind: str) -> None:
    function, at = checkable(kind, torch.float64)
    assert torch.autograd.gradcheck(function, at)


@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck(backend: str, kind: str) -> None:
    function, at = checkable(kind, torch.float64)
    assert torch.autograd.gradgradcheck(function, at)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("kind", KINDS)
def test_complex_gradients(kind: str, check: Callable[..., bool]) -> None:
    assert check(*checkable(kind, torch.complex128))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_in_training_are_autograds(
    backend: str, kind: str, n: int
) -> None:
    """Finite differences would move u and v; here they are constants of the written-out formula."""
    group = make_group(kind)
    k = len(group.weights)
    scale = torch.rand(k, dtype=torch.float64) + 0.5
    directions = [torch.randn_like(weight) for weight in group.weights]
    outcomes = []
    for written_out in (True, False):
        at = [tensor.clone().requires_grad_() for tensor in (*group.weights, scale)]
        if written_out:
            results = [
                plain(at[i], group.pairs[i], group.dims[i], group.kinds[i], scale=at[-1][i], n=n)
                for i in range(k)
            ]
            weights_sn, sigmas = [result[0] for result in results], [r[1] for r in results]
        else:
            result = call_group(group._replace(weights=at[:-1]), scale=at[-1], n=n)
            weights_sn, sigmas = result.weights, result.sigmas.unbind()
        loss = sum(weight.pow(3).sum() for weight in weights_sn) + sum(s.square() for s in sigmas)
        grads = torch.autograd.grad(loss, at, create_graph=True)
        along = grads[-1].square().sum()
        for grad, direction in zip(grads[:-1], directions, strict=True):
            along = along + (grad * direction).sum()
        outcomes.append([loss, *grads, *torch.autograd.grad(along, at)])
    for expected, actual in zip(*outcomes, strict=True):
        assert expected.abs().max() > 1e-3
        assert_near(actual, expected, 1e-11)


# Fake and meta tensors


@pytest.mark.parametrize("name", OPTIONS)
def test_fake_and_meta_tensors_have_the_real_layouts(backend: str, name: str) -> None:
    arguments = forward_arguments(*OPTIONS[name], backend)
    grad_dtype = arguments[0][0].dtype

    def both_ops(arguments: list[Any]) -> list[Tensor]:
        with torch.no_grad():
            weights_sn, *rest = FORWARD(*arguments)
            grads, grad_scales = BACKWARD(
                weights_sn, None, weights_sn, *rest, *arguments[3:8], grad_dtype, backend
            )
        return [*weights_sn, *rest, *grads, grad_scales]

    def convert(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
        if isinstance(value, list):
            return [convert(item, function) for item in value]
        return function(value) if isinstance(value, Tensor) else value

    def layout(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.shape, tensor.stride(), tensor.dtype

    real = [layout(tensor) for tensor in both_ops(arguments)]
    with FakeTensorMode() as mode:
        fakes = both_ops(convert(arguments, mode.from_tensor))
    metas = both_ops(convert(arguments, lambda tensor: tensor.detach().to("meta")))
    assert [layout(tensor) for tensor in fakes] == real
    assert [layout(tensor) for tensor in metas] == real
    assert all(tensor.is_meta for tensor in metas)


# Compile and export


def group_loss(group: Any, weights: list[Tensor], scale: Tensor, n: int) -> tuple[Tensor, Results]:
    result = call_group(group._replace(weights=weights), scale=scale, n=n)
    return sum(weight.pow(3).sum() for weight in result.weights) + result.sigmas.sum(), result


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("n", "dynamic"), [(0, False), (2, True)])
def test_compiled_in_one_graph_is_eager_bit_for_bit(backend: str, n: int, dynamic: bool) -> None:
    group = make_group("mixed", torch.float32)
    compiled = torch.compile(
        lambda weights, scale: group_loss(group, weights, scale, n),
        fullgraph=True, backend="aot_eager", dynamic=dynamic,
    )  # fmt: skip
    outcomes = []
    for function in (lambda weights, scale: group_loss(group, weights, scale, n), compiled):
        weights = [weight.clone().requires_grad_() for weight in group.weights]
        scale = torch.full([len(weights)], 1.2, requires_grad=True)
        loss, result = function(weights, scale)
        loss.backward()
        vectors = [vector for own in result.pairs for pair in own for vector in pair]
        outcomes.append([*result.weights, result.sigmas, *vectors, scale.grad])
        outcomes[-1] += [weight.grad for weight in weights]
    for eager, other in zip(*outcomes, strict=True):
        assert same_bits(eager, other)


class Functional(torch.nn.Module):
    def forward(self, weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = fastsn.functional.spectral_normalize([weight], [u], [v], dims=[1])
        return result.weights[0], result.sigmas, result.vs[0]


def test_export(backend: str) -> None:
    at = torch.randn(4, 3, 2), torch.randn(3), torch.randn(8)
    program = torch.export.export(Functional(), at)
    assert "fastsn.spectral_normalize" in str(program.graph)
    other = torch.randn(4, 3, 2), torch.randn(3), torch.randn(8)
    for expected, actual in zip(Functional()(*other), program.module()(*other), strict=True):
        assert same_bits(expected, actual)


# torch.func


def normalize_one(weight: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    result = call([weight], [[(u, v)]], [0], [oracle.SN], n=1)
    return result.weights[0], result.sigmas[0], result.pairs[0][0][0]


@pytest.mark.parametrize("shared_vectors", [False, True])
def test_vmap_over_weights(backend: str, shared_vectors: bool) -> None:
    # A batch of 4, which is dimension 2 of the weights: one weight is [3, 5, 2].
    weights, u, v = torch.randn(3, 5, 4, 2), torch.randn(3, 4), torch.randn(4, 10)
    vector_dims = (None, None) if shared_vectors else (1, 0)
    if shared_vectors:
        u, v = u[:, 0], v[0]
    batched = torch.vmap(normalize_one, (2, *vector_dims))(weights, u, v)
    for b in range(4):
        own = (u, v) if shared_vectors else (u[:, b], v[b])
        for expected, actual in zip(normalize_one(weights[:, :, b], *own), batched, strict=True):
            assert_near(actual[b], expected, 1e-6)


def test_vmap_over_inputs_and_per_sample_gradients(backend: str) -> None:
    weight, u, v, inputs = torch.randn(3, 4), torch.randn(3), torch.randn(4), torch.randn(5, 4)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return (normalize_one(weight, u, v)[0] @ x).pow(3).sum()

    singles = [loss(weight, x) for x in inputs]
    assert_near(torch.vmap(loss, (None, 0))(weight, inputs), torch.stack(singles), 1e-6)
    grads = torch.vmap(torch.func.grad(loss), (None, 0))(weight, inputs)
    for x, actual in zip(inputs, grads, strict=True):
        leaf = weight.clone().requires_grad_()
        assert_near(actual, torch.autograd.grad(loss(leaf, x), leaf)[0], 1e-5)


def test_func_grad_vjp_and_jacrev_are_autograds(backend: str) -> None:
    weight, u, v = torch.randn(3, 4), torch.randn(3), torch.randn(4)
    cotangent, leaf = torch.randn(3, 4), weight.clone().requires_grad_()

    def function(weight: Tensor) -> Tensor:
        return normalize_one(weight, u, v)[0]

    expected = torch.autograd.grad(function(leaf), leaf, cotangent)[0]
    assert_near(torch.func.grad(lambda w: (function(w) * cotangent).sum())(weight), expected, 1e-6)
    assert_near(torch.func.vjp(function, weight)[1](cotangent)[0], expected, 1e-6)
    jacobian = torch.func.jacrev(function)(weight)
    assert_near(torch.einsum("ij,ijkl->kl", cotangent, jacobian), expected, 1e-5)
