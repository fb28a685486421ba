"""The ways in which a normalized model is used, for tests that must hold in each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrizations

import fastsn

UPDATES = ("forward", "step")


def normalize(model: nn.Module, update: str, grouped: bool) -> nn.Module:
    """``model`` with fastsn's norms in place of torch's (:func:`torch_norms`), vectors kept."""
    group = fastsn.convert(model, update=update)
    if not grouped:
        group.detach()
    return model


def torch_norms(model: nn.Module, keep: Callable[[nn.Module], bool] = lambda layer: True) -> Any:
    """torch's own spectral norm on every layer of ``model`` that has a weight matrix."""
    for layer in list(model.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and keep(layer):
            parametrizations.spectral_norm(layer)
    return model


in_all_settings = pytest.mark.parametrize(
    ("update", "grouped"),
    [(update, grouped) for update in UPDATES for grouped in (True, False)],
    ids=[f"{update}-{how}" for update in UPDATES for how in ("grouped", "alone")],
)
