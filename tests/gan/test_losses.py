"""Losses against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastsn.gan.nets.losses import LOSSES, gradient_penalty

REAL, FAKE = [2.0, 0.5, -1.0], [-2.0, 0.25, 3.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


CROSS_ENTROPY = mean([-math.log(sigmoid(r)) for r in REAL]) + mean(
    [-math.log(1 - sigmoid(f)) for f in FAKE]
)
CLOSED = {
    # max(0, 1 - r) is 0, 0.5, 2 and max(0, 1 + f) is 0, 1.25, 4
    "hinge": (2.5 / 3 + 5.25 / 3, -1.25 / 3),
    "vanilla": (CROSS_ENTROPY, mean([-math.log(sigmoid(f)) for f in FAKE])),
    "vanilla_saturating": (CROSS_ENTROPY, mean([math.log(1 - sigmoid(f)) for f in FAKE])),
    "wgan": (1.25 / 3 - 1.5 / 3, -1.25 / 3),
}


def scores(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None].requires_grad_(True)


def test_every_loss_is_tested() -> None:
    assert set(CLOSED) == set(LOSSES)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name: str) -> None:
    expected_d, expected_g = CLOSED[name]
    loss = LOSSES[name]
    assert loss.discriminator(scores(REAL), scores(FAKE)).item() == pytest.approx(expected_d)
    assert loss.generator(scores(FAKE)).item() == pytest.approx(expected_g)


@pytest.mark.parametrize("name", LOSSES)
def test_discriminator_and_generator_pull_opposite_ways(name: str) -> None:
    real, fake = scores([0.1, -0.2]), scores([0.3, -0.1])
    LOSSES[name].discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake = scores([0.3, -0.1])
    LOSSES[name].generator(fake).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scores_give_no_nan(name: str) -> None:
    real, fake = scores([1e4, -1e4]), scores([1e4, -1e4])
    total = LOSSES[name].discriminator(real, fake) + LOSSES[name].generator(fake)
    total.backward()
    assert all(t.isfinite().all() for t in (total, real.grad, fake.grad))


def test_saturating_and_not_differ_where_fakes_are_found_out() -> None:
    found = scores([-20.0])
    (weak,) = torch.autograd.grad(LOSSES["vanilla_saturating"].generator(found), found)
    (strong,) = torch.autograd.grad(LOSSES["vanilla"].generator(found), found)
    assert weak.abs() < 1e-8 and strong == pytest.approx(-1)


# Gradient penalty


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.numel(), 1, bias=False)
    layer.weight = nn.Parameter(weight[None])
    return layer


@pytest.mark.parametrize(("unit", "norm"), [(1.0, 5.0), (2.0, 10.0)])
def test_penalty_of_a_linear_function(unit: float, norm: float) -> None:
    discriminator = linear(torch.tensor([3.0, 4.0]))
    real, fake = torch.randn(6, 2), torch.randn(6, 2)
    penalty = gradient_penalty(discriminator, real, fake, torch.Generator(), unit=unit)
    assert penalty.item() == pytest.approx((norm - 1) ** 2)
    penalty.backward()
    # d/dw (k |w| - 1)^2 = 2 (k |w| - 1) k w / |w|
    expected = 2 * (norm - 1) * unit * torch.tensor([[3.0, 4.0]]) / 5
    torch.testing.assert_close(discriminator.weight.grad, expected)


def test_penalty_is_taken_between_real_and_fake() -> None:
    points: list[Tensor] = []

    def discriminator(x: Tensor) -> Tensor:
        points.append(x.detach())
        return x.square().sum((1, 2, 3))[:, None]

    real, fake = torch.zeros(500, 1, 2, 2), torch.ones(500, 1, 2, 2)
    penalty = gradient_penalty(discriminator, real, fake, torch.Generator().manual_seed(0))
    (x,) = points
    alpha = x[:, 0, 0, 0]
    torch.testing.assert_close(x, alpha[:, None, None, None].expand_as(x))  # one per image
    assert 0 <= alpha.min() < 0.05 and 0.95 < alpha.max() <= 1
    assert abs(alpha.mean() - 0.5) < 0.07
    torch.testing.assert_close(penalty, (4 * alpha - 1).square().mean())  # |2 x| = 4 alpha


def test_penalty_is_repeatable_and_finite_where_the_gradient_is_zero() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    real, fake = torch.randn(4, 3), torch.randn(4, 3)
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (gradient_penalty(network, real, fake, g).item() for g in draws)
    assert first == again != other
    zero = linear(torch.zeros(3))
    penalty = gradient_penalty(zero, real, fake, torch.Generator())
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-3)
    assert zero.weight.grad.isfinite().all()


def test_penalty_refuses_batches_that_differ() -> None:
    with pytest.raises(ValueError, match=r"shape of real \(4, 3\), got \(2, 3\)"):
        gradient_penalty(nn.Linear(3, 1), torch.zeros(4, 3), torch.zeros(2, 3), torch.Generator())
