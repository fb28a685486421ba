r"""SN_Conv: weights normalized by the norm of the convolution itself, not of the reshaped kernel.

The strict spectral normalization of Farnia et al. (2018), which section 4 of the paper compares
with SN. With ``M`` the convolution as a linear map on inputs of one size
(:class:`~fastsn.conv_map.ConvMap`), one power iteration is ``u = n(M v)``,
``v = n(M^T u)``, and

.. math:: \sigma = \langle u, M v \rangle / (|u| |v|) = \langle W, S \rangle,
    \qquad S = \frac{\partial \langle u, M v \rangle}{\partial W} / (|u| |v|)

since ``M`` is linear in ``W``. ``S`` is all that the backward needs of ``u`` and ``v``, which are
constants. With a bound ``c`` the weight is divided by ``max(1, sigma / c)`` instead of ``sigma``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn import regions
from fastsn.checks import check_options, check_weight
from fastsn.conv_map import ConvMap, Size, is_conv
from fastsn.forward import State, autocast_dtype, iterations_now, vectors_lock
from fastsn.plan import WARM_UP, accumulate_dtype
from fastsn.state.classes import adapt_class
from fastsn.state.ranks import share_vectors

__all__ = ["ConvSpectralNorm", "conv_spectral_norm"]


class ConvSpectralNorm(nn.Module):
    """Parametrization ``W -> scale * W / sigma``; made by :func:`conv_spectral_norm`.

    Attributes:
        conv: the geometry of the layer's convolution.
        n_power_iterations: iterations per read of the weight in training mode.
        eps: lower bound of the norms the vectors are divided by.
        scale: float, or a 0-d tensor that may need gradients.
        bound: float, or None for a hard norm.
        _u, _v: output ``[c_out, *size']`` and input ``[c_in, *size]`` that the convolution
            stretches most. Empty until the input size is known.
    """

    _u: Tensor
    _v: Tensor
    scale: float | Tensor
    bound: float | None

    def __init__(
        self,
        weight: Tensor,
        conv: ConvMap,
        input_shape: tuple[int, ...] | None = None,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        *,
        scale: float | Tensor = 1.0,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.bound = None if bound is None else float(bound)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        if isinstance(scale, nn.Parameter):
            self.register_parameter("scale", scale)
        elif isinstance(scale, Tensor):
            self.register_buffer("scale", scale, persistent=False)
        else:
            self.scale = float(scale)
        # Empty and not None: they follow the layer's device and dtype until drawn or loaded.
        self.register_buffer("_u", weight.detach().new_empty(0))
        self.register_buffer("_v", weight.detach().new_empty(0))
        self._seen_shape: tuple[int, ...] | None = None
        self.state = State(self)
        if input_shape is not None:
            self._draw(weight, input_shape)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """``(c_in, *size)`` of the inputs sigma is about; None until the first forward."""
        return None if self._v.numel() == 0 else tuple(self._v.shape)

    def _draw(self, weight: Tensor, input_shape: tuple[int, ...]) -> None:
        # Buffers made under inference_mode could never be updated in training.
        with torch.inference_mode(False), torch.no_grad():
            for name, shape in (("_u", self.conv.output_shape(input_shape)), ("_v", input_shape)):
                vector = torch.randn(shape, dtype=weight.dtype, device=weight.device)
                setattr(self, name, vector / vector.norm())
            self.advance(weight, WARM_UP)

    # Forward

    def forward(self, weight: Tensor) -> Tensor:
        if self._seen_shape is not None and self._v.numel() == 0:
            self._draw(weight, self._seen_shape)
        if not torch.compiler.is_compiling():
            share_vectors([self])
        out_dtype = autocast_dtype(weight) or weight.dtype
        with _no_autocast(weight):
            weight = weight.to(accumulate_dtype(weight.dtype))
            u, v = self._vectors_now(weight)
            scale = self.scale
            # Filled on the device: a copy from the host would wait for it.
            gain = scale.to(weight) if isinstance(scale, Tensor) else weight.new_full((), scale)
            direction = self._direction(weight, u, v)
            weight_sn, _ = _Normalize.apply(weight, direction, gain, self.bound)
            return weight_sn.to(out_dtype)

    def _vectors_now(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of this read; one that recomputes another finds the other's."""
        if torch.compiler.is_compiling():
            n = self.n_power_iterations if self.training else 0
            return self._iterate(weight, n) if n else self._vectors(weight)
        around = regions.regions() if regions.inside(self.training) else []
        handle = self.state.handle
        repeated = [notes.repeat([handle]) for recomputed, notes in around if recomputed]
        known = next((found for found in repeated if found is not None), None)
        if known is not None:
            pair = known[0]
        else:
            n = iterations_now([self.state], self.training, self.n_power_iterations)
            with vectors_lock():
                pair = self._iterate(weight, n) if n else self._vectors(weight)
                pair = pair[0].clone(), pair[1].clone()  # another thread may replace them
        for recomputed, notes in around:
            if not recomputed:
                notes.add(handle, pair)
        return pair

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning ``layer.weight = value`` stores ``value`` as the original, as torch does."""
        return value

    def vectors(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers ``(u, v)``, once the input size is known."""
        return [] if self._v.numel() == 0 else [(self._u, self._v)]

    @torch.no_grad()
    def sigma(self, weight: Tensor) -> Tensor:
        """The norm of ``weight``, the original, at the stored vectors: a scalar."""
        with _no_autocast(weight):
            weight = weight.to(accumulate_dtype(weight.dtype))
            return (weight * self._direction(weight, *self._vectors(weight))).sum()

    @torch.no_grad()
    def advance(self, weight: Tensor, n_power_iterations: int | None = None) -> None:
        """Advances the vectors now, by ``n_power_iterations`` (default: the layer's own number)."""
        n = self.n_power_iterations if n_power_iterations is None else n_power_iterations
        with _no_autocast(weight):
            self._iterate(weight.to(accumulate_dtype(weight.dtype)), n)

    # The convolution wants batches: vectors have a leading 1 below.

    def _vectors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self._v.numel() == 0:
            raise RuntimeError(
                "fastsn: expected the input size of the convolution to be known, got a weight read "
                "before the first forward: run the layer once, load a checkpoint, or give "
                "input_shape to conv_spectral_norm"
            )
        return self._u.to(weight.dtype)[None], self._v.to(weight.dtype)[None]

    @torch.no_grad()
    def _iterate(self, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
        u, v = given = self._vectors(weight)
        healthy = torch.ones((), dtype=torch.bool, device=weight.device)
        for _ in range(n):
            s = self.conv.apply(weight, v)
            s_norm = torch.linalg.vector_norm(s)
            u = s / s_norm.clamp_min(self.eps)
            t = self.conv.adjoint(weight, u, v.shape[1:])
            t_norm = torch.linalg.vector_norm(t)
            v = t / t_norm.clamp_min(self.eps)
            for norm in (s_norm, t_norm):
                healthy = healthy & (norm > 0) & torch.isfinite(norm)
        # A zero or non-finite weight must not spoil the vectors for the good ones that follow.
        kept = [torch.where(healthy, new, old)[0] for new, old in zip((u, v), given, strict=True)]
        # In place, as torch's: replicas and captured graphs see the buffers by address.
        torch._foreach_copy_([self._u, self._v], kept)
        return u, v

    @torch.no_grad()
    def _direction(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``S``, shaped as the weight: the gradient of sigma; 0 if a vector is zero."""
        length = torch.linalg.vector_norm(u) * torch.linalg.vector_norm(v)
        return self.conv.outer(weight, u, v) / torch.where(length == 0, 1, length)

    # State

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "state"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.state = State(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        keys = prefix + "_u", prefix + "_v"
        u, v = (state_dict.get(key) for key in keys)
        if isinstance(u, Tensor) and isinstance(v, Tensor) and v.numel() == 0 != self._v.numel():
            # Saved before its first forward: it has no vectors to bring.
            state_dict[keys[0]], state_dict[keys[1]] = self._u, self._v
        elif isinstance(u, Tensor) and isinstance(v, Tensor) and v.numel() != 0 == self._v.numel():
            # A layer without vectors takes over the checkpoint's input size.
            try:
                fits = tuple(u.shape) == self.conv.output_shape(self.conv.input_shape(v.shape))
            except ValueError:
                fits = False
            if fits:
                self._u, self._v = self._u.new_empty(u.shape), self._v.new_empty(v.shape)
            else:
                error_msgs.append(
                    f"expected {keys[0]} and {keys[1]} to be an output and an input of "
                    f"{self.conv}, got shapes {tuple(u.shape)} and {tuple(v.shape)}"
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        shape = self.input_shape or "learned at the first forward"
        scale = "tensor" if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        text = f"input_shape={shape}, n_power_iterations={self.n_power_iterations}, scale={scale}"
        return text if self.bound is None else f"{text}, bound={self.bound:g}"


class _Normalize(torch.autograd.Function):
    """``(scale * W / sigma, sigma)`` with ``sigma = <W, S>``; zeros without gradients at sigma 0.

    A node of its own because it saves the result and not ``W``: an optimizer may step between
    forward and backward. With ``G = dL/dW_sn``, ``g = dL/dsigma`` and ``c = <G, W_sn>``,
    ``dL/dW = (scale G - (c - g sigma) S) / sigma`` and ``dL/dscale = c / scale``. With a bound,
    ``t = max(1, sigma / bound)`` takes the place of sigma in the quotient, and ``S`` has no part
    but ``g`` where the bound does not bind: :mod:`fastsn.backends.reference`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, direction: Tensor, scale: Tensor, bound: float | None
    ) -> tuple[Tensor, Tensor]:
        sigma = (weight * direction).sum()
        if bound is not None:
            return scale * weight / (sigma / bound).clamp_min(1), sigma
        empty = sigma == 0
        return torch.where(empty, 0, scale * weight / torch.where(empty, 1, sigma)), sigma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, direction, scale, ctx.bound = inputs
        ctx.save_for_backward(direction, scale, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_sigma: Tensor) -> tuple[Tensor, None, Tensor, None]:
        direction, scale, weight_sn, sigma = ctx.saved_tensors
        c = (grad * weight_sn).sum()
        if ctx.bound is not None:
            ratio = sigma / ctx.bound
            binds = ratio >= 1
            pull = torch.where(binds, c / torch.where(binds, sigma, 1), 0) - grad_sigma
            grad_weight = scale * grad / ratio.clamp_min(1) - pull * direction
        else:
            empty = sigma == 0
            along = (c - grad_sigma * sigma) * direction
            grad_weight = (scale * grad - along) / torch.where(empty, 1, sigma)
            grad_weight = torch.where(empty, 0, grad_weight)
        grad_scale = c / torch.where(scale == 0, 1, scale)
        return grad_weight, None, torch.where(scale == 0, 0, grad_scale), None


class _LearnInputShape:
    """Forward pre-hook that tells a :class:`ConvSpectralNorm` its input size, once."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self.handle = module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for norm in _norms(module, self.name):
            if norm.input_shape is None:
                # Batched or not: channels and spatial dimensions come last.
                x = args[0] if args else kwargs["input"]
                dims = len(norm.conv.kernel_size)
                norm._seen_shape = norm.conv.input_shape(tuple(x.shape[-dims - 1 :]))
        self.handle.remove()


def forget_input_shape(module: nn.Module) -> None:
    """Takes the hook off that waits for the first forward, if it is still there."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, _LearnInputShape):
            hook.handle.remove()


def _norms(module: nn.Module, name: str) -> list[ConvSpectralNorm]:
    if not parametrize.is_parametrized(module, name):
        return []
    held: Any = module.parametrizations
    return [norm for norm in held[name] if isinstance(norm, ConvSpectralNorm)]


def _no_autocast(weight: Tensor) -> AbstractContextManager[Any]:
    kind = weight.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def conv_spectral_norm(
    module: nn.Module,
    name: str = "weight",
    input_shape: Size | None = None,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    *,
    scale: float | Tensor = 1.0,
    bound: float | None = None,
) -> nn.Module:
    r"""Normalizes a convolution's weight by the norm of the convolution itself: SN_Conv.

    .. math:: \bar W = \mathrm{scale} \cdot W / \sigma, \qquad \sigma = \max_x |W * x| / |x|

    over inputs ``x`` of one size, with the layer's stride, padding, padding mode, dilation, groups
    and output padding (Farnia et al. 2018). The reshaped kernel that :func:`fastsn.spectral_norm`
    uses has usually a smaller norm, so a network of SN_Conv layers has smaller outputs and
    gradients: section 4 of the paper finds that it trains worse than SN, and alike with ``scale``
    1.75.

    Each read of the weight in training mode advances the power iteration by ``n_power_iterations``,
    at the cost of two convolutions of one sample each; in evaluation mode sigma is taken at the
    stored vectors. Inputs of other sizes are allowed, and sigma stays that of the first size: on
    larger inputs the layer's norm can be somewhat larger than ``scale``. An ``output_size`` given
    to a transposed convolution's forward does not count.

    Args:
        module: a ``Conv1d``, ``Conv2d``, ``Conv3d``, ``ConvTranspose1d``, ``ConvTranspose2d`` or
            ``ConvTranspose3d`` layer. A linear layer's SN_Conv is its plain SN:
            :func:`fastsn.spectral_norm`.
        name: its weight.
        input_shape: ``(c_in, *size)``, ``(*size)``, or an int for every spatial dimension. Default:
            that of the first forward, before which the weight cannot be read. Give it for
            ``DataParallel`` and ``DistributedDataParallel``, which must know all buffers from the
            start.
        n_power_iterations: iterations per training read.
        eps: lower bound of the norms the vectors are divided by.
        scale: a number, or a 0-d tensor that may need gradients (an ``nn.Parameter`` becomes one of
            the layer's parameters; the same one may serve several layers).
        bound: soft normalization, ``scale * W / max(1, sigma / bound)``: a layer whose norm is
            below the bound stays as it is (Gouk et al. 2018; residual flows, DUE).

    Returns:
        ``module``, whose ``name`` is now a property; the parameter is
        ``module.parametrizations.<name>.original``, the vectors are the buffers
        ``parametrizations.<name>.0._u`` and ``_v``.

    Raises:
        TypeError: another kind of module, or a weight that is not real.
        ValueError: no such parameter, an uninitialized one, one that has this normalization
            already, an input shape that does not fit, other options out of range. The module is
            unchanged.

    Example::

        >>> layer = nn.Conv2d(3, 64, 4, stride=2, padding=1)
        >>> layer = fastsn.conv_spectral_norm(layer, input_shape=(32, 32), scale=1.75)
        >>> layer(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 64, 16, 16])
    """
    if not is_conv(module):
        raise TypeError(
            "expected a convolution layer (Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d), "
            f"got {type(module).__name__}: use fastsn.spectral_norm, exact for linear layers"
        )
    if isinstance(n_power_iterations, bool) or not isinstance(n_power_iterations, int):
        raise TypeError(f"expected n_power_iterations to be an int, got {n_power_iterations!r}")
    given: Any = scale
    if isinstance(given, str):
        raise TypeError(f"expected scale to be a number or a 0-d tensor, got {scale!r}")
    check_options(n_power_iterations, eps, scale, "forward", bound)
    if _norms(module, name):
        raise ValueError(
            f"expected '{name}' of {module} without conv_spectral_norm, got one that has it"
        )
    with torch.no_grad():
        weight = check_weight(module, name)
    if weight.is_complex():
        raise TypeError(f"expected '{name}' of {module} to be real, got {weight.dtype}")
    conv = ConvMap.of_module(module, weight.shape)
    shape = None if input_shape is None else conv.input_shape(input_shape)
    norm = ConvSpectralNorm(weight, conv, shape, n_power_iterations, eps, scale=scale, bound=bound)
    # Unsafe means unchecked: the check would read the weight, which may not have its size yet.
    parametrize.register_parametrization(module, name, norm, unsafe=True)
    adapt_class(module)
    if shape is None:
        _LearnInputShape(module, name)
    return module
