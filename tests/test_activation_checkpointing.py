"""Recomputed forwards: the gradients of the forward that was, and nothing is advanced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import originals, vectors
from settings import UPDATES, in_all_settings, torch_norms
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

import fastsn

pytestmark = pytest.mark.usefixtures("backend")

REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


class Blocks(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.Linear(6, 1)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.call(block, x)
        return self.last(x)


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def checkpointed(reentrant: bool) -> Callable[..., Tensor]:
    return lambda block, x: checkpoint(block, x, use_reentrant=reentrant)


def nested(reentrant: bool) -> Callable[..., Tensor]:
    def inner(block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=reentrant)

    return lambda block, x: checkpoint(inner, block, x, use_reentrant=reentrant)


def make(call: Callable[..., Tensor], update: str, grouped: bool) -> tuple[nn.Module, nn.Module]:
    """A model that calls its blocks by ``call``, and the same one without checkpointing."""
    model = Blocks(call).double()
    group = fastsn.apply(model, "bssn", update=update)
    plain = copy.deepcopy(model)
    plain.call = plainly
    if not grouped:
        group.detach()
        fastsn.group_of(plain).detach()
    return model, plain


def assert_same(model: nn.Module, plain: nn.Module) -> None:
    for one, other in zip(originals(model), originals(plain), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    for one, other in zip(vectors(model), vectors(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def images() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, requires_grad=True)


@REENTRANT
@in_all_settings
@pytest.mark.parametrize("make_call", [checkpointed, nested])
def test_checkpointed_blocks(make_call: Any, reentrant: bool, update: str, grouped: bool) -> None:
    model, plain = make(make_call(reentrant), update, grouped)
    for _ in range(3):
        x = images()
        out, expected = model(x), plain(x)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        out.sum().backward()
        expected.sum().backward()
        assert_same(model, plain)
        with torch.no_grad():
            for each in (model, plain):
                for weight in originals(each):
                    weight.mul_(1.01)


@REENTRANT
@in_all_settings
def test_the_whole_model_checkpointed(reentrant: bool, update: str, grouped: bool) -> None:
    model, plain = make(plainly, update, grouped)
    for _ in range(3):
        x = images()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        plain(x).sum().backward()
        assert_same(model, plain)


@REENTRANT
@in_all_settings
def test_two_live_forwards(reentrant: bool, update: str, grouped: bool) -> None:
    """As in a GAN: real and fake, then one backward; each recomputation finds its own weights."""
    model, plain = make(checkpointed(reentrant), update, grouped)
    real, fake = images(), images()
    (model(real).sum() - model(fake).square().sum()).backward()
    (plain(real).sum() - plain(fake).square().sum()).backward()
    assert_same(model, plain)


@in_all_settings
def test_forwards_recomputed_in_another_order(update: str, grouped: bool) -> None:
    model, plain = make(checkpointed(False), update, grouped)
    real, fake = images(), images()
    for each in (model, plain):
        first, second = each(real).sum(), each(fake).square().sum()
        second.backward()
        first.backward(retain_graph=True)
        first.backward()
    assert_same(model, plain)


@REENTRANT
@in_all_settings
def test_the_weight_changes_between_forward_and_backward(
    reentrant: bool, update: str, grouped: bool
) -> None:
    model, plain = make(checkpointed(reentrant), update, grouped)
    x = images()
    out, expected = model(x), plain(x)
    with torch.no_grad():
        for each in (model, plain):
            for weight in originals(each):
                weight.add_(0.1)
    out.sum().backward()
    expected.sum().backward()
    assert_same(model, plain)


@REENTRANT
@in_all_settings
def test_one_layer_read_many_times_in_a_region(reentrant: bool, update: str, grouped: bool) -> None:
    """Alone, every read advances; the recomputation repeats the reads in their order."""

    def thrice(block: nn.Module, x: Tensor) -> Tensor:
        return block(block(block(x)))

    model, plain = make(
        lambda block, x: checkpoint(thrice, block, x, use_reentrant=reentrant), update, grouped
    )
    plain.call = thrice
    x = images()
    model(x).sum().backward()
    plain(x).sum().backward()
    assert_same(model, plain)


@REENTRANT
@in_all_settings
def test_a_backward_inside_the_forward_of_the_root(
    reentrant: bool, update: str, grouped: bool
) -> None:
    class Trainer(nn.Module):
        def __init__(self, call: Callable[..., Tensor]) -> None:
            super().__init__()
            self.model = Blocks(call)

        def forward(self, x: Tensor) -> None:
            self.model(x).sum().backward()

    trainer = Trainer(checkpointed(reentrant)).double()
    group = fastsn.apply(trainer, "bssn", update=update)
    plain = copy.deepcopy(trainer)
    plain.model.call = plainly
    if not grouped:
        group.detach()
        fastsn.group_of(plain).detach()
    for _ in range(2):
        x = images()
        trainer(x), plain(x)
        assert_same(trainer, plain)


@pytest.mark.parametrize("impl", list(CheckpointImpl))
@pytest.mark.parametrize("first", ["wrap", "convert"])
@pytest.mark.parametrize("update", UPDATES)
def test_checkpoint_wrapper(impl: CheckpointImpl, first: str, update: str) -> None:
    model = torch_norms(Blocks(plainly).double())
    plain = copy.deepcopy(model)
    fastsn.convert(plain, update=update)
    if first == "convert":
        group = fastsn.convert(model, update=update)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block, checkpoint_impl=impl)
    if first == "wrap":
        group = fastsn.convert(model, update=update)
    for _ in range(3):
        x = images()
        out, expected = model(x), plain(x)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        out.sum().backward()
        expected.sum().backward()
        assert_same(model, plain)
    assert len(group) == 5


class Reversible(torch.autograd.Function):
    """Another library's checkpointing, which torch knows nothing of."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            weights = list(ctx.block.parameters())
            grads = torch.autograd.grad(ctx.block(x), [x, *weights], grad)
        return None, *grads


