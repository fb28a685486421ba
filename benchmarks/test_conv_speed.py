"""The norm of a convolution itself: SN_Conv's one iteration, beside norms found from nothing.

All for inputs of one size. SN_Conv tracks the norm of the layer's own, zero-padded convolution with
one convolution and its transpose per forward; the Fourier norm (Sedghi et al. 2019) and the Gram
iteration's upper bound of it (Delattre et al. 2023) are those of the circular one, and need no
history.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import fastsn
from benchmarks.timing import seconds_of, synchronize
from fastsn.analysis import conv_norm

#: (channels out, channels in, input size) of 3x3 convolutions; on a CPU only the first is timed.
SHAPES = ((64, 64, 32), (256, 128, 16), (512, 512, 8))
SMALL = ((4, 3, 6), (6, 4, 5), (3, 3, 4))

#: Power iterations before SN_Conv's sigma is compared with the exact one.
WARM_UP = 300

GRAM_ITERATIONS = 6


def transfer_matrices(weight: Tensor, size: int) -> Tensor:
    """``[size, size // 2 + 1, out, in]``: the circular convolution, one matrix per frequency."""
    return torch.fft.rfft2(weight, s=(size, size)).permute(2, 3, 0, 1)


def fourier_norm(weight: Tensor, size: int) -> Tensor:
    """Exact, by SVD of every frequency's matrix."""
    return torch.linalg.matrix_norm(transfer_matrices(weight, size), ord=2).max()


def gram_bound(weight: Tensor, size: int) -> Tensor:
    """``||G_t||_F^(1 / 2^t)`` with ``G_0`` the matrices and ``G_(t+1) = G_t^H G_t``, rescaled."""
    matrices = transfer_matrices(weight, size)
    log_scale = torch.zeros(matrices.shape[:2], device=weight.device)
    for _ in range(GRAM_ITERATIONS):
        lengths = torch.linalg.matrix_norm(matrices, keepdim=True)
        matrices = matrices / lengths
        log_scale = 2 * (log_scale + lengths[..., 0, 0].log())
        matrices = matrices.mH @ matrices
    log_norms = torch.linalg.matrix_norm(matrices).log() + log_scale
    return (log_norms / 2**GRAM_ITERATIONS).max().exp()


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=["x".join(map(str, s)) for s in SHAPES])
@pytest.mark.parametrize("method", ["sn_conv", "fourier", "gram", "sn"])
def test_conv_norm_speed(
    benchmark: BenchmarkFixture, device: torch.device, index: int, method: str
) -> None:
    if benchmark.enabled and device.type == "cpu" and index > 0:
        pytest.skip("this convolution is timed on GPUs only: --device cuda")
    out, into, size = (SHAPES if benchmark.enabled else SMALL)[index]
    torch.manual_seed(0)
    layer = nn.Conv2d(into, out, 3, padding=1, device=device)
    weight = layer.weight.detach().clone()
    run, error = _prepare(method, layer, weight, size)
    benchmark.extra_info.update(
        workload=f"conv-{out}x{into}-{size}", mode="norm", contender=method, max_error=error
    )
    rounds = 1
    if benchmark.enabled:
        rounds = min(max(int(1.0 / seconds_of(run, device)), 5), 300)
    benchmark.pedantic(partial(_finish, run, device), rounds=rounds, warmup_rounds=2)


def _prepare(
    method: str, layer: nn.Conv2d, weight: Tensor, size: int
) -> tuple[Callable[[], Tensor], float]:
    """What is timed, and how far its norm is from the exact one, checked."""
    if method in ("sn", "sn_conv"):
        if method == "sn":
            fastsn.spectral_norm(layer)
        else:
            fastsn.conv_spectral_norm(layer, input_shape=(size, size))
        for _ in range(WARM_UP):
            weight_sn = layer.weight
        sigma = float((weight.norm() / weight_sn.detach().norm()).cpu())
        if method == "sn":
            exact = float(torch.linalg.matrix_norm(weight.flatten(1).double(), ord=2))
        else:
            exact = conv_norm(weight.cpu(), (size, size), padding=1)
        assert sigma == pytest.approx(exact, rel=1e-2)
        return lambda: layer.weight, abs(sigma / exact - 1)
    exact = float(fourier_norm(weight.double(), size))
    if method == "fourier":
        found = float(fourier_norm(weight, size))
        assert found == pytest.approx(exact, rel=1e-4)
        return lambda: fourier_norm(weight, size), abs(found / exact - 1)
    bound = float(gram_bound(weight, size))
    assert exact * (1 - 1e-5) <= bound <= exact * 1.1
    # the zero-padded convolution is a part of a circular one: of no larger norm at this size + 2
    padded = float(gram_bound(weight.double(), size + 2))
    assert conv_norm(weight.cpu(), (size, size), padding=1) <= padded * (1 + 1e-9)
    return lambda: gram_bound(weight, size), abs(bound / exact - 1)


def _finish(run: Callable[[], Tensor], device: torch.device) -> None:
    run()
    synchronize(device)
