"""The classes of parametrized modules: pickling, copying, and a short way to a shared weight.

torch gives a parametrized module a class of its own, made on the fly, that refuses to be pickled.
Here it is pickled as its original class and the names of its parametrized tensors, from which the
class is remade.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["adapt_class", "own_class", "parametrizations_of"]


def parametrizations_of(module: nn.Module) -> dict[str, Any]:
    """The parametrization lists of a module, by tensor name; empty if it has none."""
    held: Any = module._modules.get("parametrizations")
    return dict(held.items()) if parametrize.is_parametrized(module) else {}


def adapt_class(module: nn.Module) -> None:
    """Lets a parametrized ``module`` be pickled and copied, if its parametrizations can be, and
    read what a group has computed for it without a call of its parametrizations.
    """
    cls = type(module)
    cls.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    for name in parametrizations_of(module):
        through_torch = getattr(cls, name)
        if not isinstance(through_torch, _SharedFirst):
            setattr(cls, name, _SharedFirst(name, through_torch))


class _SharedFirst(property):
    """The property of a parametrized tensor: what a group shares, if that is all there is to it."""

    def __init__(self, name: str, through_torch: property) -> None:
        read_through_torch: Any = through_torch.fget

        def read(module: Any) -> Any:
            norms = module._modules["parametrizations"]._modules[name]._modules
            if len(norms) == 1:
                shared = getattr(norms["0"], "_shared", None)
                if shared is not None:
                    return shared
            return read_through_torch(module)

        super().__init__(read, through_torch.fset)


def own_class(module: nn.Module) -> None:
    """Gives a parametrized ``module`` a class that no deep copy of it shares.

    Removing a parametrization deletes a property from the class, which would break the copies.
    """
    cls = type(module)
    attributes = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, attributes)


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    base = type(module).__bases__[0]
    custom = getattr(base, "__getstate__", None)
    if custom is not None and custom is not getattr(object, "__getstate__", None):
        state = custom(module)
    else:
        state = module.__dict__.copy()
    return _remake, (base, tuple(parametrizations_of(module))), state


def _remake(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name in names:
        # Placeholders: unpickling replaces all of the module's state, the class's properties stay.
        module.register_buffer(name, torch.empty(0))
        parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
    adapt_class(module)
    return module
