"""A group: all spectral norms of a model, computed in one op call at the start of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastsn import forward
from fastsn.forward import Batch, alone, autocast_dtype, batches, compute
from fastsn.frames import (
    Frame,
    address_of,
    block_of,
    close,
    current,
    held,
    open_frame,
    traced_batch,
)
from fastsn.parametrization import SpectralNorm
from fastsn.state.classes import (
    GROUP,
    parametrizations_of,
    restore_forward,
    surround_forward,
)
from fastsn.state.layouts import prepare_load
from fastsn.state.ranks import is_fsdp_module, is_sharded, require_plain

__all__ = ["SpectralNormGroup", "group_of"]


class Member(NamedTuple):
    """One normalized weight of the model."""

    name: str  # dotted name of the layer within the model
    tensor_name: str
    layer: nn.Module
    norm: SpectralNorm
    path: tuple[str, ...]  # ``name``, as keys of nested ``_modules``
    tied: tuple[str, ...] = ()  # what else the weight is called: other layers with this very norm

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.name, self.tensor_name) if part)

    @property
    def slot(self) -> dict[str, Any]:
        """What holds the weight, as ``original``: the short way to it."""
        held: Any = self.layer._modules["parametrizations"]
        held = held._modules[self.tensor_name]
        parameters: dict[str, Any] = held._parameters
        return parameters if "original" in parameters else held._buffers

    @property
    def weight(self) -> Tensor:
        return self.slot["original"]


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
        exclude: names or patterns of normalized layers, or of their weights, that stay by
            themselves.

    Raises:
        ValueError: ``model`` has no normalized layer.
    """

    def __init__(
        self,
        model: nn.Module,
        notes: dict[str, str] | None = None,
        *,
        exclude: Iterable[str] = (),
    ) -> None:
        exclude = list(exclude)
        members = _collect(model, exclude)
        if not members:
            raise ValueError(
                f"expected at least one layer of {type(model).__name__} to have a fastsn "
                "spectral norm, got none"
            )
        before = model.__dict__.get(GROUP)
        if before is not None and before.model is model:
            notes = {**before.notes, **(notes or {})}
            before.detach()
        self.model = model
        self.exclude = exclude
        self.notes = dict(notes or {})
        self._adopt(members)
        model.__dict__[GROUP] = self
        surround_forward(model, make_forward)
        model.register_load_state_dict_pre_hook(self._before_load)

    def _adopt(self, members: list[Member]) -> None:
        self.members = members
        # 1-d weights have no vectors, and are divided by their norm where they are read.
        self._counted = [member for member in members if member.norm.vector_names]
        self._norms = [member.norm for member in self._counted]
        self._slots = [member.slot for member in self._counted]
        weights = [slot["original"] for slot in self._slots]
        self._batches = batches(self._norms, weights) if weights else []
        self._seen: Any = None

    def _complete(self) -> None:
        if "_batches" not in self.__dict__:
            self._adopt(self.members)

    # Forward

    def _open(self) -> Frame | None:
        """Computes the weights that no open frame holds yet; the frame that hands them out."""
        self._complete()
        if torch.compiler.is_compiling():
            return self._open_traced()
        weights = [slot["original"] for slot in self._slots]
        addresses = [address_of(weight) for weight in weights]
        outer = current()
        seen = (
            forward.changes, addresses, list(map(id, weights)),
            [norm.training for norm in self._norms],
        )  # fmt: skip
        chosen = self._batches
        if outer is not None or seen != self._seen:
            chosen = self._choose(weights, seen)
        frame = Frame(outer)
        try:
            for batch, indices in chosen:
                if len(indices) == len(weights):
                    block = block_of(batch, weights, addresses)
                else:
                    block = block_of(
                        batch, [weights[i] for i in indices], [addresses[i] for i in indices]
                    )
                if block is not None:
                    frame.blocks.append(block)
        except RuntimeError as error:
            self._blame(error)
            raise
        if not frame.blocks:
            return None
        open_frame(frame)
        return frame

    def _choose(self, weights: Sequence[Tensor], seen: Any) -> list[tuple[Batch, list[int]]]:
        """Batches of the weights that are to be computed, if they are not those of last time."""
        if is_fsdp_module(self.model) or any(map(is_sharded, weights)) or current() is not None:
            return self._rest(weights)
        self._batches, self._seen = batches(self._norms, weights), seen
        return self._batches

    def _close(self, frame: Frame) -> None:
        """After a forward that has returned: a layer that has not been read may be gone."""
        for block in frame.blocks:
            if False in block.handed:
                return self._check_members()

    def _rest(self, weights: Sequence[Tensor]) -> list[tuple[Batch, list[int]]]:
        """Batches of the weights that are here and that no outer frame holds."""
        fsdp = is_fsdp_module(self.model)
        free = []
        for i, (norm, weight) in enumerate(zip(self._norms, weights, strict=True)):
            sharded = is_sharded(weight)
            if fsdp or sharded:
                # Gathered weights keep their version, and may keep their address, when they change.
                norm.state.forget_weight()
            if not sharded and not held(norm, weight):
                free.append(i)
        some = batches([self._norms[i] for i in free], [weights[i] for i in free])
        return [(batch, [free[i] for i in indices]) for batch, indices in some]

    def _open_traced(self) -> Frame | None:
        """:meth:`_open` in compiled code."""
        frame = current()
        given: dict[int, Tensor] = {}
        for batch, indices in self._batches_for_tracing():
            weights = [self._slots[i]["original"] for i in indices]
            if frame is None or not all(map(held, batch.norms, weights)):
                tensors = traced_batch(batch, weights)
                given.update(zip(batch.handles, tensors, strict=True))
        if not given:
            return None
        frame = Frame(frame, given)
        open_frame(frame)
        return frame

    def _batches_for_tracing(self) -> list[tuple[Batch, list[int]]]:
        if all(batch.norms[0].training is norm.training for batch, _ in self._batches
               for norm in batch.norms) and self._batches:  # fmt: skip
            return self._batches
        return [(alone(norm), [i]) for i, norm in enumerate(self._norms)]

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
        if not all(_is_in(self.model, member) for member in self.members):
            self._look_again()

    def _look_again(self) -> None:
        """After a change of the model: wrapped layers are still members, normless ones are not.

        Raises:
            RuntimeError: a layer of the group is in the model no more.
        """
        layers = set(self.model.modules())
        for member in self.members:
            if member.layer not in layers:
                raise RuntimeError(
                    f"fastsn: expected layer '{member.name}' to be the one that was grouped, got a "
                    "model in which it was removed or replaced: call group.refresh()"
                )
        found = {
            (id(member.layer), member.tensor_name): member
            for member in _collect(self.model, self.exclude)
        }
        kept = [(id(member.layer), member.tensor_name) for member in self.members]
        for member, key in zip(self.members, kept, strict=True):
            if key not in found:
                self.notes[member.label] = "its spectral norm was removed"
        self._adopt([found[key] for key in kept if key in found])

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
            numbers = compute(alone(member.norm), [weight], 0).numbers
            result[member.label] = numbers.view_stats[:, 0] if per_unfolding else numbers.sigmas[0]
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

        In this thread; another thread's forwards inside the block compute as always. Inside,
        forwards read no weight, advance nothing and give the weights no gradients, and a
        change of a weight has no effect. In training mode, too, the weights are those of an
        evaluation.
        """
        self._complete()
        weights = [slot["original"] for slot in self._slots]
        for weight in weights:
            require_plain(weight)
        given: dict[int, Tensor] = {}
        with torch.no_grad():
            for batch, indices in batches(self._norms, weights):
                chosen = [weights[i] for i in indices]
                computed = compute(batch, chosen, 0, autocast_dtype(chosen[0]))
                given.update(zip(batch.handles, computed.numbers.weights_sn, strict=True))
        frame = Frame(current(), given)
        try:
            open_frame(frame)
            yield
        finally:
            close(frame)

    def release_memory(self) -> None:
        """Gives back the memory that is kept on the CPU for the next normalized weights and
        gradients: at most four times that of the weights. What is in use is not touched.
        """
        batches = [batch for batch, _ in self._batches]
        alone = [state.alone for norm in self._norms if (state := norm.state).alone is not None]
        for batch in (*batches, *alone):
            memory = batch.plan.memory
            if memory is not None:
                memory.release()

    def refresh(self) -> None:
        """Looks for the normalized layers again, after some were added, removed or replaced."""
        members = _collect(self.model, self.exclude)
        if not members:
            raise ValueError("expected at least one layer with a fastsn spectral norm, got none")
        self._adopt(members)

    def detach(self) -> None:
        """Takes the group off its model; the layers stay normalized, each by itself."""
        if self.model.__dict__.get(GROUP) is self:
            del self.model.__dict__[GROUP]
            restore_forward(self.model)
        hooks = self.model._load_state_dict_pre_hooks
        for key, hook in list(hooks.items()):
            if getattr(getattr(hook, "hook", hook), "__self__", None) is self:
                del hooks[key]

    def __len__(self) -> int:
        return len(self.members)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("exclude", "members", "model", "notes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A copy's layers are there by now, unless one is the model itself, which is being made.
        if all(member.layer is not self.model for member in self.members):
            self._adopt(self.members)

    def __repr__(self) -> str:
        lines = [f"SpectralNormGroup of {type(self.model).__name__}: {len(self)} weights"]
        rows = [
            (
                member.label,
                "x".join(map(str, member.weight.shape)),
                member.norm.extra_repr(),
                member.tied,
            )  # fmt: skip
            for member in self.members
        ]
        width = max(len(label) for label in [*(row[0] for row in rows), *self.notes])
        size = max(len(row[1]) for row in rows)
        for label, shape, text, tied in rows:
            remarks = [self.notes[label]] if label in self.notes else []
            remarks += [f"tied to {other}" for other in tied]
            note = f" ({'; '.join(remarks)})" if remarks else ""
            lines.append(f"  {label:<{width}}  {shape:<{size}}  {text}{note}")
        mine = {label for row in rows for label in (row[0], *row[3])}
        others = [(label, note) for label, note in self.notes.items() if label not in mine]
        if others:
            lines.append("left alone:")
            lines += [f"  {label:<{width}}  {note}" for label, note in others]
        return "\n".join(lines)


def _collect(model: nn.Module, exclude: Sequence[str]) -> list[Member]:
    members: dict[int, Member] = {}
    for name, layer in model.named_modules():
        for tensor_name, norms in parametrizations_of(layer).items():
            # One that comes after another parametrization has no weight of its own to read.
            if not isinstance(norms[0], SpectralNorm):
                continue
            path = tuple(name.split(".")) if name else ()
            member = Member(name, tensor_name, layer, norms[0], path)
            if any(fnmatchcase(name, p) or fnmatchcase(member.label, p) for p in exclude):
                continue
            first = members.setdefault(id(norms[0]), member)
            if first is not member:
                members[id(norms[0])] = first._replace(tied=(*first.tied, member.label))
    return list(members.values())


def _is_in(model: nn.Module, member: Member) -> bool:
    """Whether a member is where it was, with its norm."""
    module: Any = model
    for key in member.path:
        module = module._modules.get(key)
        if module is None:
            return False
    if module is not member.layer:
        return False
    for key in ("parametrizations", member.tensor_name, "0"):
        module = module._modules.get(key)
        if module is None:
            return False
    return module is member.norm


def group_of(model: nn.Module) -> SpectralNormGroup:
    """The group of ``model``, or of a module in it: after a copy, a load, or inside a wrapper.

    Raises:
        ValueError: there is no group, or several side by side.
    """
    groups = [
        module.__dict__[GROUP]
        for module in model.modules()
        if GROUP in module.__dict__ and module.__dict__[GROUP].model is module
    ]
    if groups and (groups[0].model is model or len(groups) == 1):
        return groups[0]
    found = f"{len(groups)} inside of it" if groups else "none"
    raise ValueError(
        f"expected {type(model).__name__} to have a group, got {found}: fastsn.apply(model), "
        "fastsn.convert(model) and fastsn.SpectralNormGroup(model) make one"
    )


def make_forward(cls: Any) -> Callable[..., Any]:
    """The forward of ``cls`` for the model of a group, which computes all weights first."""
    inner = cls.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        group = self.__dict__.get(GROUP)
        # A replica or a shallow copy brings the group along; its layers compute for themselves.
        if group is None or group.model is not self:
            return inner(self, *args, **kwargs)
        before = current()
        try:  # opened inside, so that an interrupt finds nothing open that nobody closes
            frame = group._open()
            output = inner(self, *args, **kwargs)
        finally:
            open_frame(before)
        if frame is not None and frame.blocks:
            group._close(frame)
        return output

    return forward
