"""``update="step"``: which weights are taken for unchanged, and that nothing stale is used."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import equal, images, originals, small_cnn, vectors
from torch import Tensor, nn
from torch.func import functional_call

import fastsn
from fastsn import forward, step
from fastsn.step import Sight

pytestmark = pytest.mark.usefixtures("backend")

GROUPED = pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "alone"])


def make(grouped: bool = True) -> nn.Sequential:
    model = small_cnn()
    group = fastsn.apply(model, "bssn", update="step")
    if not grouped:
        group.detach()
    return model


def fresh_output(model: nn.Module, x: Tensor) -> Tensor:
    """What the model gives at its present vectors, with nothing recorded."""
    return copy.deepcopy(model).eval()(x)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@GROUPED
def test_temporary_weights_at_one_address(grouped: bool) -> None:
    """MAML's fast weights: each is freed before the next is made, often at the same address."""
    model = make(grouped)
    x = images()
    for i in range(1, 20):
        weights = {k: (v * (1 + i / 7)).detach() for k, v in model.named_parameters()}
        weights = {k: v + 0.01 * torch.randn_like(v) for k, v in weights.items()}
        out = functional_call(model, weights, (x,))
        model.eval()
        torch.testing.assert_close(out, functional_call(model, weights, (x,)))
        model.train()
        del weights
        gc.collect()


@GROUPED
def test_aliases_with_a_counter_of_their_own(grouped: bool) -> None:
    """``weight.data`` is a new tensor each time, with version 0: nothing tells of a change."""
    model = make(grouped)
    x = images()
    for _ in range(5):
        weights = {k: v.data for k, v in model.named_parameters()}
        out = functional_call(model, weights, (x,))
        model.eval()
        torch.testing.assert_close(out, functional_call(model, weights, (x,)))
        model.train()
        with torch.no_grad():
            for weight in originals(model):
                weight.add_(torch.randn_like(weight))


@GROUPED
def test_maml_inner_steps_have_gradients_of_gradients(grouped: bool) -> None:
    model = make(grouped).double()
    x = images().double()
    parameters = dict(model.named_parameters())

    def adapted(model: nn.Module) -> Tensor:
        loss = functional_call(model, parameters, (x,)).square().mean()
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        fast = {k: v - 0.1 * g for (k, v), g in zip(parameters.items(), grads, strict=True)}
        return functional_call(model, fast, (x,)).square().mean()

    model.eval()
    weight = originals(model)[1]
    (grad,) = torch.autograd.grad(adapted(model), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(1e-6 * direction)
    plus = adapted(model).detach()
    with torch.no_grad():
        weight.sub_(2e-6 * direction)
    minus = adapted(model).detach()
    slope = (plus - minus) / 2e-6
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=1e-9)


@GROUPED
@pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_fused_optimizer_on_a_copy(make_copy: Callable[..., Any], grouped: bool) -> None:
    original = make(grouped)
    original(images())
    model = make_copy(original)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    x = images()
    for _ in range(3):
        model(x).square().sum().backward()
        before = vectors(model)
        optimizer.step()
        out = model(x)
        assert not equal(before, vectors(model))
        torch.testing.assert_close(out, fresh_output(model, x))


