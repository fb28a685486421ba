"""What a forward may do between its reads: as with torch's norm, without an error, same numbers.

Models are normalized by torch first and converted, so both sides hold the same vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from settings import UPDATES, in_all_settings, normalize, torch_norms
from torch import Tensor, nn

import fastsn
from fastsn.frames import current

pytestmark = pytest.mark.usefixtures("backend")


def critic() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))


def pair(make: Callable[[], nn.Module], update: str, grouped: bool) -> tuple[Any, Any]:
    """The model with torch's norms, and with fastsn's at the same vectors; in float64."""
    theirs = torch_norms(make().double())
    ours = normalize(copy.deepcopy(theirs), update, grouped)
    return ours, theirs


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def assert_equal_state(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, one), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=name)


class Trainer(nn.Module):
    """A whole step inside a forward, as a LightningModule's or a trainer's."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.critic = critic()
        self.fused = fused
        self.optimizer: Any = None

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        if self.optimizer is None:
            parameters = self.critic.parameters()
            self.optimizer = torch.optim.Adam(parameters, lr=0.01, fused=self.fused)
        self.optimizer.zero_grad()
        loss = -self.critic(real).mean()
        loss.backward()
        self.optimizer.step()
        second = self.critic(fake).mean()
        second.backward()
        self.optimizer.step()
        return loss.detach() + second.detach()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("grouped", [True, False])
def test_an_optimizer_step_inside_the_forward_of_the_root(fused: bool, grouped: bool) -> None:
    """Numbers are torch's: what is read after the step is computed from the new weights."""
    ours, theirs = pair(lambda: Trainer(fused), "forward", grouped)
    for _ in range(5):
        real, fake = torch.randn(2, 4, 6, dtype=torch.float64)
        close(ours(real, fake), theirs(real, fake))
    assert_equal_state(ours, theirs)


def test_an_optimizer_step_inside_the_forward_of_the_root_in_steps() -> None:
    """With ``update="step"`` a trainer as root is the discriminator called by itself."""
    inside, outside = Trainer(), Trainer()
    torch_norms(inside.double())
    outside.double().load_state_dict(inside.state_dict(), strict=False)
    outside.critic = copy.deepcopy(inside.critic)
    fastsn.convert(inside, update="step")
    fastsn.convert(outside.critic, update="step")
    for _ in range(5):
        real, fake = torch.randn(2, 4, 6, dtype=torch.float64)
        close(inside(real, fake), outside(real, fake))


class TwoBackwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.critic = critic()

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        first = self.critic(real).mean()
        first.backward()
        second = -self.critic(fake).mean()
        second.backward()
        return first.detach(), second.detach()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_two_backward_calls_inside_the_forward_of_the_root(training: bool, grouped: bool) -> None:
    ours, theirs = pair(TwoBackwards, "forward", grouped)
    ours.train(training), theirs.train(training)
    for _ in range(3):
        real, fake = torch.randn(2, 4, 6, dtype=torch.float64)
        close(ours(real, fake), theirs(real, fake))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one.grad, other.grad)
    assert_equal_state(ours, theirs)


