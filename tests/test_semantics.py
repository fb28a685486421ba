"""What a training step sees: when vectors advance, and which weights backward uses."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from models import equal, images, norms, originals, small_cnn, vectors
from torch import nn

import fastsn

METHODS = ["sn", "bssn"]
UPDATES = ["forward", "step"]


def grouped(method: str = "bssn", update: str = "forward") -> tuple[nn.Sequential, object]:
    model = small_cnn()
    return model, fastsn.apply(model, method, update=update)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("method", METHODS)
def test_two_forwards_one_backward(method: str, update: str) -> None:
    model, _ = grouped(method, update)
    real, fake = images(), images()
    (model(real).mean() - model(fake).mean()).backward()
    together = [w.grad.clone() for w in originals(model)]
    assert all(g.abs().sum() > 0 for g in together)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("method", METHODS)
def test_two_forwards_two_backwards_add_up(method: str, update: str) -> None:
    model, _ = grouped(method, update)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    real, fake = images(), images()
    (model(real).mean() - model(fake).mean()).backward()
    together = [w.grad.clone() for w in originals(model)]
    model.load_state_dict(start)
    model.zero_grad()
    first, second = model(real).mean(), -model(fake).mean()
    first.backward()
    second.backward()
    for one, two in zip(together, (w.grad for w in originals(model)), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("update", UPDATES)
def test_optimizer_step_between_forward_and_backward(update: str) -> None:
    """Gradients are those at the weights of the forward (torch's own norm raises an error here)."""
    model, _ = grouped(update=update)
    x = images()
    loss = model(x).square().mean()
    expected = torch.autograd.grad(loss, originals(model), retain_graph=True)
    # The layers' own backward needs inputs and normalized weights, which no optimizer touches.
    with torch.no_grad():
        for weight in originals(model):
            weight.add_(torch.randn_like(weight))
    loss.backward()
    for weight, grad in zip(originals(model), expected, strict=True):
        assert torch.equal(weight.grad, grad)


def test_another_forward_between_forward_and_backward() -> None:
    model, _ = grouped()
    x = images()
    loss = model(x).square().mean()
    expected = torch.autograd.grad(loss, originals(model), retain_graph=True)
    model(images())
    for grad, again in zip(expected, torch.autograd.grad(loss, originals(model)), strict=True):
        assert torch.equal(grad, again)


def test_training_forward_advances_once_per_forward() -> None:
    """Each training forward of a group iterates as one access of torch's norm does."""
    from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

    torch.manual_seed(0)
    model = small_cnn()
    fastsn.apply(model, "sn")
    torch.manual_seed(0)
    peer = small_cnn()
    for i in (0, 2, 4, 7):
        torch_spectral_norm(peer[i])
    peer.load_state_dict(model.state_dict())
    x = images()
    for _ in range(4):
        torch.testing.assert_close(model(x), peer(x))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, peer.state_dict()[key])


@pytest.mark.parametrize("update", UPDATES)
def test_evaluation_never_advances(update: str) -> None:
    model, group = grouped(update=update)
    model.eval()
    before = vectors(model)
    for _ in range(3):
        model(images())
        model[0].weight.sum()
        group.sigmas()
    assert equal(before, vectors(model))


def test_evaluation_before_training_is_normalized() -> None:
    """Vectors are warm from registration on: the first evaluation is not far off."""
    model = nn.Sequential(nn.Linear(40, 30))
    nn.init.normal_(model[0].weight, std=50.0)
    fastsn.apply(model, "sn")
    model.eval()
    sigma = torch.linalg.matrix_norm(model[0].weight.detach(), 2)
    assert 0.9 < float(sigma) < 1.15


def test_evaluation_sees_changed_weights() -> None:
    """Evaluation recomputes sigma from the stored vectors: nothing can go stale."""
    model, _ = grouped("sn")
    model.eval()
    x = images()
    before = model(x)
    with torch.no_grad():
        originals(model)[0].mul_(3.0)
    torch.testing.assert_close(model(x), before)  # sigma tripled as well
    with torch.no_grad():
        originals(model)[0][0].mul_(3.0)
    assert not torch.allclose(model(x), before)


def test_step_mode_advances_once_per_change() -> None:
    model, _ = grouped(update="step")
    x = images()
    model(x)
    after_first = vectors(model)
    model(x)
    model(x)
    assert equal(after_first, vectors(model))
    with torch.no_grad():
        for weight in originals(model):
            weight.add_(0.01)
    model(x)
    advanced = vectors(model)
    assert not any(torch.equal(a, b) for a, b in zip(after_first, advanced, strict=True)
                   if a.numel() > 1)  # fmt: skip
    model(x)
    assert equal(advanced, vectors(model))


