"""Which kernels auto takes on a card: the self-test and its verdicts, with stand-ins on the CPU."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsn
from fastsn import backends as choice
from fastsn.__main__ import main
from fastsn.backends import batched, selftest, trust, verdicts
from fastsn.functional import spectral_normalize

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU as a device whose kernels must earn trust, with a cache folder of its own."""
    monkeypatch.delenv("FASTSN_BACKEND", raising=False)
    for name in ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "DEVICES", {"cpu"})
    monkeypatch.setitem(trust._TIMED, "small", (2, (8, 4, 3, 3)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    choice.forget_choices()
    yield
    choice.forget_choices()
    torch.set_num_threads(threads)


def right(*args: Any) -> Any:
    return batched.forward(*args)


def wrong_in_one_element(*args: Any) -> Any:
    results, *numbers = batched.forward(*args)
    results[6].view(torch.int32).view(-1)[77_000] += 1 << 14  # some parts in a thousand
    return results, *numbers


def wrong_vectors(*args: Any) -> Any:
    results, sigmas, vectors, stats = batched.forward(*args)
    return results, sigmas, vectors.nan_to_num(0.0).add_(1e-4), stats


def unwritten(*args: Any) -> Any:
    results, *numbers = batched.forward(*args)
    return [torch.empty_like(result) for result in results], *numbers


CALLS = [0]


def not_repeatable(*args: Any) -> Any:
    results, sigmas, *rest = batched.forward(*args)
    CALLS[0] += 1
    sigmas[0] *= 1 + 1e-7 * (CALLS[0] % 2)
    return results, sigmas, *rest


def past_its_end(*args: Any) -> Any:
    results, *numbers = batched.forward(*args)
    last = results[6]
    last.as_strided([1], [1], last.storage_offset() + last.numel()).zero_()
    return results, *numbers


def before_its_beginning(*args: Any) -> Any:
    results, *numbers = batched.forward(*args)
    results[6].as_strided([1], [1], results[6].storage_offset() - 1).zero_()
    return results, *numbers


def into_arguments(*args: Any) -> Any:
    outcome = batched.forward(*args)
    args[1][0].mul_(2)
    return outcome


def raises(*args: Any) -> Any:
    raise RuntimeError("no kernel image is available\nfor this device")


def out_of_memory(*args: Any) -> Any:
    raise torch.OutOfMemoryError("no room")


def kernel(forward: Callable[..., Any] = right, name: str = "triton", **options: Any) -> Any:
    return choice.Backend(
        name, forward, batched.backward, lambda *args: [], any_layout=True, **options
    )


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a stand-in for Triton's backend among the backends."""

    def replace(forward: Callable[..., Any] = right, name: str = "triton", **options: Any) -> None:
        options = {"trial": "here", **options}
        monkeypatch.setitem(choice.BACKENDS, name, kernel(forward, name, **options))

    return replace


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of backends, as they are tested, with fewer weights than usual."""
    monkeypatch.setattr(selftest, "_WEIGHTS", selftest._WEIGHTS[:10])
    tested: list[str] = []
    failures = selftest.failures

    def watched(backend: Any, *args: Any) -> list[str]:
        tested.append(backend.name)
        return failures(backend, *args)

    monkeypatch.setattr(selftest, "failures", watched)
    return tested


def select(elements: int = 0, requested: str = "", dtype: torch.dtype = torch.float32) -> str:
    return choice.select_backend(requested, CPU, dtype, None, elements).name


def reasons_against(name: str = "triton") -> str:
    backends = [backend for backend in choice.BACKENDS.values() if backend.trial]
    return dict(trust.verdict(CPU, torch.float32, 0, backends).reasons)[name]


def new_process() -> None:
    """Forgets what a process keeps in memory; the disk remembers."""
    choice.forget_choices()


def cached() -> list[Path]:
    return sorted(Path(os.environ["XDG_CACHE_HOME"]).glob("fastsn/*.json"))


# The self-test


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_backend_that_is_right_passes(dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    assert selftest.failures(kernel(), CPU, dtype) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_the_compiled_backend_passes_from_within(
    require_backend: Callable[[str, Sequence[str]], None],
) -> None:
    require_backend("cpu", choice.explain(CPU)["cpu"])
    assert selftest.failures(choice.BACKENDS["cpu"], CPU, torch.float32) == []


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (wrong_in_one_element, "normalized weight 6: error .*, expected at most"),
        (wrong_vectors, "vectors: error"),
        (unwritten, "normalized weight 0: error"),
        (not_repeatable, "sigmas: other bits when it is called again"),
        (past_its_end, "it writes past the end of memory"),
        (before_its_beginning, "it writes past the end of memory"),
        (into_arguments, "it writes into its arguments"),
        (raises, "RuntimeError: no kernel image is available$"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_backend_that_is_wrong_does_not_pass(
    put: Callable[..., None], forward: Callable[..., Any], message: str
) -> None:
    put(forward)
    assert select() == select(requested="auto") != "triton"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(reasons_against())
    # By name it is still to be had, and what it does is the user's to judge.
    assert select(requested="triton") == "triton"
    new_process()
    assert select() != "triton" and len(cached()) == 1


def test_a_gradient_that_is_wrong_does_not_pass() -> None:
    def backward(*args: Any) -> Any:
        results, scales = batched.backward(*args)
        results[4][0, 3] += 1
        return results, scales

    broken = dataclasses.replace(kernel(), backward=backward)
    (reason,) = selftest.failures(broken, CPU, torch.float32)
    assert "gradient of weight 4: error 1, expected at most" in reason


def test_no_room_for_the_test_is_no_verdict(put: Callable[..., None]) -> None:
    put(out_of_memory)
    assert select() != "triton" and "no room" in reasons_against()
    assert all("triton" not in json.loads(path.read_text())["reasons"] for path in cached())
    new_process()
    put()
    assert select() == "triton"


# auto


def test_auto_tests_once_and_the_next_process_reads_it(
    put: Callable[..., None], tests: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    put()
    with caplog.at_level(logging.INFO, "fastsn"):
        assert select() == select() == select(10**9) == "triton"
    assert tests == ["triton"]
    assert [r.message.partition(" (")[0] for r in caplog.records] == [
        "fastsn: self-test of triton for torch.float32 on cpu: passed"
    ]
    new_process()
    assert select() == "triton" and tests == ["triton"]
    assert select(dtype=torch.float64) == "triton" and tests == ["triton"] * 2
    assert len(cached()) == 2


def test_a_name_wins_over_the_verdict_and_needs_none(
    put: Callable[..., None], tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    for name in ("triton", "reference", "batched"):
        assert select(requested=name) == name
        with monkeypatch.context() as context:
            context.setenv("FASTSN_BACKEND", name)
            assert select() == name
    assert tests == [] and cached() == []


def test_auto_takes_the_faster_for_each_size(
    put: Callable[..., None], tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(name="cuda")
    put()
    times = {"small": {"cuda": 1.0, "triton": 0.9}, "medium": {"cuda": 1.0, "triton": 0.97}}
    timed: list[tuple[str, str]] = []

    def sample(size: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, list[Any]]:
        return size, []

    def seconds(backend: Any, device: torch.device, plan: Any, weights: Any) -> float:
        timed.append((plan, backend.name))
        if plan == "large":
            raise torch.OutOfMemoryError
        return times[plan][backend.name]

    monkeypatch.setattr(trust, "_sample", sample)
    monkeypatch.setattr(selftest, "seconds", seconds)
    for _ in range(2):
        assert select(1000) == "triton"
        assert select(2_000_000) == "cuda"  # no faster than by chance
        assert select(2**23) == "cuda"  # no room to time it
        new_process()
    assert len(timed) == 5
    put(raises, "cuda")  # what passed once is not tested again
    assert select(2_000_000) == "cuda"


def test_times_are_taken_of_both(put: Callable[..., None]) -> None:
    def slow(*args: Any) -> Any:
        time.sleep(0.01)
        return batched.forward(*args)

    put(slow, "cuda")
    put()
    assert select() == "triton"


def test_ranks_without_a_disk_agree(
    put: Callable[..., None], tests: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(trust, "_fastest", lambda *args: pytest.fail("timed, which is chance"))
    put(name="cuda")
    put()
    assert select() == "cuda"
    monkeypatch.setattr(trust, "_fastest", lambda passed, *args: passed[1])
    monkeypatch.setenv("WORLD_SIZE", "1")
    new_process()
    assert select() == "triton"


# When it may not test


def test_nothing_is_tested_in_backward(put: Callable[..., None], tests: list[str]) -> None:
    put()
    chosen = []
    leaf = torch.ones(2, requires_grad=True)
    copy = leaf * 1
    copy.register_hook(lambda grad: chosen.append((select(), reasons_against())))
    copy.sum().backward()
    ((name, reason),) = chosen
    assert name != "triton" and "outside of backward" in reason and tests == []
    assert select() == "triton" and tests == ["triton"]  # the next eager call makes up for it
    # Weights of another size go by what is known, until they can be timed.
    copy = leaf * 1
    copy.register_hook(lambda grad: chosen.append((select(10**9), "")))
    copy.sum().backward()
    assert chosen[1][0] == "triton" and tests == ["triton"]


@pytest.mark.parametrize("state", ["capture", "warm-up", "trace", "compilation"])
def test_nothing_is_tested_while_a_graph_or_code_is_made(
    put: Callable[..., None], tests: list[str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    with monkeypatch.context() as context:
        if state == "capture":
            context.setattr(trust, "capturing", lambda device: True)
        elif state == "warm-up":
            context.setattr(trust, "_obstacle", lambda device: "the warm-up of a CUDA graph")
        elif state == "trace":
            context.setattr(torch._C, "_get_tracing_state", lambda: object())
        else:
            context.setattr(torch.compiler, "is_compiling", lambda: True)
        assert select() == ("cpu" if not choice.explain(CPU)["cpu"] else "batched")
        assert state in reasons_against() and tests == []
    assert select() == "triton"
    new_process()
    monkeypatch.setattr(trust, "capturing", lambda device: True)
    assert select() == "triton" and tests == ["triton"]  # what is on disk may be read


def test_a_compiled_call_runs_and_the_next_eager_one_tests(
    put: Callable[..., None], tests: list[str]
) -> None:
    put()
    torch._dynamo.reset()
    weight, u, v = torch.randn(5, 4), torch.randn(5), torch.randn(4)
    traced: list[int] = []

    def compiler(graph: Any, inputs: Any) -> Any:
        traced.append(len(tests))  # nothing was tested while this was made
        return graph.forward

    @torch.compile(backend=compiler, fullgraph=True)
    def compiled(weight: Tensor) -> Tensor:
        return spectral_normalize([weight], [u], [v]).weights[0]

    expected = spectral_normalize([weight], [u.clone()], [v.clone()]).weights[0]
    tests.clear()
    torch.testing.assert_close(compiled(weight), expected)
    assert traced == [0]
    torch._dynamo.reset()


def test_modes_and_settings_of_the_user_do_not_disturb_the_test(
    put: Callable[..., None], tests: list[str]
) -> None:
    put()
    with torch.autocast("cpu"), torch.device("meta"):
        torch.set_default_dtype(torch.float64)
        try:
            assert select() == "triton"
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.is_grad_enabled()


# The cache


def test_a_stale_verdict_is_not_believed(
    put: Callable[..., None], tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    for fact, value in (("_driver", "1.2"), ("_hash_of_ours", "another build")):
        assert select() == "triton"
        monkeypatch.setattr(verdicts, fact, lambda value=value: value)
        new_process()
    assert select() == "triton" and tests == ["triton"] * 3
    assert len(cached()) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"facts": {}}', '{"facts": {}, "reasons": {"triton": []}}', "\0"]
)
def test_a_broken_file_is_replaced(
    put: Callable[..., None], tests: list[str], content: str
) -> None:
    put()
    assert select() == "triton"
    (path,) = cached()
    good = path.read_text()
    path.write_text(content)
    new_process()
    assert select() == "triton" and tests == ["triton"] * 2
    assert path.read_text() == good
    altered = {**json.loads(good), "reasons": {"triton": "no list"}}
    path.write_text(json.dumps(altered))
    new_process()
    assert select() == "triton" and path.read_text() == good


def test_a_disk_that_cannot_be_written_means_memory_only(
    put: Callable[..., None], tests: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        tests.clear()
        new_process()
        assert select() == select() == "triton" and tests == ["triton"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(verdicts, "folder", lambda: None)  # no home at all
    new_process()
    assert select() == "triton" and tests == ["triton"] * 2


def test_a_disk_that_fills_up_leaves_no_rubbish(
    put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert select() == "triton"
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "fastsn"
    assert {path.suffix for path in folder.iterdir()} <= {".lock"}


TWO = """
import sys, time
import test_trust
from fastsn import backends as choice
from fastsn.backends import selftest, trust
import torch
torch.set_num_threads(1)
trust.DEVICES = {"cpu"}
def failures(*args):
    print("tested", flush=True)
    time.sleep(0.5)
    return []
selftest.failures = failures
choice.BACKENDS["triton"] = test_trust.kernel(trial="here")
print(choice.select_backend("auto", torch.device("cpu"), torch.float32, None).name)
"""


def test_of_two_processes_one_tests_and_both_know() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", TWO]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=60)[0].split() for process in both)
    assert said == [["tested", "triton"], ["triton"]]


def test_of_two_threads_one_tests(put: Callable[..., None], tests: list[str]) -> None:
    put()
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(select())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["triton"] * 3 and tests == ["triton"]


# The test in a child process

CHILD = """
import json, sys, time
from pathlib import Path
result = Path(sys.argv[1])
{before}
result.with_suffix(".started").touch()
{after}
result.write_text(json.dumps([]))
"""


@pytest.mark.parametrize(
    ("before", "after", "reason", "kept"),
    [
        ("", "", "", True),
        ("", "time.sleep(60)", "its self-test hung: it was ended after 1 s", True),
        ("time.sleep(60)", "", "was not ready after 1 s", False),
        ("", "sys.exit('driver lost')", r"ended with code 1 \(driver lost\)", False),
        ("", "import os; os.abort()", "ended with code -6", False),
        ("", "result.write_text('[\"wrong\"]'); sys.exit()", "wrong", True),
    ],
    ids=["right", "hangs", "never begins", "exits", "crashes", "wrong"],
)
def test_a_child_that_does_as_it_likes(
    put: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    before: str, after: str, reason: str, kept: bool,
) -> None:  # fmt: skip
    script = CHILD.format(before=before, after=after)
    monkeypatch.setattr(
        trust, "child_command", lambda *args: [sys.executable, "-c", script, str(args[-1])]
    )
    monkeypatch.setattr(trust, "_START_LIMIT", 1.0)
    monkeypatch.setattr(trust, "_TEST_LIMIT", 1.0)
    put(name="cuda", trial="child")
    start = time.monotonic()
    assert (select() == "cuda") == (reason == "")
    assert time.monotonic() - start < 10
    if reason:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(reasons_against("cuda"))
    (path,) = cached()
    assert ("cuda" in json.loads(path.read_text())["reasons"]) == kept


def test_a_child_that_cannot_be_started(
    put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "child_command", lambda *args: ["/no/such/python"])
    put(name="cuda", trial="child")
    assert select() != "cuda" and "did not start" in reasons_against("cuda")


def test_the_child_tests_the_backend_it_is_told() -> None:
    """The real command, with a backend that this machine has."""
    assert trust._test_in_child(choice.BACKENDS["batched"], CPU, torch.float32) == ([], True)


def test_what_a_child_writes_is_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *args, **options: None)
    result = tmp_path / "result"
    command = trust.child_command("cuda", CPU, torch.float32, result)
    assert command[:3] == [sys.executable, "-m", "fastsn"] and main(command[3:]) == 0
    assert "expected weights on device cuda, got cpu" in (selftest.read_result(result) or [])
    assert selftest.started(result).exists()


# Launches that are refused


def test_a_refused_launch_falls_to_the_next_and_says_so_once(
    put: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    put()
    assert select() == "triton"
    put(raises)  # it passed, and then the card would not
    choice._select.cache_clear()
    layer = fastsn.spectral_norm(torch.nn.Linear(4, 3))
    for _ in range(2):
        layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.isfinite().all()
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "triton on cpu is passed over: a launch was refused: no kernel image" in record.message
    assert "a launch was refused" in reasons_against() and select() != "triton"
    with fastsn.use_backend("triton"), pytest.raises(RuntimeError, match="no kernel image"):
        layer(torch.ones(1, 4))


def test_a_refused_backward_falls_to_the_next(
    put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    assert select() == "triton"
    broken = dataclasses.replace(choice.BACKENDS["triton"], backward=raises)
    monkeypatch.setitem(choice.BACKENDS, "triton", broken)
    choice._select.cache_clear()
    layer = fastsn.spectral_norm(torch.nn.Linear(4, 3))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
    assert select() != "triton"


@pytest.mark.parametrize("error", ["fastsn: expected us[0]", "CUDA error: out of memory"])
def test_errors_that_are_not_the_launches_are_raised(
    put: Callable[..., None], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    put()
    layer = fastsn.spectral_norm(torch.nn.Linear(4, 3))
    assert select() == "triton"

    def complains(*args: Any) -> None:
        raise RuntimeError(error)

    put(complains)
    choice._select.cache_clear()
    with pytest.raises(RuntimeError, match=re.escape(error)):
        layer(torch.ones(1, 4))
    assert not caplog.records and select() == "triton"


# On a card


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_kernels_pass_on_this_card(
    require_backend: Callable[[str, Sequence[str]], None], name: str, dtype: torch.dtype
) -> None:
    device = torch.device("cuda", 0)
    require_backend(name, choice.explain(device)[name])
    assert selftest.failures(choice.BACKENDS[name], device, dtype) == []


@pytest.mark.gpu
def test_auto_takes_a_kernel_on_this_card(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[[str, Sequence[str]], None]
) -> None:
    monkeypatch.setattr(trust, "DEVICES", {"cuda"})
    device = torch.device("cuda", 0)
    for name in ("cuda", "triton"):
        require_backend(name, choice.explain(device)[name])
    graph, weight = torch.cuda.CUDAGraph(), torch.ones(4, 3, device=device)
    captured = []
    with torch.cuda.graph(graph):
        weight += 1
        captured.append(choice.select_backend("auto", device, torch.float32, None).name)
    assert captured == ["batched"]
    on_trial = [backend for backend in choice.BACKENDS.values() if backend.trial]
    verdict = trust.verdict(device, torch.float32, 0, on_trial)
    assert set(verdict.order) == {"cuda", "triton"} and not verdict.reasons
    assert choice.select_backend("auto", device, torch.float32, None).name == verdict.order[0]


# The command


def test_the_command_shows_reruns_and_forgets(
    put: Callable[..., None], tests: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    put(past_its_end)
    assert main([]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "triton usable not by auto: its self-test failed" in shown
    assert "it writes past the end of memory" in shown
    assert len(cached()) == 1 and tests == ["triton"]
    assert main(["selftest", "--device", "cpu"]) == 1
    assert "cpu: no kernel trusted" in capsys.readouterr().out and tests == ["triton"] * 2
    assert main(["selftest", "--forget"]) == 0
    assert "1 verdicts forgotten" in capsys.readouterr().out and cached() == []
    put()
    choice.forget_choices()
    assert main(["selftest", "--device", "cpu"]) == 0
    assert "cpu: triton trusted" in capsys.readouterr().out
    assert main(["selftest", "--backend", "batched", "--device", "cpu"]) == 0
    assert "batched on cpu: passed" in capsys.readouterr().out
