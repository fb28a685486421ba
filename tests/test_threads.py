"""A result belongs to the thread and the call that computed it, whatever ends the call."""

from __future__ import annotations

import copy
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from models import images, originals, small_cnn, vectors
from settings import in_all_settings
from torch import Tensor, nn

import fastsn
from fastsn import forward, group
from fastsn.frames import current

pytestmark = pytest.mark.usefixtures("backend")


def make(update: str, grouped: bool) -> nn.Sequential:
    model = small_cnn()
    group = fastsn.apply(model, "bssn", update=update)
    if not grouped:
        group.detach()
    return model


@pytest.fixture
def _often_switched() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(*tasks: Callable[[], Any]) -> list[Any]:
    """Results of the tasks, all begun at once, each in its own thread."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


@in_all_settings
@pytest.mark.usefixtures("_often_switched")
def test_threads_that_evaluate_keep_nothing(update: str, grouped: bool) -> None:
    model = make(update, grouped).eval()
    x = images()
    expected = model(x)
    outputs = in_threads(*[lambda: [model(x) for _ in range(20)]] * 8)
    assert all(torch.equal(out, expected) for each in outputs for out in each)
    other = make(update, grouped)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), other.eval()(x), rtol=0, atol=0)


class Interrupts(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error: type[BaseException] | None = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return x


@in_all_settings
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
def test_whatever_ends_a_forward_ends_its_results(
    error: type[BaseException], update: str, grouped: bool
) -> None:
    model = nn.Sequential(nn.Linear(6, 5), Interrupts(error), nn.Linear(5, 4))
    group = fastsn.apply(model, "bssn", update=update)
    if not grouped:
        group.detach()
    model.eval()
    x = torch.randn(3, 6)
    with pytest.raises(error):
        model(x)
    assert current() is None
    model[1].error = None
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(6, 5), nn.Identity(), nn.Linear(5, 4))
    fastsn.apply(other, "bssn")
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), other.eval()(x), rtol=0, atol=0)
    assert not torch.equal(originals(model)[0], model[0].weight)


def test_an_interrupt_while_a_frame_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_cnn()
    fastsn.apply(model, "bssn")
    really = group.open_frame

    def interrupted(frame: Any) -> None:
        really(frame)
        if frame is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(group, "open_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(images())
    assert current() is None
    with pytest.raises(KeyboardInterrupt), fastsn.group_of(model).frozen():
        pass
    assert current() is None


@in_all_settings
@pytest.mark.usefixtures("_often_switched")
def test_a_thread_without_gradients_beside_one_that_trains(update: str, grouped: bool) -> None:
    model = make(update, grouped)
    model.eval()  # so that the vectors stand still and every thread's numbers are known
    x = images()
    (expected,) = torch.autograd.grad(model(x).sum(), originals(model)[:1])
    done = threading.Event()

    def watch() -> None:
        with torch.no_grad():
            while not done.is_set():
                assert not model(x).requires_grad

    def train() -> None:
        try:
            for _ in range(100):
                (grad,) = torch.autograd.grad(model(x).sum(), originals(model)[:1])
                torch.testing.assert_close(grad, expected, rtol=0, atol=0)
        finally:
            done.set()

    in_threads(watch, train)


@in_all_settings
@pytest.mark.usefixtures("_often_switched")
def test_autocast_in_one_thread_is_not_seen_in_another(update: str, grouped: bool) -> None:
    model = make(update, grouped)
    model.eval()
    x = images()

    def low() -> list[torch.dtype]:
        with torch.autocast("cpu", torch.bfloat16):
            return [model(x).dtype for _ in range(20)]

    def full() -> list[torch.dtype]:
        return [model(x).dtype for _ in range(20)]

    for dtypes, expected in zip(
        in_threads(low, full), (torch.bfloat16, torch.float32), strict=True
    ):
        assert set(dtypes) == {expected}


@in_all_settings
@pytest.mark.usefixtures("_often_switched")
def test_training_threads_advance_the_vectors_one_after_another(update: str, grouped: bool) -> None:
    """No vector is ever half of one advance and half of another: all are of length one."""
    model = make(update, grouped)
    x = images()

    def train() -> None:
        for _ in range(30):
            with torch.no_grad():
                originals(model)[0].mul_(1.01)
            model(x).sum().backward()

    in_threads(train, train, train)
    for vector in vectors(model):
        torch.testing.assert_close(vector.norm(), torch.tensor(1.0))


def test_frozen_is_of_one_thread() -> None:
    """A thread that trains beside a frozen inference loop trains as without one."""
    model = small_cnn()
    group = fastsn.apply(model, "bssn")
    x = images()
    with group.frozen():
        assert not model[0].weight.requires_grad
        in_threads(lambda: model(x).sum().backward())
    assert all(weight.grad is not None for weight in originals(model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_computes_is_not_locked() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with forward._vectors_lock:
            held.set()
            done.wait()

    model = nn.Linear(3, 3)
    fastsn.spectral_norm(model)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        model.weight  # noqa: B018
        os._exit(0)
    for _ in range(1000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        status = -1
    done.set()
    thread.join()
    assert status == 0


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(60, marks=pytest.mark.endurance)], ids=["short", "a minute"]
)
@in_all_settings
@pytest.mark.usefixtures("_often_switched")
def test_stress_of_eight_threads(seconds: float, update: str, grouped: bool) -> None:
    """Evaluate, train, no_grad, autocast and load_state_dict at random, against a serial run.

    Each thread's model differs in nothing but its own training; all share one evaluated model,
    which is loaded again and again with one of two states, so every output is one of two.
    """
    shared = make(update, grouped).eval()
    states = [copy.deepcopy(make(update, grouped).state_dict()) for _ in range(2)]
    x = images()
    expected, low = [], []
    for state in states:
        shared.load_state_dict(state)
        with torch.no_grad():
            expected.append(shared(x))
            with torch.autocast("cpu", torch.bfloat16):
                low.append(shared(x))
    loading = threading.Lock()
    stop = time.monotonic() + seconds / 4

    def thread(seed: int) -> None:
        choose = random.Random(seed)
        own, twin = (copy.deepcopy(shared).train() for _ in range(2))
        own.load_state_dict(states[0])
        twin.load_state_dict(states[0])
        steps = 0
        while time.monotonic() < stop:
            action = choose.randrange(5)
            if action == 0:
                own(x).sum().backward()
                steps += 1
            else:
                with loading:  # torch's copy into a state is not one step either
                    i = choose.randrange(2)
                    shared.load_state_dict(states[i])
                    if action == 1:
                        torch.testing.assert_close(shared(x), expected[i], rtol=0, atol=0)
                    elif action == 2:
                        with torch.no_grad():
                            out = shared(x)
                        assert not out.requires_grad
                        torch.testing.assert_close(out, expected[i], rtol=0, atol=0)
                    elif action == 3:
                        with torch.autocast("cpu", torch.bfloat16):
                            torch.testing.assert_close(shared(x), low[i], rtol=0, atol=0)
            if action == 4:
                assert shared(x).requires_grad  # whichever state: no lock, so no numbers
        for _ in range(steps):
            twin(x).sum().backward()
        for one, other in zip(own.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
        for one, other in zip(vectors(own), vectors(twin), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    in_threads(*[lambda seed=seed: thread(seed) for seed in range(8)])
    assert current() is None
