"""How tests use a machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cuda_host import assert_same_bits

import fastsn
from fastsn import backends

from .machine import BackendMachine


@contextmanager
def in_place_of(name: str, machine: BackendMachine) -> Iterator[None]:
    """The backend of this name, in use, with the machine behind it."""
    before = backends.BACKENDS[name]
    backends.BACKENDS[name] = replace(
        before,
        forward=machine.forward,
        backward=machine.backward,
        unsupported_reasons=lambda *args: [],
    )
    backends.forget_choices()
    try:
        with fastsn.use_backend(name):
            yield
    finally:
        backends.BACKENDS[name] = before
        backends.forget_choices()


def assert_same_everything(got: Any, expected: Any) -> None:
    """Of (results of forward, results of backward)."""
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)
