"""Which backend serves a call, and what is said when none can."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsn
from fastsn import backends as choice
from fastsn.backends import native, reference
from fastsn.functional import spectral_normalize

CPU = torch.device("cpu")
NAMES = ["cuda", "triton", "cpu", "batched", "reference"]


def select(requested: str = "", dtype: torch.dtype = torch.float32) -> str:
    return choice.select_backend(requested, CPU, dtype, None).name


def normalize(dtype: torch.dtype = torch.float32) -> Tensor:
    at = [torch.randn(size, dtype=torch.float64).to(dtype) for size in ((3, 4), (3,), (4,))]
    at[0].requires_grad_()
    return spectral_normalize(at[:1], at[1:2], at[2:]).weights[0]


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTSN_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choice.forget_choices()
    yield
    choice.forget_choices()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which functions of the reference are called, as it happens."""
    called: list[str] = []

    def spy(name: str) -> Callable[..., Any]:
        def function(*args: Any) -> Any:
            called.append(name)
            return getattr(reference, name)(*args)

        return function

    watched = dataclasses.replace(
        choice.BACKENDS["reference"], forward=spy("forward"), backward=spy("backward")
    )
    monkeypatch.setitem(choice.BACKENDS, "reference", watched)
    return called


# use_backend and FASTSN_BACKEND


def test_use_backend_nests_and_restores() -> None:
    assert choice.requested_backend() == ""
    with fastsn.use_backend("reference"):
        assert choice.requested_backend() == "reference"
        with fastsn.use_backend("auto"):
            assert choice.requested_backend() == "auto"
            with fastsn.use_backend("cpu"):
                assert choice.requested_backend() == "cpu"
            assert choice.requested_backend() == "auto"
        assert choice.requested_backend() == "reference"
    assert choice.requested_backend() == ""


def test_use_backend_restores_after_an_exception() -> None:
    with pytest.raises(KeyError, match="inside"), fastsn.use_backend("reference"):
        raise KeyError("inside")
    assert choice.requested_backend() == ""


@pytest.mark.parametrize("name", ["gpu", "CPU", "", "reference "])
def test_use_backend_names_the_choices(name: str) -> None:
    message = f"use_backend: expected one of 'auto', {', '.join(map(repr, NAMES))}, got {name!r}"
    with pytest.raises(ValueError, match=re.escape(message)), fastsn.use_backend(name):
        pytest.fail("the block was entered")
    assert choice.requested_backend() == ""


def test_the_op_runs_on_the_backend_asked_for(calls: list[str]) -> None:
    with fastsn.use_backend("reference"):
        result = normalize()
        assert calls == ["forward"]
    # Backward belongs to its forward, wherever it is called.
    result.sum().backward()
    assert calls == ["forward", "backward"]


def test_the_op_does_not_run_on_another_backend(
    calls: list[str], require_backend: Callable[[str, Sequence[str]], None]
) -> None:
    require_backend("cpu", choice.explain(CPU)["cpu"])
    with fastsn.use_backend("cpu"):
        normalize().sum().backward()
    assert calls == []


