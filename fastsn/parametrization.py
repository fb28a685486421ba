"""Spectral normalization of one weight, as a torch parametrization.

``layer.weight`` -> :func:`fastsn.frames.read` -> what the forward of a group has computed
(:mod:`fastsn.group`), or a call of the op for this weight alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastsn.checks import check_gradient, check_options, check_weight, claim_weight
from fastsn.forward import State, alone, compute, settings_changed
from fastsn.frames import read
from fastsn.functional import normalize_dim
from fastsn.plan import BSN, SN, SN_V_FIRST, WARM_UP, views_of
from fastsn.state.classes import adapt_class, parametrizations_of
from fastsn.state.layouts import install_load_hook, note_settings
from fastsn.step import look

__all__ = ["SpectralNorm", "spectral_norm"]

_VECTOR_NAMES = (("_u", "_v"), ("_u_in", "_v_in"))

#: ``scale="sigma"``: rounds of warm-up until sigma changes by less than this, relatively.
_ROUNDS, _STILL = 40, 1e-5

#: Attributes that plans are made of.
_SETTINGS = frozenset(
    {"bound", "gradient", "dim", "eps", "kind", "n_power_iterations", "scale", "shape", "update"}
)


class SpectralNorm(nn.Module):
    """Parametrization ``W -> scale * W / sigma(W)``; made by :func:`spectral_norm` and
    :func:`fastsn.apply`.

    Attributes:
        shape: of the weight.
        dim: dimension of the rows, not negative.
        views: the unfoldings; none for a 1-d weight.
        vector_names: buffer names ``(u, v)`` per unfolding.
        kind: which sums make sigma (:mod:`fastsn.plan`).
        n_power_iterations: iterations per training forward.
        eps: lower bound of the norms the vectors are divided by.
        update: ``"forward"`` or ``"step"``, see :func:`fastsn.apply`.
        bound: of a soft norm, ``W / max(1, sigma / bound)``; None for a hard one.
        gradient: ``"constant"``, or ``"through"`` where sigma is differentiated through the last
            iteration.
        scale: float, or a 0-d tensor that may need gradients.
        learns_sigma: its scale is a parameter of its own that began at sigma (``scale="sigma"``).
        state: what belongs to this process alone; copies and pickles begin with a new one.
        _u, _v: vectors ``[rows]``, ``[cols]`` of the unfolding along ``dim``, as torch's. Absent
            for 1-d weights.
        _u_in, _v_in: vectors of BSN's other unfolding.
    """

    dim: int
    kind: int
    n_power_iterations: int
    eps: float
    update: str
    bound: float | None = None  # here for norms from pickles of before
    gradient: str = "constant"
    learns_sigma: bool = False
    scale: float | Tensor
    state: State

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        *,
        kind: int = SN,
        scale: float | Tensor | str = 1.0,
        update: str = "forward",
        bound: float | None = None,
        gradient: str = "constant",
        vectors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Draws the vectors and warms them up, unless they are given, by buffer name."""
        super().__init__()
        self.dim = normalize_dim(dim, weight.ndim)  # first, as in torch
        check_options(n_power_iterations, eps, scale, update, bound)
        check_gradient(gradient)
        if kind == BSN and weight.ndim > 2 and self.dim > 1:
            raise ValueError(
                f"Expected dim to be 0 or 1 for a bidirectional norm, but got dim={self.dim}"
            )
        # In a matrix the two unfoldings are transposes of each other: BSN is SN, and iterates once.
        self.kind = SN if kind == BSN and weight.ndim <= 2 else kind
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.update = update
        self.bound = None if bound is None else float(bound)
        self.gradient = gradient
        self.learns_sigma = isinstance(scale, str)
        _hold_scale(self, 1.0 if isinstance(scale, str) else scale)
        self.state = State(self)
        self.shape = tuple(weight.shape)
        self.views = views_of(self.shape, self.dim, self.kind) if weight.ndim > 1 else ()
        self.vector_names = _VECTOR_NAMES[: len(self.views)]
        if vectors is None:
            self._draw(weight)
        else:
            for name, vector in vectors.items():
                self.register_buffer(name, vector)
        if self.learns_sigma:
            self._begin_at_sigma(weight)

    # Vectors

    def vectors(self) -> list[tuple[Tensor, Tensor]]:
        """The buffers ``(u, v)`` per unfolding."""
        return [(self._buffers[u], self._buffers[v]) for u, v in self.vector_names]  # type: ignore[misc]

    def _draw(self, weight: Tensor) -> None:
        for view, (u_name, v_name) in zip(self.views, self.vector_names, strict=True):
            for name, size in ((u_name, view.rows), (v_name, view.cols)):
                vector = weight.detach().new_empty(size).normal_(0, 1)
                self.register_buffer(name, F.normalize(vector, dim=0, eps=self.eps))
        self.advance(weight, WARM_UP)

    @torch.no_grad()
    def _begin_at_sigma(self, weight: Tensor) -> None:
        """Makes the scale a parameter that is the sigma of ``weight``, so that W_sn is W.

        The vectors converge first: further iterations then leave W_sn where it is.
        """
        weight = weight.detach()
        sigma = self._sigma(weight)
        for _ in range(_ROUNDS if self.views else 0):
            self.advance(weight, WARM_UP)
            before, sigma = sigma, self._sigma(weight)
            if weight.is_meta or not bool((sigma - before).abs() > _STILL * sigma):
                break
        if not weight.is_meta and not (bool(sigma > 0) and bool(torch.isfinite(sigma))):
            raise ValueError(
                "expected a weight with a positive, finite sigma for scale='sigma', got sigma "
                f"{float(sigma)}"
            )
        del self.scale
        self.register_parameter("scale", nn.Parameter(sigma.clone()))
        settings_changed()

    def _sigma(self, weight: Tensor) -> Tensor:
        if not self.views:
            return weight.norm()
        return compute(alone(self), [weight], 0).numbers.sigmas[0]

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Draws the vectors anew and warms them up on ``weight`` (15 iterations), in place."""
        for pair in self.vectors():
            for vector in pair:
                vector.copy_(
                    F.normalize(torch.empty_like(vector).normal_(0, 1), dim=0, eps=self.eps)
                )
        self.advance(weight, WARM_UP)

    @torch.no_grad()
    def advance(self, weight: Tensor, n_power_iterations: int | None = None) -> None:
        """Advances the vectors now, by ``n_power_iterations`` (default: the layer's own number)."""
        n = self.n_power_iterations if n_power_iterations is None else n_power_iterations
        if self.views:
            compute(alone(self), [weight], n)
            self.state.computed = None
            if self.update == "step":
                self.state.sight = look(weight, None)

    def forget_weight(self) -> None:
        """With ``update="step"``: takes the weight for changed at the next forward."""
        self.state.forget_weight()

    # Forward

    #: What the weight's property calls, where nothing else has a part in it.
    read_weight = read

    def forward(self, weight: Tensor) -> Tensor:
        return read(self, weight)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning ``layer.weight = value`` stores ``value`` as the original, as torch does.

        Raises:
            ValueError: ``value`` has another shape than the weight.
        """
        if tuple(value.shape) != self.shape:
            raise ValueError(
                f"expected a weight of shape {self.shape}, got {tuple(value.shape)}: the singular "
                "vectors belong to the old shape; remove the spectral norm first"
            )
        return value

    # State

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SETTINGS:
            settings_changed()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "state"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.state = State(self)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_settings(self, destination, prefix)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.forget_weight()

    def extra_repr(self) -> str:
        name = {SN: "sn", BSN: "bsn", SN_V_FIRST: "sn, v first"}[self.kind]
        scale = "tensor" if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        scale = "sigma" if self.learns_sigma else scale
        text = f"{name}, dim={self.dim}, n_power_iterations={self.n_power_iterations}"
        text += f", scale={scale}"
        text += "" if self.bound is None else f", bound={self.bound:g}"
        return text if self.gradient == "constant" else f"{text}, gradient={self.gradient}"


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    bidirectional: bool = False,
    scale: float | Tensor | str = 1.0,
    bound: float | None = None,
    gradient: str = "constant",
) -> nn.Module:
    r"""Normalizes one weight of a module by its spectral norm: a drop-in for torch's
    ``spectral_norm``.

    .. math:: \bar W = \mathrm{scale} \cdot W / \sigma(W)

    SN (Miyato et al. 2018): :math:`\sigma` is the largest singular value of the weight unfolded
    along ``dim``. With ``bidirectional=True`` BSN (section 5.1 of the BSSN paper): the mean of the
    largest singular values of the unfoldings along dimensions 0 and 1; in a 2-d weight they are
    equal and it is SN. With ``scale`` these are SSN and BSSN (section 5.2). A 1-d weight is divided
    by its Euclidean norm.

    Each access of the weight in training mode advances the singular vectors by
    ``n_power_iterations``; in evaluation mode sigma is taken at the stored vectors. Buffers,
    checkpoints and numbers are torch's. :func:`fastsn.apply` does this for a whole model at once,
    and faster.

    Args:
        module: the layer.
        name: its parameter or buffer.
        n_power_iterations: iterations per training access.
        eps: lower bound of the norms the vectors are divided by.
        dim: dimension of the rows. Default: 1 for transposed convolutions, else 0.
        bidirectional: BSN instead of SN; needs ``dim`` 0 or 1.
        scale: a number, or a 0-d tensor that may need gradients (an ``nn.Parameter`` becomes one of
            the layer's parameters; the same one may serve several layers). ``"sigma"``: a parameter
            of the layer's own that begins at the weight's sigma, so that the layer computes at
            first what it did before (sigma-Reparam, Zhai et al. 2023).
        bound: soft normalization, ``scale * W / max(1, sigma / bound)``: a weight whose sigma is
            below the bound stays as it is (Gouk et al. 2018; SNGP, residual flows).
        gradient: ``"constant"``: the singular vectors are constants (Miyato et al. 2018), as in
            torch. ``"through"``: sigma is differentiated through the last iteration, as in the
            training code of the BSSN paper's authors. In evaluation mode nothing is iterated, and
            both are the same.

    Returns:
        ``module``, whose ``name`` is now a property; the parameter is
        ``module.parametrizations.<name>.original``.

    Raises:
        ValueError: no such parameter, a lazy one not initialized yet, options out of range, tied
            weight; a weight of sigma 0 for ``scale="sigma"``.
        TypeError: an integer weight.
        IndexError: ``dim`` out of range.

    Example::

        >>> layer = fastsn.spectral_norm(nn.Conv2d(3, 64, 3), bidirectional=True, scale=1.2)
        >>> layer(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 64, 6, 6])
    """
    if not isinstance(bidirectional, bool):
        raise TypeError(f"expected bidirectional to be True or False, got {bidirectional!r}")
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
        raise TypeError(f"expected dim to be an int or None, got {dim!r}")
    kind = BSN if bidirectional else SN
    return register(
        module, name, n_power_iterations, eps, dim, kind=kind, scale=scale, bound=bound,
        gradient=gradient,
    )  # fmt: skip


def register(
    module: nn.Module,
    name: str,
    n_power_iterations: int,
    eps: float,
    dim: int | None,
    *,
    kind: int,
    scale: float | Tensor | str,
    update: str = "forward",
    bound: float | None = None,
    gradient: str = "constant",
) -> nn.Module:
    """:func:`spectral_norm` with every option of :class:`SpectralNorm`."""
    weight = check_weight(module, name)
    dim = default_dim(module) if dim is None else dim
    norm = SpectralNorm(
        weight, n_power_iterations, dim, eps, kind=kind, scale=scale, update=update, bound=bound,
        gradient=gradient,
    )  # fmt: skip
    # Registration reads the weight once to check its dtype; autocast would change it.
    with torch.autocast(weight.device.type, enabled=False):
        parametrize.register_parametrization(module, name, norm)
    adopt(module, name, norm)
    return module


def adopt(module: nn.Module, name: str, norm: SpectralNorm) -> None:
    """What a layer needs beside its :class:`SpectralNorm`: pickling, checkpoints, tied weights."""
    adapt_class(module)
    install_load_hook(module)
    held = parametrizations_of(module)[name]
    if held.is_tensor:
        claim_weight(held.original, module, name)


def default_dim(module: nn.Module) -> int:
    """torch's rule: the output channels come second in a transposed convolution."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return 1 if isinstance(module, transposed) else 0


def _hold_scale(norm: SpectralNorm, scale: float | Tensor) -> None:
    if isinstance(scale, nn.Parameter):
        norm.register_parameter("scale", scale)
    elif isinstance(scale, Tensor):
        norm.register_buffer("scale", scale, persistent=False)
    else:
        norm.scale = float(scale)
