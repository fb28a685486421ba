"""A convolution as a linear map: its shapes, its product with a vector, and its transpose.

Without bias and batch a convolution maps arrays ``[c_in, *size]`` linearly to arrays
``[c_out, *size']``. The norm of that map depends on the input size, stride and padding, which the
reshaped kernel does not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ConvMap", "Geometry", "Size", "is_conv"]

Size = int | Sequence[int]


class Geometry(TypedDict, total=False):
    """Keyword arguments that describe a convolution, as those of ``torch.nn.Conv*d``."""

    stride: Size
    padding: Size | str  # elements on both sides, "same" or "valid"
    dilation: Size
    groups: int
    padding_mode: str  # "zeros", "circular", "reflect" or "replicate"
    transposed: bool  # the map of torch.nn.ConvTranspose*d; default False
    output_padding: Size  # transposed convolutions only


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: list[Any] = [None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
_CONV_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE_LAYERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


def is_conv(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's six convolution layers, or derived from one."""
    return isinstance(module, (*_CONV_LAYERS, *_CONV_TRANSPOSE_LAYERS))


@dataclass(frozen=True)
class ConvMap:
    """The geometry of a convolution; tuples have one entry per spatial dimension.

    Made by :meth:`of` or :meth:`of_module`. Weights are ``[c_out, c_in / groups, *kernel_size]``,
    or ``[c_in, c_out / groups, *kernel_size]`` if transposed.
    """

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # elements (before, after)
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def of(cls, weight_shape: Sequence[int], **geometry: Unpack[Geometry]) -> ConvMap:
        """Checks and completes the arguments; ``ValueError`` names the one that does not fit."""
        shape = tuple(int(n) for n in weight_shape)
        dims = len(shape) - 2
        if dims not in _CONV or 0 in shape:
            raise ValueError(
                "expected a convolution weight of 3 to 5 dimensions, none of them empty, "
                f"got shape {shape}"
            )
        unknown = set(geometry) - set(Geometry.__annotations__)
        if unknown:
            raise TypeError(f"expected the arguments of a convolution, got {sorted(unknown)}")
        groups = geometry.get("groups", 1)
        padding_mode = geometry.get("padding_mode", "zeros")
        transposed = geometry.get("transposed", False)
        if groups < 1 or shape[0] % groups:
            raise ValueError(f"expected groups to divide {shape[0]} channels, got groups={groups}")
        modes = _PADDING_MODES[:1] if transposed else _PADDING_MODES
        if padding_mode not in modes:
            raise ValueError(f"expected padding_mode to be one of {modes}, got {padding_mode!r}")
        stride = _sizes("stride", geometry.get("stride", 1), dims, least=1)
        dilation = _sizes("dilation", geometry.get("dilation", 1), dims, least=1)
        extra = _sizes("output_padding", geometry.get("output_padding", 0), dims, least=0)
        if any(extra) and not transposed:
            raise ValueError(f"expected output_padding 0 unless transposed=True, got {extra}")
        if any(o >= max(s, d) for o, s, d in zip(extra, stride, dilation, strict=True)):
            raise ValueError(
                "expected output_padding to be smaller than stride or dilation, "
                f"got output_padding={extra}, stride={stride}, dilation={dilation}"
            )
        padding = geometry.get("padding", 0)
        if isinstance(padding, str):
            pads = _named_padding(padding, shape[2:], stride, dilation, transposed)
        else:
            pads = tuple((n, n) for n in _sizes("padding", padding, dims, least=0))
        return cls(shape, stride, pads, dilation, groups, padding_mode, transposed, extra)

    @classmethod
    def of_module(cls, module: nn.Module, weight_shape: Sequence[int]) -> ConvMap:
        """The map of a convolution layer. Never reads the layer's weight."""
        if not is_conv(module):
            names = [kind.__name__ for kind in (*_CONV_LAYERS, *_CONV_TRANSPOSE_LAYERS)]
            raise TypeError(f"expected one of {', '.join(names)}, got {type(module).__name__}")
        layer: Any = module
        conv = cls.of(
            weight_shape,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            transposed=layer.transposed,
            output_padding=layer.output_padding,
        )
        if len(conv.kernel_size) != len(layer.kernel_size):
            raise ValueError(
                f"expected a convolution weight with {len(layer.kernel_size)} spatial dimensions, "
                f"got shape {conv.weight_shape}"
            )
        return conv

    # Shapes

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.weight_shape[2:]

    @property
    def in_channels(self) -> int:
        return self.weight_shape[0] if self.transposed else self.weight_shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.weight_shape[1] * self.groups if self.transposed else self.weight_shape[0]

    def input_shape(self, size: Size) -> tuple[int, ...]:
        """``(c_in, *size)`` from an int, ``(*size)`` or ``(c_in, *size)``, if it fits."""
        dims = len(self.kernel_size)
        sizes = (size,) * dims if isinstance(size, int) else tuple(size)
        if len(sizes) == dims:
            sizes = (self.in_channels, *sizes)
        positive = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
        if len(sizes) != dims + 1 or not positive or sizes[0] != self.in_channels:
            spatial = ", ".join(["size"] * dims)
            raise ValueError(
                f"expected an input shape ({spatial}) or ({self.in_channels}, {spatial}) of "
                f"positive ints, got {size!r}"
            )
        self.output_shape(sizes)
        return sizes

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """``(c_out, *size')``; ``ValueError`` if kernel or padding does not fit the input."""
        sizes = []
        for dim, n in enumerate(input_shape[1:]):
            reach = self.dilation[dim] * (self.kernel_size[dim] - 1) + 1
            low, high = self.padding[dim]
            limit = {"circular": n, "reflect": n - 1}.get(self.padding_mode, math.inf)
            if max(low, high) > limit:
                raise ValueError(
                    f"expected {self.padding_mode} padding of at most {limit} in spatial dimension "
                    f"{dim} of size {n}, got {max(low, high)}"
                )
            if self.transposed:
                out = (n - 1) * self.stride[dim] - low - high + reach + self.output_padding[dim]
            else:
                out = (n + low + high - reach) // self.stride[dim] + 1
            if out < 1:
                raise ValueError(
                    f"expected an input size the kernel {self.kernel_size} fits, got "
                    f"{tuple(input_shape[1:])}: no output in spatial dimension {dim}"
                )
            sizes.append(out)
        return (self.out_channels, *sizes)

    # Products, over a batch of n vectors

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """``M x``: ``[n, c_in, *size]`` -> ``[n, c_out, *size']``."""
        native, pads = self._split_padding()
        dims = len(self.kernel_size)
        if self.transposed:
            return _CONV_TRANSPOSE[dims](
                x,
                weight,
                None,
                self.stride,
                native,
                self.output_padding,
                self.groups,
                self.dilation,
            )
        return _CONV[dims](
            self._pad(x, pads), weight, None, self.stride, native, self.dilation, self.groups
        )

    def adjoint(self, weight: Tensor, y: Tensor, input_shape: Sequence[int]) -> Tensor:
        """``M^T y``: ``[n, c_out, *size']`` -> ``[n, *input_shape]``."""
        native, pads = self._split_padding()
        dims = len(self.kernel_size)
        if self.transposed:
            x = _CONV[dims](y, weight, None, self.stride, native, self.dilation, self.groups)
            # output_padding >= stride (possible with dilation) makes more positions than the input
            # has.
            for dim, n in enumerate(input_shape[1:], start=2):
                x = x.narrow(dim, 0, n)
            return x
        # Elements at the end of the padded input that no kernel position reaches.
        unread = [
            n + low + high + 2 * native[dim]
            - self.dilation[dim] * (self.kernel_size[dim] - 1) - 1
            - self.stride[dim] * (y.shape[dim + 2] - 1)
            for dim, (n, (low, high)) in enumerate(zip(input_shape[1:], pads, strict=True))
        ]  # fmt: skip
        x = _CONV_TRANSPOSE[dims](
            y, weight, None, self.stride, native, unread, self.groups, self.dilation
        )
        return self._unpad(x, pads)

    def outer(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """``d<u, M v> / dW``, shaped as ``W``, of batches of one; ``M`` is linear in ``W``."""
        native, pads = self._split_padding()
        grads = torch.ops.aten.convolution_backward(
            u, self._pad(v, pads), weight, None, self.stride, native, self.dilation,
            self.transposed, self.output_padding, self.groups, [False, True, False],
        )  # fmt: skip
        return grads[1]

    def _split_padding(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Padding the convolution does itself, and padding to do before it."""
        none = (0,) * len(self.padding)
        if self.padding_mode == "zeros" and all(low == high for low, high in self.padding):
            return tuple(low for low, _ in self.padding), tuple((0, 0) for _ in none)
        return none, self.padding

    def _pad(self, x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
        flat = [n for pair in reversed(pads) for n in pair]  # F.pad starts at the last dimension
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, flat, mode=mode) if any(flat) else x

    def _unpad(self, x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
        """Transpose of :meth:`_pad`: what was copied into the margins is added back.

        In slices: autograd's kernels scatter with atomics on CUDA, and runs would not repeat.
        """
        for dim, (low, high) in enumerate(pads, start=2):
            if low == high == 0:
                continue
            n = x.shape[dim] - low - high
            before, inside, after = x.split((low, n, high), dim)
            x = inside.clone()
            if self.padding_mode == "circular":
                x.narrow(dim, n - low, low).add_(before)
                x.narrow(dim, 0, high).add_(after)
            elif self.padding_mode == "reflect":
                x.narrow(dim, 1, low).add_(before.flip(dim))
                x.narrow(dim, n - 1 - high, high).add_(after.flip(dim))
            elif self.padding_mode == "replicate":
                x.narrow(dim, 0, 1).add_(before.sum(dim, keepdim=True))
                x.narrow(dim, n - 1, 1).add_(after.sum(dim, keepdim=True))
        return x


def _sizes(name: str, value: Size, dims: int, *, least: int) -> tuple[int, ...]:
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) == 1:
        sizes = sizes * dims
    if len(sizes) != dims or any(not isinstance(n, int) or n < least for n in sizes):
        raise ValueError(
            f"expected {name} to be an int or {dims} ints, at least {least}, got {value!r}"
        )
    return sizes


def _named_padding(
    padding: str,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> tuple[tuple[int, int], ...]:
    if padding == "valid" and not transposed:
        return tuple((0, 0) for _ in kernel_size)
    if padding != "same" or transposed or any(s != 1 for s in stride):
        raise ValueError(
            "expected padding to be ints, 'valid', or 'same' with stride 1, "
            f"got padding={padding!r}, stride={tuple(stride)}, transposed={transposed}"
        )
    totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