class Uncounted(torch.optim.Optimizer):
    """One whose kernels leave the version counters alone, as some libraries' do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.1)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adam, fused=True),
        partial(torch.optim.SGD, lr=0.1, fused=True),
        partial(torch.optim.Adam, foreach=True),
        Uncounted,
    ],
)
def test_step_mode_sees_every_optimizer_step(make: Any) -> None:
    model, _ = grouped(update="step")
    optimizer, x = make(model.parameters()), images()
    model(x).square().sum().backward()
    before = vectors(model)
    optimizer.step()
    output = model(x)
    assert not any(torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True)
                   if a.numel() > 1)  # fmt: skip
    fresh = copy.deepcopy(model).eval()  # nothing recorded, and the same vectors
    torch.testing.assert_close(output, fresh(x))
    optimizer.zero_grad()
    after = vectors(model)
    optimizer.step()  # without gradients it changes nothing
    model(x)
    assert equal(after, vectors(model))


def test_step_mode_shares_sigma_and_weight_between_forwards() -> None:
    """Frozen forwards with separate backward calls: each forward has its own autograd node."""
    model, _ = grouped(update="step")
    seen = []
    model[0].register_forward_hook(lambda layer, args, out: seen.append(layer.weight))
    real, fake = model(images()).mean(), model(images()).mean()
    assert seen[0].data_ptr() == seen[1].data_ptr()
    real.backward()
    fake.backward()
    with torch.no_grad():
        model(images())
    assert seen[2].data_ptr() == seen[0].data_ptr()
    assert not seen[2].requires_grad


def test_step_mode_matches_forward_mode_at_equal_vectors() -> None:
    """The first forward after a change computes what update="forward" does."""
    torch.manual_seed(0)
    stepping, _ = grouped(update="step")
    torch.manual_seed(0)
    plain, _ = grouped(update="forward")
    plain.load_state_dict(stepping.state_dict())
    x = images()
    out_a, out_b = stepping(x), plain(x)
    torch.testing.assert_close(out_a, out_b, rtol=0, atol=0)
    grads_a = torch.autograd.grad(out_a.sum(), originals(stepping))
    grads_b = torch.autograd.grad(out_b.sum(), originals(plain))
    assert equal(list(grads_a), list(grads_b))


def test_step_mode_double_backward() -> None:
    """Second derivatives flow through sigma in recorded forwards too."""
    torch.manual_seed(0)
    layers = {}
    for update in UPDATES:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(3, 4, 3)).double()
        fastsn.apply(model, "bssn", update=update)
        x = torch.ones(1, 3, 5, dtype=torch.double)
        model(x)  # in step mode the forward below is a recorded one ...
        model.eval() if update == "forward" else None  # ... and evaluates at the same vectors
        weight = originals(model)[0]
        (grad,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        (layers[update],) = torch.autograd.grad(grad.square().sum(), weight)
    torch.testing.assert_close(layers["step"], layers["forward"])


def test_step_mode_group_update_makes_a_data_write_known() -> None:
    model, group = grouped(update="step")
    x = images()
    before = model(x)
    originals(model)[0].data[0].mul_(5.0)
    assert torch.equal(model(x), before)  # documented: not seen
    group.update()
    assert not torch.allclose(model(x), before)


def test_step_mode_follows_a_learned_scale() -> None:
    model = small_cnn()
    gamma = nn.Parameter(torch.tensor(1.0))
    fastsn.apply(model, "ssn", scale=gamma, update="step")
    x = images()
    before, warm = model(x), vectors(model)
    with torch.no_grad():
        gamma.mul_(2.0)
    after = model(x)
    assert not torch.allclose(before, after)
    assert equal(warm, vectors(model))  # only the weights' changes advance the vectors
    after.sum().backward()
    assert gamma.grad is not None and gamma.grad != 0


def test_frozen_shares_one_weight_and_advances_nothing() -> None:
    model, group = grouped()
    model.eval()
    x = images()
    expected, before = model(x), vectors(model)
    with group.frozen():
        first = model[0].weight
        assert torch.equal(model(x), expected)
        assert model[0].weight is first
        with torch.no_grad():
            originals(model)[0].zero_()
        assert torch.equal(model(x), expected)
    assert not torch.allclose(model(x), expected)
    assert equal(before, vectors(model))


def test_frozen_ends_after_an_exception_and_restores_training() -> None:
    model, group = grouped()
    with pytest.raises(KeyError), group.frozen():
        raise KeyError
    before = vectors(model)
    model(images())
    assert not equal(before, vectors(model))
    assert all(norm.training for norm in norms(model))


def test_zero_weight_gives_zero_and_safe_gradients() -> None:
    model, _ = grouped()
    with torch.no_grad():
        originals(model)[0].zero_()
    before = vectors(model)[:4]
    out = model(images())
    assert torch.equal(model[0].weight, torch.zeros_like(model[0].weight))
    out.sum().backward()
    assert all(torch.isfinite(w.grad).all() for w in originals(model))
    assert torch.equal(originals(model)[0].grad, torch.zeros_like(originals(model)[0]))
    assert equal(before, vectors(model)[:4])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_step_recovers(update: str, bad: float) -> None:
    model, _ = grouped(update=update)
    x = images()
    good_weight, before = originals(model)[2].detach().clone(), vectors(model)
    with torch.no_grad():
        originals(model)[2].view(-1)[3] = bad
    assert not torch.isfinite(model(x)).all()
    first = len(model[0].parametrizations.weight[0].vectors()) * 2 * 2
    assert equal(before[first : first + 4], vectors(model)[first : first + 4])
    with torch.no_grad():
        originals(model)[2].copy_(good_weight)
    assert torch.isfinite(model(x)).all()


def test_sigma_does_not_depend_on_the_length_of_the_vectors() -> None:
    model, group = grouped()
    model.eval()
    x = images()
    expected, sigmas = model(x), group.sigmas()
    for i, norm in enumerate(norms(model)):
        for u, v in norm.vectors():
            u.mul_(0.5 + i)
            v.mul_(1e-3)
    torch.testing.assert_close(model(x), expected)
    for name, sigma in group.sigmas().items():
        torch.testing.assert_close(sigma, sigmas[name])


def test_a_weight_read_twice_in_one_forward_is_the_same_tensor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.layer.weight, self.layer.weight
            return self.layer(self.layer(x))

    model = Twice()
    fastsn.apply(model, "sn")
    model(torch.randn(2, 5)).sum().backward()
    assert model.seen[0] is model.seen[1]


def test_repeated_runs_give_the_same_bits() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model, _ = grouped()
        x = images()
        for _ in range(3):
            model.zero_grad()
            out = model(x)
            out.sum().backward()
        results.append([out.detach(), *vectors(model), *(w.grad for w in originals(model))])
    assert equal(*results)