@GROUPED
def test_fused_optimizer_after_assign(grouped: bool) -> None:
    model = make(grouped)
    x = images()
    model(x)
    state = copy.deepcopy(model.state_dict())
    for name in state:
        if name.endswith("original"):
            state[name] = state[name] * 1.5
    model.load_state_dict(state, assign=True)
    torch.testing.assert_close(model(x), fresh_output(model, x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    model(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(model(x), fresh_output(model, x))


@GROUPED
def test_assigned_state_is_seen_without_a_version(grouped: bool) -> None:
    model = make(grouped)
    x = images()
    for scale in (1.0, 2.0, 0.5):
        state = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            state["0.parametrizations.weight.original"][0].mul_(scale)
        model.load_state_dict(state, assign=True)
        torch.testing.assert_close(model(x), fresh_output(model, x))


@GROUPED
def test_requires_grad_switched(grouped: bool) -> None:
    model = make(grouped)
    x = images()
    weight = originals(model)[0]
    for wanted in (True, False, True):
        weight.requires_grad_(wanted)
        model.zero_grad()
        model(x).sum().backward()
        assert (weight.grad is not None) == wanted


@GROUPED
def test_swapped_tensors(grouped: bool) -> None:
    """No weak reference of ours keeps torch from swapping a parameter."""
    model = make(grouped)
    x = images()
    model(x)
    weight = originals(model)[0]
    torch.utils.swap_tensors(weight, nn.Parameter(2 * weight.detach()))
    torch.testing.assert_close(model(x), fresh_output(model, x))


@GROUPED
def test_a_record_holds_no_graph_of_a_temporary_weight(grouped: bool) -> None:
    model = make(grouped)
    x = images()
    gone = weakref.ref(model)
    base = nn.Parameter(torch.ones(()))
    tensors = {k: v.detach() * base for k, v in model.named_parameters()}
    functional_call(model, tensors, (x,)).sum().backward()
    probes = [weakref.ref(tensor) for tensor in tensors.values()]
    del tensors
    gc.collect()
    assert not any(probe() is not None for probe in probes)
    del model
    gc.collect()
    assert gone() is None


@GROUPED
def test_a_normalized_weight_changed_in_place_is_not_used_again(grouped: bool) -> None:
    """torch's is a tensor of that read alone."""
    model = make(grouped)
    x = images()
    expected = model(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(model(x), expected)


class Stub:
    """What :mod:`fastsn.step` asks of CUDA, played on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capture: Any = None
        for module in (step, forward):
            monkeypatch.setattr(module, "capture_now", lambda weight: self.capture)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch)


def states(model: nn.Module) -> list[Any]:
    return [norm.state for norm in model.modules() if hasattr(norm, "vector_names")]


@GROUPED
def test_a_capture_computes_anew_once(cuda: Stub, grouped: bool) -> None:
    model = make(grouped)
    x = images()
    model(x)
    eager = states(model)[0].computed
    cuda.capture = "first"
    model(x)
    captured = states(model)[0].computed
    assert captured is not eager
    model(x)
    assert states(model)[0].computed is captured  # three forwards of one step share
    cuda.capture = "second"
    model(x)
    assert states(model)[0].computed is not captured


@GROUPED
def test_after_a_capture_nothing_eager_is_used_again(cuda: Stub, grouped: bool) -> None:
    """A replay changes weights and vectors without a trace."""
    model = make(grouped)
    x = images()
    cuda.capture = "first"
    model(x)
    cuda.capture = None
    for _ in range(3):
        out = model(x)
        torch.testing.assert_close(out, fresh_output(model, x))
        originals(model)[0].data.mul_(torch.rand(8, 1, 1, 1) + 0.5)  # as a replay does


@GROUPED
def test_an_optimizer_step_in_a_capture_is_not_trusted_either(cuda: Stub, grouped: bool) -> None:
    model = make(grouped)
    x = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()
    model(x)
    cuda.capture = "optimizer only"
    optimizer.step()
    cuda.capture = None
    for _ in range(3):
        originals(model)[0].data.mul_(torch.rand(8, 1, 1, 1) + 0.5)
        torch.testing.assert_close(model(x), fresh_output(model, x))


def test_captures_that_cannot_be_told_apart_share_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    monkeypatch.setattr(step.torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(step.native, "capture_id", lambda device: 0)

    class OnCuda:
        is_cuda, device = True, torch.device("cuda", 0)

    first, second = step.capture_now(OnCuda()), step.capture_now(OnCuda())
    assert first and second and first != second
    monkeypatch.setattr(step.native, "capture_id", lambda device: 7)
    assert step.capture_now(OnCuda()) == step.capture_now(OnCuda()) == 7
    assert step.capture_now(weight) is None


class FakeStream:
    def __init__(self) -> None:
        self.waited: list[Any] = []

    def record_event(self) -> str:
        return "event"

    def wait_event(self, event: Any) -> None:
        self.waited.append(event)


def test_a_second_stream_waits_for_what_the_first_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make()
    model(images())
    computed = states(model)[0].computed
    first, second = FakeStream(), FakeStream()
    computed.ready = first, first.record_event()
    recorded: list[Tensor] = []
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: recorded.append(self))
    for stream, events in ((first, []), (second, ["event"])):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, now=stream: now)
        forward._wait_for([computed])
        assert stream.waited == events
    assert len(recorded) == len(computed.numbers.weights_sn) + 3


def test_a_sight_notices_what_versions_do_not_show() -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    sight = step.look(weight, None)
    assert isinstance(sight, Sight) and sight.shows(weight, None)
    assert not sight.shows(nn.Parameter(weight.data), None)  # another counter
    assert sight.shows(weight.detach(), None, itself=False)
    weight.data = weight.data.reshape(3, 4)
    assert not sight.shows(weight, None)


def test_weights_that_cannot_be_recognized_are_computed_each_time() -> None:
    with torch.inference_mode():
        model = make()
    x = images()
    with torch.inference_mode():
        for _ in range(3):
            out = model(x)
            model.eval()
            torch.testing.assert_close(out, model(x))
            model.train()
            originals(model)[0].mul_(torch.rand(8, 1, 1, 1) + 0.5)
