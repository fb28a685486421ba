"""The classes of changed modules: how a weight is read, a model's forward, pickling and copying.

torch gives a parametrized module a class of its own, made on the fly, that refuses to be pickled.
The model of a group gets one whose forward the group surrounds. Modules of either are pickled as
their original class, and what was done to it, from which the class is made again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastsn.state.recurrent import give_lists_to_forwards

__all__ = [
    "GROUP",
    "adapt_class",
    "own_class",
    "parametrizations_of",
    "restore_forward",
    "surround_forward",
]

#: The attribute of a model that holds its group.
GROUP = "_spectral_norm_group"


def parametrizations_of(module: nn.Module) -> dict[str, Any]:
    """The parametrization lists of a module, by tensor name; empty if it has none."""
    held: Any = module._modules.get("parametrizations")
    return dict(held.items()) if parametrize.is_parametrized(module) else {}


# Parametrized modules


def adapt_class(module: nn.Module) -> None:
    """Lets a parametrized ``module`` be pickled and copied, if its parametrizations can be, and
    read its weight without a call of modules.
    """
    cls = type(module)
    cls.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]
    for name in parametrizations_of(module):
        through_torch = getattr(cls, name)
        if not isinstance(through_torch, _Weight):
            setattr(cls, name, _Weight(name, through_torch))
    if isinstance(module, nn.RNNBase):
        give_lists_to_forwards(cls)


class _Weight(property):
    """The property of a parametrized tensor, without torch's detour where there is no need of it.

    There is where another parametrization, a hook on one, or torch's own cache takes part.
    """

    def __init__(self, name: str, through_torch: property) -> None:
        read_through_torch: Any = through_torch.fget

        def read(module: Any) -> Any:
            held = module._modules["parametrizations"]._modules[name]
            norms = held._modules
            if len(norms) == 1:
                norm = norms["0"]
                read_weight = getattr(norm, "read_weight", None)
                if read_weight is not None and not (
                    norm._forward_hooks or norm._forward_pre_hooks or parametrize._cache_enabled
                ):
                    weight = held._parameters.get("original")
                    return read_weight(held.original if weight is None else weight)
            return read_through_torch(module)

        super().__init__(read, through_torch.fset)


def own_class(module: nn.Module) -> None:
    """Gives a parametrized ``module`` a class that no deep copy of it shares.

    Removing a parametrization deletes a property from the class, which would break the copies.
    """
    cls = type(module)
    attributes = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    make: Any = type(cls)  # the metaclass
    module.__class__ = make(cls.__name__, cls.__bases__, attributes)


# Models of a group

#: Of a class, the forward that its instances get.
MakeForward = Callable[[Any], Callable[..., Any]]

# By class of a model: the one with a surrounded forward, which all models of that class share.
_surrounded: weakref.WeakKeyDictionary[type, weakref.ref[type]] = weakref.WeakKeyDictionary()

# Marks those classes; its value is the function that made their forward.
_MARK = "_spectral_norm_forward"

# Of a parametrized model's class: the forward that it had of its own, or None.
_BEFORE = "_spectral_norm_forward_before"


def surround_forward(model: nn.Module, make_forward: MakeForward) -> None:
    """Gives ``model`` a class whose ``forward`` is ``make_forward(class)``, if it has none yet.

    A class and not an attribute of the model, which copies and replicas would carry along with the
    original's weights.

    Args:
        make_forward: a function of some module's top level, as pickles name it.
    """
    cls = type(model)
    if hasattr(cls, _MARK):
        return
    mark = staticmethod(make_forward)
    if parametrize.is_parametrized(model):  # a class of its own, from which torch takes things
        own_class(model)
        own: Any = type(model)
        setattr(own, _BEFORE, vars(own).get("forward"))
        own.forward = make_forward(cls)
        setattr(own, _MARK, mark)
        return
    known = _surrounded.get(cls)
    made = None if known is None else known()
    if made is None:
        attributes = {
            "forward": make_forward(cls), _MARK: mark, "__reduce_ex__": _reduce,
            "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__,
        }  # fmt: skip
        make: Any = type(cls)  # the metaclass
        made = make(cls.__name__, (cls,), attributes)
        _surrounded[cls] = weakref.ref(made)
    model.__class__ = made


def restore_forward(model: nn.Module) -> None:
    """Takes :func:`surround_forward` back."""
    cls = type(model)
    if _MARK not in vars(cls):
        return  # another class lies above: without a group its forward does what it always did
    if parametrize.is_parametrized(model):
        own_class(model)
        own: Any = type(model)
        before = vars(own)[_BEFORE]
        for name in ("forward", _MARK, _BEFORE):
            delattr(own, name)
        if before is not None:
            own.forward = before
    else:
        model.__class__ = cls.__bases__[0]


# Pickling and copying


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    cls = type(module)
    base = next(each for each in cls.__mro__ if vars(each).get("__reduce_ex__") is not _reduce)
    custom = getattr(base, "__getstate__", None)
    if custom is not None and custom is not getattr(object, "__getstate__", None):
        state = custom(module)
    else:
        state = module.__dict__.copy()
    names = tuple(parametrizations_of(module))
    return _remake, (base, names, getattr(cls, _MARK, None)), state


def _remake(
    base: type[nn.Module], names: tuple[str, ...], make_forward: MakeForward | None = None
) -> nn.Module:
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name in names:
        # Placeholders: unpickling replaces all of the module's state, the class's properties stay.
        module.register_buffer(name, torch.empty(0))
        parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
    if names:
        adapt_class(module)
    if make_forward is not None:
        surround_forward(module, make_forward)
    return module
