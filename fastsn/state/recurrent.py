"""Recurrent layers (``nn.LSTM``, ``nn.GRU``, ``nn.RNN``) with normalized weights.

torch's layers keep a list of their weights, in the order of cuDNN's kernels, as an attribute, and
make it anew where a weight is another tensor than last time. A normalized weight is another one at
every forward. Left to torch, the list would hold the results of the last forward: their graph would
stay alive, copies of the layer would be refused, and two threads would take each other's weights.
Here each forward has a list of its own, and between forwards the list is that of the parameters.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

__all__ = ["give_lists_to_forwards", "renew_list"]

# Per thread: the lists of the forwards that are running, by the layer's id.
_local = threading.local()


def _running() -> dict[int, list[Any] | None]:
    try:
        return _local.running
    except AttributeError:
        _local.running = {}
        return _local.running


def give_lists_to_forwards(cls: Any) -> None:
    """Changes ``cls``, the class of one parametrized recurrent layer."""
    if isinstance(vars(cls).get("_flat_weights"), _FlatWeights):
        return
    inner, flatten = cls.forward, cls.flatten_parameters

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        running, key = _running(), id(self)
        nested, before = key in running, running.get(key)
        running[key] = None
        try:
            return inner(self, *args, **kwargs)
        finally:
            if nested:
                running[key] = before
            else:
                del running[key]

    def flatten_parameters(self: Any) -> None:
        """torch's, which puts the weights of a forward into one piece of memory, for cuDNN.

        To autograd that is a change of the weights in place. The numbers stay the same, so the
        versions do, too: backward, and forwards that share a result, still know them.
        """
        if id(self) not in _running():
            return  # no kernel reads the parameters
        made = tuple(
            weight
            for weight in self._flat_weights
            if isinstance(weight, Tensor)
            and not isinstance(weight, nn.Parameter)
            and not weight.is_inference()
        )
        with _unsafe_preserve_version_counter(made):
            flatten(self)

    cls.forward = forward
    cls.flatten_parameters = flatten_parameters
    cls._flat_weights = _FlatWeights()
    cls._update_flat_weights = _update_flat_weights
    cls._init_flat_weights = _init_flat_weights


class _FlatWeights:
    """The attribute ``_flat_weights``: of the running forward, or of the parameters."""

    def __get__(self, layer: Any, cls: Any = None) -> Any:
        if layer is None:
            return self
        own = _running().get(id(layer))
        return layer.__dict__["_flat_weights"] if own is None else own

    def __set__(self, layer: Any, value: Any) -> None:
        running = _running()
        if id(layer) in running:
            running[id(layer)] = value
        else:
            layer.__dict__["_flat_weights"] = value


def _update_flat_weights(self: Any) -> None:
    if id(self) in _running():
        # torch's look for changes reads weights, and alone each read advances the vectors: kept,
        # so that a single layer has torch's numbers. Its answer does not matter.
        self._weights_have_changed()
    self._init_flat_weights()


def _init_flat_weights(self: Any) -> None:
    names = self._flat_weights_names
    if id(self) in _running():
        self._flat_weights = [
            getattr(self, name) if hasattr(self, name) else None for name in names
        ]
        self.flatten_parameters()
    else:
        renew_list(self)


def renew_list(layer: Any) -> None:
    """Makes the list of a layer outside of its forward: of its parameters, normalized or not."""
    held = layer._modules.get("parametrizations")
    lists = {} if held is None else held._modules
    layer.__dict__["_flat_weights"] = flat = [
        lists[name].original if name in lists else layer._parameters.get(name)
        for name in layer._flat_weights_names
    ]
    layer._flat_weight_refs = [None if w is None else weakref.ref(w) for w in flat]
