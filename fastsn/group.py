"""A group: all spectral norms of a model, computed in one op call at the start of its forward."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastsn.compute import compute
from fastsn.engine import normalize
from fastsn.parametrization import SpectralNorm, share
from fastsn.state.classes import parametrizations_of
from fastsn.state.layouts import prepare_load
from fastsn.state.ranks import is_fsdp_module, is_sharded, require_plain

__all__ = ["SpectralNormGroup"]


class Member(NamedTuple):
    """One normalized weight of the model."""

    name: str  # dotted name of the layer within the model
    tensor_name: str
    layer: nn.Module
    norm: SpectralNorm
    path: tuple[str, ...]  # ``name``, as keys of nested ``_modules``

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.name, self.tensor_name) if part)

    @property
    def weight(self) -> Tensor:
        held: Any = self.layer._modules["parametrizations"]
        held = held._modules[self.tensor_name]
        weight = held._parameters.get("original")  # the short way, for all but buffers
        return held.original if weight is None else weight


class SpectralNormGroup:
    """All :class:`~fastsn.parametrization.SpectralNorm` layers under a model; ``fastsn.apply``
    returns one.

    At the start of every forward of ``model`` the group normalizes all of its weights in one op
    call; each layer then reads its own. A layer used outside the model's forward normalizes its
    weight by itself. Numbers do not depend on grouping. ``print(group)`` shows what is normalized,
    what was left alone, and why.

    Args:
        model: the module whose forward starts the computation.
        notes: remarks for ``print``, by parameter name.

    Raises:
        ValueError: ``model`` has no normalized layer.
    """

    def __init__(self, model: nn.Module, notes: dict[str, str] | None = None) -> None:
        self.model = model
        self.members = _collect(model)
        if not self.members:
            raise ValueError(
                f"expected at least one layer of {type(model).__name__} to have a fastsn "
                "spectral norm, got none"
            )
        self.notes = dict(notes or {})
        self._given: list[SpectralNorm] = []
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward, always_call=True)
        model.register_load_state_dict_pre_hook(self._before_load)

    # Forward

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        # A DataParallel replica brings this hook along; its layers then normalize their own
        # weights.
        if module is not self.model:
            return
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._check_members()
        norms, weights = [], []
        fsdp = is_fsdp_module(self.model)
        for member in self.members:
            # Set already: frozen, or this model is part of another group's forward.
            if member.norm._shared is not None:
                continue
            weight = member.weight
            sharded = is_sharded(weight)
            if fsdp or sharded:
                # Gathered weights keep their version, and may keep their address, when they change.
                member.norm.forget_weight()
            if not sharded:
                norms.append(member.norm)
                weights.append(weight)
        if not norms:
            return
        if compiling:
            weights_sn = normalize(norms, weights)
        else:
            try:
                weights_sn = normalize(norms, weights)
            except RuntimeError as error:
                self._blame(error)
                raise
        share(norms, weights_sn)
        self._given = norms

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is not self.model:
            return
        share(self._given, [None] * len(self._given))
        self._given = []

    def _blame(self, error: RuntimeError) -> None:
        """Raises an error that names the layer, if a layer's vectors do not fit its weight."""
        for member in self.members:
            weight, norm = member.weight, member.norm
            for view, names in zip(norm.views, norm.vector_names, strict=False):
                for name, size in zip(names, (view.rows, view.cols), strict=True):
                    vector = getattr(norm, name)
                    if vector.shape != (size,) or vector.device != weight.device:
                        raise RuntimeError(
                            f"fastsn: layer '{member.name}': expected buffer {name} of shape "
                            f"({size},) on {weight.device} as its {member.tensor_name}, "
                            f"got {tuple(vector.shape)} on {vector.device}"
                        ) from error

    def _check_members(self) -> None:
        for member in self.members:
            held: Any = member.layer._modules.get("parametrizations")
            if held is not None:
                held = held._modules.get(member.tensor_name)
            if held is None or held._modules.get("0") is not member.norm:
                raise RuntimeError(
                    f"fastsn: expected layer '{member.name}' to keep the spectral norm of its "
                    f"'{member.tensor_name}', got a layer whose norm was removed or replaced: "
                    "call group.refresh()"
                )
            if not _holds(self.model, member.path, member.layer):
                raise RuntimeError(
                    f"fastsn: expected layer '{member.name}' to be the one that was grouped, got a "
                    "model in which it was removed or replaced: call group.refresh()"
                )

    def _before_load(
        self, module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_unused: Any
    ) -> None:
        """Checks every layer's entries before the first one is copied."""
        if module is self.model:
            for member in self.members:
                path = f"{prefix}{member.name}." if member.name else prefix
                prepare_load(member.layer, state_dict, path)

    # What users call

    @torch.no_grad()
    def sigmas(self, *, per_unfolding: bool = False) -> dict[str, Tensor]:
        """Sigma of every weight at its stored vectors, by parameter name; advances nothing.

        Args:
            per_unfolding: give each unfolding's own sigma, ``[1]`` or for BSN ``[2]``, instead of
                their mean.
        """
        result = {}
        for member in self.members:
            weight = member.weight
            if weight.ndim == 1:
                sigma = weight.norm()
                result[member.label] = sigma[None] if per_unfolding else sigma
                continue
            computed = compute([member.norm], [weight], 0)
            result[member.label] = (
                computed.view_stats[:, 0] if per_unfolding else computed.sigmas[0]
            )
        return result

    def update(self) -> None:
        """Advances all vectors now, by each layer's own number of iterations, in evaluation mode
        too.

        With ``update="step"`` it also makes a change known that version counters do not show (a
        write through ``.data``): the next forward computes the normalized weights anew.
        """
        for member in self.members:
            member.norm.advance(member.weight)

    def reset(self) -> None:
        """Draws all vectors anew and warms them up: for weights that were initialized again."""
        for member in self.members:
            member.norm.reset(member.weight)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Normalizes the weights once and shares them until the block ends: for inference loops.

        Inside, forwards read no weight, advance nothing and give the weights no gradients, and a
        change of a weight has no effect. In training mode, too, the weights are those of an
        evaluation.
        """
        free = [member for member in self.members if member.norm._shared is None]
        for member in free:
            require_plain(member.weight)
        modes = [member.norm.training for member in free]
        try:
            for member in free:
                member.norm.training = False
            with torch.no_grad():
                weights_sn = normalize(
                    [member.norm for member in free], [member.weight for member in free]
                )
        finally:
            for member, mode in zip(free, modes, strict=True):
                member.norm.training = mode
        try:
            share([member.norm for member in free], weights_sn)
            yield
        finally:
            share([member.norm for member in free], [None] * len(free))

    def refresh(self) -> None:
        """Looks for the normalized layers again, after some were added, removed or replaced."""
        members = _collect(self.model)
        if not members:
            raise ValueError("expected at least one layer with a fastsn spectral norm, got none")
        self.members = members

    def detach(self) -> None:
        """Takes the group off its model; the layers stay normalized, each by itself."""
        for hooks in (
            self.model._forward_pre_hooks,
            self.model._forward_hooks,
            self.model._load_state_dict_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if getattr(getattr(hook, "hook", hook), "__self__", None) is self:
                    del hooks[key]
                    self.model._forward_hooks_always_called.pop(key, None)

    def __len__(self) -> int:
        return len(self.members)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": []}

    def __repr__(self) -> str:
        lines = [f"SpectralNormGroup of {type(self.model).__name__}: {len(self)} weights"]
        rows = [
            (member.label, "x".join(map(str, member.weight.shape)), member.norm.extra_repr())
            for member in self.members
        ]
        width = max(len(label) for label in [*(row[0] for row in rows), *self.notes])
        size = max(len(row[1]) for row in rows)
        for label, shape, text in rows:
            note = f" ({self.notes[label]})" if label in self.notes else ""
            lines.append(f"  {label:<{width}}  {shape:<{size}}  {text}{note}")
        mine = {row[0] for row in rows}
        others = [(label, note) for label, note in self.notes.items() if label not in mine]
        if others:
            lines.append("left alone:")
            lines += [f"  {label:<{width}}  {note}" for label, note in others]
        return "\n".join(lines)


def _collect(model: nn.Module) -> list[Member]:
    members = []
    for name, layer in model.named_modules():
        for tensor_name, held in parametrizations_of(layer).items():
            # One that comes after another parametrization has no weight of its own to read.
            if isinstance(held[0], SpectralNorm):
                path = tuple(name.split(".")) if name else ()
                members.append(Member(name, tensor_name, layer, held[0], path))
    return members


def _holds(model: nn.Module, path: tuple[str, ...], layer: nn.Module) -> bool:
    module: Any = model
    for part in path:
        module = module._modules.get(part)
        if module is None:
            return False
    return module is layer