def reversible(block: nn.Module, x: Tensor) -> Tensor:
    return Reversible.apply(block, x, *block.parameters())


@in_all_settings
def test_checkpointing_of_another_library(update: str, grouped: bool) -> None:
    model, plain = make(reversible, update, grouped)
    for _ in range(3):
        x = images()
        model(x).sum().backward()
        plain(x).sum().backward()
        assert_same(model, plain)


@pytest.mark.parametrize("grouped", [True, False])
def test_ambiguous_recomputation_is_an_error(grouped: bool) -> None:
    model, _ = make(reversible, "forward", grouped)
    real, fake = images(), images()
    loss = model(real).sum() - model(fake).sum()
    with pytest.raises(RuntimeError, match=r'torch.utils.checkpoint.*update="step"'):
        loss.backward()


@pytest.mark.parametrize("grouped", [True, False])
def test_two_live_forwards_of_another_library_in_steps(grouped: bool) -> None:
    model, plain = make(reversible, "step", grouped)
    real, fake = images(), images()
    (model(real).sum() - model(fake).sum()).backward()
    (plain(real).sum() - plain(fake).sum()).backward()
    assert_same(model, plain)


def test_a_hook_that_looks_at_weights_in_backward_changes_nothing() -> None:
    model, plain = make(plainly, "forward", True)

    def look(grad: Tensor) -> None:
        with torch.no_grad():
            model.last.weight.norm()

    x = images()
    out = model(x)
    model(images())
    plain(x), plain(images())
    out.register_hook(look)
    out.sum().backward()
    for one, other in zip(vectors(model), vectors(plain), strict=True):
        torch.testing.assert_close(one, other)


@REENTRANT
def test_conv_spectral_norm_in_a_checkpointed_block(reentrant: bool) -> None:
    conv = fastsn.conv_spectral_norm(nn.Conv2d(2, 3, 3), input_shape=(6, 6)).double()
    plain = copy.deepcopy(conv)
    x, y = (torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = sum(checkpoint(conv, z, use_reentrant=reentrant).square().sum() for z in (x, y))
    loss.backward()
    sum(plain(z).square().sum() for z in (x, y)).backward()
    for one, other in zip(conv.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    for one, other in zip(conv.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
