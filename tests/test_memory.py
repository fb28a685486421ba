"""Memory of results that is used again: only what nobody holds, in every way of holding it."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsn
from fastsn.memory import LARGE, Memory


def model(method: str = "sn") -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.Conv2d(40, 30, 3), nn.Flatten(), nn.Linear(480, 20)
    )
    fastsn.apply(layers, method)
    return layers


def weights(layers: nn.Module) -> list[Tensor]:
    """The normalized weights of one forward."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
        for layer in (layers[0], layers[1], layers[3])
    ]
    layers(torch.ones(1, 3, 8, 8))
    for hook in hooks:
        hook.remove()
    return seen


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def large(tensors: list[Tensor]) -> set[int]:
    return {storage(tensor) for tensor in tensors if tensor.nbytes >= LARGE}


@pytest.fixture(autouse=True)
def _cpu_backend() -> Any:
    from fastsn.backends import explain

    if reasons := explain(torch.device("cpu"))["cpu"]:
        pytest.skip("; ".join(reasons))
    with fastsn.use_backend("cpu"):
        yield


def test_what_nobody_holds_is_used_again() -> None:
    layers = model()
    first = large(weights(layers))
    assert len(first) == 2
    assert large(weights(layers)) == first


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda w: w,
    "a view": lambda w: w[:1, 1:2],
    "a detached alias": lambda w: w.detach(),
    "its storage": lambda w: w.untyped_storage(),
    "a numpy array": lambda w: w.detach().numpy(),
    "a buffer of its bytes": lambda w: memoryview(w.detach().numpy()),
    "dlpack": lambda w: torch.from_dlpack(w.detach()),
    "a saved tensor": lambda w: (torch.ones_like(w, requires_grad=True) * w).sum(),
    "a graph": lambda w: w.exp().sum(),
    "shared with other processes": lambda w: (w.detach().share_memory_(), None)[1],
}


@pytest.mark.parametrize("method", ["sn", "bsn"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_somebody_holds_is_left_alone(holder: str, method: str) -> None:
    layers = model(method)
    seen = weights(layers)
    before = seen[1].detach().clone()
    held = HOLDERS[holder](seen[1])
    place = storage(seen[1])
    del seen
    for _ in range(4):
        assert place not in large(weights(layers))
        if holder in ("itself", "a detached alias", "a numpy array", "dlpack"):
            assert torch.equal(torch.as_tensor(held).detach(), before)


def test_memory_that_was_given_up_is_not_used_again() -> None:
    layers = model()
    seen = weights(layers)
    wanted = [weight.detach().clone() for weight in seen]
    seen[1].untyped_storage().resize_(0)
    del seen
    layers.eval()
    assert [weight.shape for weight in weights(layers)] == [weight.shape for weight in wanted]
    for got, weight in zip(weights(layers), wanted, strict=True):
        assert torch.allclose(got, weight, rtol=1e-3)


def test_results_of_every_order_of_holding_and_freeing_stay_as_they_were() -> None:
    """Up to four forwards live at once, dropped in every order, with poison in what is free."""
    for order in permutations(range(4)):
        layers = model()
        live: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for i in range(4):
            seen = weights(layers)
            live[i] = seen, [weight.detach().clone() for weight in seen]
        for i in order:
            del live[i]
            fresh = weights(layers)
            with torch.no_grad():
                for weight in fresh:
                    weight.detach().fill_(float("nan"))
            del fresh
            for seen, wanted in live.values():
                assert all(map(torch.equal, seen, wanted))
        assert not live


def train(layers: nn.Module, steps: int, *, keep: bool) -> list[list[Tensor]]:
    """Steps of two forwards and one backward, with gradients added up where ``keep``."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    course = []
    for step in range(steps):
        if not keep or step % 3 == 0:
            optimizer.zero_grad()
        real, fake = layers(torch.randn(2, 3, 8, 8)), layers(torch.randn(2, 3, 8, 8))
        (fake.mean() - real.square().mean()).backward()
        course.append([parameter.grad.clone() for parameter in layers.parameters()])
        optimizer.step()
    return course


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("method", ["sn", "bsn"])
def test_training_gives_the_same_bits_as_without(method: str, keep: bool) -> None:
    layers = model(method)
    other = copy.deepcopy(layers)
    got = train(layers, 7, keep=keep)
    plain = Memory.take
    try:
        Memory.take = lambda *_: []  # type: ignore[method-assign]
        wanted = train(other, 7, keep=keep)
    finally:
        Memory.take = plain  # type: ignore[method-assign]
    for ours, theirs in zip(got, wanted, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_gradients_that_autograd_takes_over_are_left_alone() -> None:
    layers = model()
    layers(torch.ones(1, 3, 8, 8)).sum().backward()
    held = [layer.parametrizations.weight.original.grad for layer in (layers[0], layers[3])]
    before = [gradient.clone() for gradient in held]
    for parameter in layers.parameters():
        parameter.grad = None
    for _ in range(3):
        layers(torch.ones(1, 3, 8, 8)).square().sum().backward()
    assert all(map(torch.equal, held, before))


def test_threads_never_share_what_one_of_them_holds() -> None:
    layers = model().eval()
    wanted = [weight.detach().clone() for weight in weights(layers)]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(60):
            with torch.no_grad():
                seen = [layer.weight for layer in (layers[0], layers[1], layers[3])]
                if not all(map(torch.equal, seen, wanted)):
                    wrong.append("another's numbers")
                for weight in seen:
                    weight.fill_(float("nan"))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_small_results_are_left_to_the_allocator() -> None:
    memory = Memory([5, LARGE // 4, 3, 2 * LARGE])
    assert [len(each) for each in memory.take("weights_sn", torch.float32)] == [
        LARGE // 4,
        2 * LARGE,
    ]
    assert [len(each) for each in memory.take("weights_sn", torch.float16)] == [2 * LARGE]


def test_no_more_than_two_of_a_kind_are_kept_and_all_are_given_back() -> None:
    memory = Memory([LARGE])
    taken = [memory.take(kind, torch.float64)[0] for kind in ("weights_sn", "gradients") * 5]
    assert len({storage(tensor) for tensor in taken}) == 10
    assert [len(pieces) for kept in memory._pieces.values() for _, pieces in kept] == [2, 2]
    memory.release()
    assert not memory._pieces


def test_a_group_gives_memory_back() -> None:
    layers = model()
    seen = weights(layers)
    before = [weight.detach().clone() for weight in seen]
    fastsn.group_of(layers).release_memory()
    assert not large(seen) & large(weights(layers))
    assert all(map(torch.equal, seen, before))


def test_memory_dies_with_its_layers() -> None:
    layers = model()
    weights(layers)
    memory = weakref.ref(fastsn.group_of(layers)._batches[0][0].plan.memory)
    assert memory() is not None
    del layers
    gc.collect()
    assert memory() is None


def test_inference_mode_and_training_have_results_of_their_own_kinds() -> None:
    layers = model()
    with torch.inference_mode():
        assert all(weight.is_inference() for weight in weights(layers))
    seen = weights(layers)
    assert not any(weight.is_inference() for weight in seen)
    seen[0].sum().backward()


def test_a_folded_model_keeps_no_more_than_its_weights() -> None:
    layers = fastsn.fold(model())
    for parameter in layers.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
