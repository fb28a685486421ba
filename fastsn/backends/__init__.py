"""Backend choice: which implementation serves a call, and why the others do not.

A backend asked for by name works or raises with every reason; ``auto`` takes the first of
:data:`ORDER` that has no reason against it, and kernels for a GPU only once they have passed their
test on that card (:mod:`fastsn.backends.trust`). The choice is made inside the op, where device and
dtype are known, so eager and compiled code agree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from fastsn.backends import batched, native, reference, trust
from fastsn.backends.triton import launch as triton_backend

__all__ = [
    "ORDER",
    "Backend",
    "explain",
    "passes_over",
    "requested_backend",
    "select_backend",
    "set_backend",
    "use_backend",
]

Reasons = Callable[[torch.device, torch.dtype, "torch.dtype | None"], list[str]]


@dataclass(frozen=True)
class Backend:
    """One implementation of the two functions of :mod:`fastsn.backends.reference`."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    unsupported_reasons: Reasons
    any_layout: bool  # False: weights are made contiguous first where problem.native_layout says no
    #: ``forward`` takes one more argument: whether to put the new vectors into the given ones, too.
    stores_vectors: bool = False
    #: Both take one more argument, at the end: memory for their results.
    takes_memory: bool = False
    #: Where ``auto`` has it tested first: "here", or in a "child" as it could hang; "" for nowhere.
    trial: str = ""


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cuda",
            native.cuda.forward,
            native.cuda.backward,
            native.cuda.unsupported_reasons,
            any_layout=False,
            stores_vectors=True,
            trial="child",
        ),
        Backend(
            "triton",
            triton_backend.forward,
            triton_backend.backward,
            triton_backend.unsupported_reasons,
            any_layout=False,
            trial="here",
        ),
        Backend(
            "cpu",
            native.cpu.forward,
            native.cpu.backward,
            native.cpu.unsupported_reasons,
            any_layout=False,
            stores_vectors=True,
            takes_memory=True,
        ),
        Backend(
            "batched",
            batched.forward,
            batched.backward,
            batched.unsupported_reasons,
            any_layout=True,
        ),
        Backend(
            "reference",
            reference.forward,
            reference.backward,
            reference.unsupported_reasons,
            any_layout=True,
        ),
    )
}

#: Order in which ``auto`` tries the backends.
ORDER = tuple(BACKENDS)

# A plain global, because torch.compile guards on it; a ContextVar cannot be traced.
_requested = ""


def requested_backend() -> str:
    """The backend asked for by :func:`use_backend`, or ``""`` for FASTSN_BACKEND and ``auto``."""
    return _requested


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Uses one backend inside the ``with`` block, for all threads of the process.

    Args:
        name: ``"reference"``, ``"batched"``, ``"cpu"``, ``"triton"``, ``"cuda"``, or ``"auto"`` for
            the first that works. The environment variable ``FASTSN_BACKEND`` does the same for a
            whole process; this wins over it.

    Raises:
        ValueError: ``name`` is not a backend.
        RuntimeError: at the first call in the block that the backend cannot serve, with the
            reasons.
    """
    global _requested
    _check_name(name, "use_backend")
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def set_backend(name: str) -> None:
    """Uses one backend from now on, for all threads of the process.

    Args:
        name: as for :func:`use_backend`, which does the same for a block.

    Raises:
        ValueError: ``name`` is not a backend.
    """
    global _requested
    _check_name(name, "set_backend")
    _requested = name


def _check_name(name: str, source: str) -> None:
    if name not in ("auto", *ORDER):
        choices = ", ".join(repr(choice) for choice in ("auto", *ORDER))
        raise ValueError(f"{source}: expected one of {choices}, got {name!r}")


def select_backend(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    elements: int = 0,
) -> Backend:
    """The backend that serves weights of ``dtype`` on ``device``, ``elements`` in all.

    Raises:
        ValueError: FASTSN_BACKEND names no backend.
        RuntimeError: the backend asked for by name has a reason against it, or none is left.
    """
    requested = _resolve(requested)
    trusted = trust.NOBODY
    if requested == "auto" and device.type in trust.DEVICES:
        on_trial = (backend for backend in BACKENDS.values() if backend.trial)
        trusted = trust.verdict(device, dtype, elements, on_trial)
    return _select(requested, device, dtype, out_dtype, trusted)


def _resolve(requested: str) -> str:
    """With what FASTSN_BACKEND says where nothing else is asked for."""
    if not requested:
        requested = os.environ.get("FASTSN_BACKEND", "") or "auto"
        _check_name(requested, "FASTSN_BACKEND")
    return requested


@lru_cache(maxsize=256)
def _select(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    trusted: trust.Verdict,
) -> Backend:
    names: tuple[str, ...] = (requested,)
    if requested == "auto":
        names = (*trusted.order, *(name for name in ORDER if name not in trusted.order))
    refusals = []
    for name in names:
        backend = BACKENDS[name]
        reasons = list(backend.unsupported_reasons(device, dtype, out_dtype))
        if requested == "auto" and not reasons and backend.trial and name not in trusted.order:
            untested = f"it was not tested: auto takes it on {', '.join(trust.DEVICES)} only"
            reasons = [dict(trusted.reasons).get(name, untested)]
        if not reasons:
            return backend
        refusals.append(f"  {name}: " + "; ".join(reasons))
    raise RuntimeError(
        f"fastsn: backend {requested!r} cannot normalize {dtype} weights on {device}:\n"
        + "\n".join(refusals)
    )


def forget_choices() -> None:
    """Chooses anew from now on: after :data:`BACKENDS` or what a backend needs has changed."""
    _select.cache_clear()
    trust.forget()


def passes_over(
    requested: str, backend: Backend, device: torch.device, dtype: torch.dtype, error: RuntimeError
) -> bool:
    """Whether another backend is to serve a call whose launch was refused, now and from now on.

    Not where this one was asked for by name, where it is the arguments or the memory that are to
    blame, or where a capture has failed with it.
    """
    text = str(error)
    if not backend.trial or _resolve(requested) != "auto" or trust.capturing(device):
        return False
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        return False
    if "fastsn: expected" in text:
        return False
    trust.refuse(device, dtype, backend.name, error)
    return True


def explain(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, list[str]]:
    """Reasons against each backend for such weights; an empty list means it can be used."""
    return {
        name: backend.unsupported_reasons(device, dtype, None) for name, backend in BACKENDS.items()
    }