def test_environment_variable_chooses(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setenv("FASTSN_BACKEND", "reference")
    assert select() == "reference"
    normalize().sum().backward()
    assert calls == ["forward", "backward"]
    monkeypatch.setenv("FASTSN_BACKEND", "auto")
    assert select() == select("auto")
    monkeypatch.setenv("FASTSN_BACKEND", "")
    assert select() == select("auto")


def test_use_backend_wins_over_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no such backend", "cuda"):
        monkeypatch.setenv("FASTSN_BACKEND", name)
        with fastsn.use_backend("reference"):
            assert normalize().isfinite().all()


@pytest.mark.parametrize("name", ["gpu", "Reference", "cpu,reference"])
def test_environment_variable_with_an_unknown_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FASTSN_BACKEND", name)
    message = f"FASTSN_BACKEND: expected one of 'auto', {', '.join(map(repr, NAMES))}, got {name!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        normalize()


# auto


def test_auto_takes_the_first_without_a_reason() -> None:
    assert list(choice.ORDER) == NAMES
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        reasons = choice.explain(CPU, dtype)
        assert list(reasons) == NAMES
        assert reasons["cuda"] and reasons["triton"] and not reasons["reference"]
        assert select("auto", dtype) == select("", dtype)
        assert select("auto", dtype) == next(name for name in NAMES if not reasons[name])


def test_auto_is_compiled_where_it_can_be(
    require_backend: Callable[[str, Sequence[str]], None],
) -> None:
    require_backend("cpu", choice.explain(CPU)["cpu"])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert select("auto", dtype) == "cpu"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_auto_falls_back_to_the_reference_for_complex(calls: list[str], dtype: torch.dtype) -> None:
    assert select("auto", dtype) == "reference"
    normalize(dtype).abs().sum().backward()
    assert calls == ["forward", "backward"]


def test_auto_passes_over_kernels_that_nobody_tests_on_this_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untried = dataclasses.replace(choice.BACKENDS["reference"], name="triton", trial="here")
    monkeypatch.setitem(choice.BACKENDS, "triton", untried)
    assert select("auto") != "triton"
    assert select("triton") == "triton" and choice.explain(CPU)["triton"] == []
    monkeypatch.setattr(choice, "ORDER", ("triton",))
    choice.forget_choices()
    with pytest.raises(RuntimeError, match="  triton: it was not tested: auto takes it on cuda"):
        select("auto")


# Refusals


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("name", ["cuda", "triton", "cpu"])
def test_backend_asked_for_by_name_works_or_says_every_reason(
    name: str, dtype: torch.dtype
) -> None:
    reasons = choice.explain(CPU, dtype)[name]
    if name == "cpu" and dtype == torch.float32 and not reasons:
        with fastsn.use_backend(name):
            assert normalize(dtype).isfinite().all()
        return
    assert reasons
    with pytest.raises(RuntimeError) as raised, fastsn.use_backend(name):
        normalize(dtype)
    message = str(raised.value)
    assert f"backend {name!r} cannot normalize {dtype} weights on cpu" in message
    assert all(reason in message for reason in reasons)
    # Nothing of the other backends, which were not asked for.
    assert not any(f"  {other}:" in message for other in NAMES if other != name)


def test_refusal_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = dataclasses.replace(
        choice.BACKENDS["cpu"], unsupported_reasons=lambda *args: ["first", "second"]
    )
    with monkeypatch.context() as context:
        context.setitem(choice.BACKENDS, "cpu", refusing)
        with pytest.raises(RuntimeError, match="  cpu: first; second$"):
            select("cpu")
        assert select("auto") == "batched"
    choice.forget_choices()
    assert select("reference") == "reference"


def test_no_backend_left_gives_the_reasons_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        refusing = dataclasses.replace(
            choice.BACKENDS[name],
            unsupported_reasons=lambda *args, name=name: [f"not {name}"],
            trial="",
        )
        monkeypatch.setitem(choice.BACKENDS, name, refusing)
    with pytest.raises(RuntimeError) as raised:
        select("auto")
    lines = str(raised.value).splitlines()
    assert "backend 'auto' cannot normalize torch.float32 weights on cpu" in lines[0]
    assert lines[1:] == [f"  {name}: not {name}" for name in NAMES]


# The compiled modules


def test_module_that_is_not_built_says_how_to_build_it() -> None:
    missing = native.NativeBackend("cpu", "fastsn._no_such_module", "a C++ compiler")
    (reason,) = missing.unsupported_reasons(CPU, torch.float32, None)
    assert reason == missing.import_error()
    assert "fastsn._no_such_module is not built" in reason
    assert "pip install --no-build-isolation" in reason and "a C++ compiler" in reason
    # Every reason at once, so that mending one does not only uncover the next.
    reasons = missing.unsupported_reasons(torch.device("cuda"), torch.complex64, torch.int32)
    assert len(reasons) == 4 and reasons[-1] == reason
    assert "expected weights on device cpu, got cuda" in reasons[0]
    assert "got torch.complex64" in reasons[1] and "got torch.int32" in reasons[2]


def test_module_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('undefined symbol: zz')")
    (tmp_path / "needy_kernels.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    broken = native.NativeBackend("cpu", "broken_kernels", "a C++ compiler")
    (reason,) = broken.unsupported_reasons(CPU, torch.float32, None)
    assert "broken_kernels does not load (undefined symbol: zz)" in reason
    assert "pip install --no-build-isolation" in reason
    # A dependency that is missing is another trouble than a module that was not built.
    needy = native.NativeBackend("cpu", "needy_kernels", "a C++ compiler")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        needy.import_error()
    assert "needy_kernels" not in sys.modules


def test_op_with_unknown_backend_or_dtype() -> None:
    for dtype in (torch.int64, torch.bool):
        assert choice.explain(CPU, dtype)["reference"] == [
            f"expected a floating or complex dtype, got {dtype}"
        ]
        with pytest.raises(RuntimeError, match=f"reference: expected a floating .* got {dtype}"):
            select("auto", dtype)