@in_all_settings
def test_two_reads_and_two_backward_calls_after_the_forward(update: str, grouped: bool) -> None:
    """Two outputs that share no torch node but, here, our own."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = critic(), critic()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.first(x), self.second(x), self.first(2 * x)]

    ours, theirs = pair(Scales, update, grouped)
    ours.eval(), theirs.eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    for model in (ours, theirs):
        for output in model(x):
            output.mean().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one.grad, other.grad)


@in_all_settings
def test_a_kept_weight_that_was_changed_in_place_is_an_error(update: str, grouped: bool) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    wrapped = nn.Sequential(model[0])
    fastsn.apply(wrapped, "sn", update=update)
    if not grouped:
        fastsn.group_of(wrapped).detach()

    class Keep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = wrapped

        def forward(self) -> Tensor:
            return self.layers[0].weight

    root = Keep()
    group = fastsn.SpectralNormGroup(root) if grouped else None
    weight = root()
    (2 * weight).sum().backward(retain_graph=False)
    assert group is None or len(group) == 1
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified|second time|in-place"):
        (3 * weight).sum().backward()


class Island(nn.Module):
    """A part in another precision, or without gradients, than the rest."""

    def __init__(self, inner: Any, outer: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)
        self.inner, self.outer = inner, outer

    def forward(self, x: Tensor) -> Tensor:
        with self.outer():
            x = self.last(self.layer(x.to(self.layer.weight.dtype)))
            with self.inner():
                return (
                    x.float().sum() + self.last(self.layer(torch.ones(3, 6))).float().square().sum()
                )


def nothing() -> Any:
    return torch.autocast("cpu", enabled=False)


def low() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("outer", "inner"),
    [(nothing, low), (low, nothing), (low, torch.no_grad), (torch.no_grad, torch.enable_grad)],
    ids=["autocast on", "autocast off", "no_grad", "enable_grad"],
)
@pytest.mark.parametrize("update", UPDATES)
def test_precision_and_gradients_switched_inside(
    outer: Any, inner: Any, update: str, grouped: bool
) -> None:
    theirs = torch_norms(Island(inner, outer))
    ours = normalize(copy.deepcopy(theirs), update, grouped)
    ours.eval(), theirs.eval()
    x = torch.randn(3, 6)
    out, expected = ours(x), theirs(x)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    assert out.requires_grad == expected.requires_grad
    if out.requires_grad:
        out.backward(), expected.backward()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=5e-2, atol=5e-2)


@in_all_settings
def test_inference_mode_and_then_training(update: str, grouped: bool) -> None:
    ours, theirs = pair(critic, update, grouped)
    x = torch.randn(4, 6, dtype=torch.float64)
    with torch.inference_mode():
        close(ours(x).clone(), theirs(x).clone())
    for model in (ours, theirs):
        model.eval() if update == "step" else None
        model(x).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one.grad, other.grad)


@in_all_settings
def test_inference_mode_inside_a_forward(update: str, grouped: bool) -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = critic()

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                self.critic(x)
            return self.critic(x)

    ours, theirs = pair(Peeks, update, grouped)
    ours.eval(), theirs.eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    close(ours(x), theirs(x))
    ours(x).sum().backward(), theirs(x).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(one.grad, other.grad)


@pytest.mark.parametrize("update", UPDATES)
def test_frames_nested_in_frames(update: str) -> None:
    """An outer model's forward covers the inner group; the inner one used alone has its own."""
    inner = critic()
    fastsn.apply(inner, "sn", update=update)
    outer = nn.Sequential(inner, nn.Linear(1, 2))
    fastsn.apply(outer, "sn", include=["1"], update=update)
    alone = copy.deepcopy(outer)
    fastsn.group_of(alone).detach()
    fastsn.group_of(alone[0]).detach()
    x = torch.randn(3, 6)
    for _ in range(3):
        torch.testing.assert_close(outer(x), alone(x))
        torch.testing.assert_close(inner(x), alone[0](x))
    assert current() is None


@pytest.mark.parametrize("update", UPDATES)
def test_a_model_that_calls_itself(update: str) -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, depth: int = 3) -> Tensor:
            x = self.layer(x)
            return x if depth == 0 else self(torch.tanh(x), depth - 1)

    model = Recursive()
    fastsn.apply(model, "sn", update=update)
    x = torch.randn(2, 4)
    out = model(x)
    weight, bias = model.eval().layer.weight, model.layer.bias
    for depth in range(4):
        x = nn.functional.linear(x if depth == 0 else torch.tanh(x), weight, bias)
    torch.testing.assert_close(out, x)
    assert current() is None


@in_all_settings
def test_requires_grad_switched_inside(update: str, grouped: bool) -> None:
    class Freezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> list[bool]:
            held = self.layer.parametrizations.weight.original
            seen = []
            for wanted in (True, False, True):
                held.requires_grad_(wanted)
                seen.append(self.layer(x).requires_grad)
            return seen

    model = Freezes()
    group = fastsn.apply(model, "sn", update=update)
    if not grouped:
        group.detach()
    assert model(torch.randn(2, 4)) == [True, False, True]


@in_all_settings
def test_a_learned_scale_changed_inside(update: str, grouped: bool) -> None:
    class Rescales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self) -> tuple[Tensor, Tensor]:
            before = self.layer.weight.detach().clone()
            with torch.no_grad():
                self.layer.parametrizations.weight[0].scale.mul_(2)
            return before, self.layer.weight.detach()

    model = Rescales()
    group = fastsn.apply(model, "ssn", scale=nn.Parameter(torch.tensor(1.5)), update=update)
    if not grouped:
        group.detach()
    model.eval()
    before, after = model()
    torch.testing.assert_close(after, 2 * before)


@in_all_settings
def test_settings_changed_between_forwards(update: str, grouped: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    group = fastsn.apply(model, "ssn", scale=1.0, update=update)
    if not grouped:
        group.detach()
    model.eval()
    x = torch.randn(2, 4)
    model(x)
    before = model[0].weight.detach().clone()
    model[0].parametrizations.weight[0].scale = 3.0
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda layer, args, out: seen.append(layer.weight))
    model(x)
    torch.testing.assert_close(seen[0], 3 * before)
