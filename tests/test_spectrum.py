"""Several singular values with errors, against SVDs in float64, and what monitors write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import small_cnn, state
from torch import Tensor, nn

import fastsn
from fastsn.analysis import SpectrumMonitor, conv_matrix, log_sigmas, singular_values


def exact(matrix: Tensor, k: int) -> Tensor:
    return torch.linalg.svdvals(matrix.detach().double())[:k]


def covers(result: Any, matrix: Tensor) -> bool:
    """Whether every error is a bound, and every value one from below."""
    every = torch.linalg.svdvals(matrix.detach().double())
    return all(
        float((every - value).abs().min()) <= error and value <= float(every[i]) * (1 + 1e-14)
        for i, (value, error) in enumerate(zip(result.values, result.errors, strict=True))
    )


LAYERS = {
    "linear": nn.Linear(20, 30),
    "conv": nn.Conv2d(5, 12, 3),
    "transposed": nn.ConvTranspose2d(6, 4, 3),
    "embedding": nn.Embedding(40, 7),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("k", [1, 4])
def test_values_are_those_of_the_svd(name: str, k: int) -> None:
    layer = LAYERS[name]
    matrix = fastsn.analysis.unfold(layer.weight, 1 if name == "transposed" else 0)
    result = singular_values(layer, k)
    torch.testing.assert_close(torch.tensor(result.values).double(), exact(matrix, k).double())
    assert len(result.values) == len(result.errors) == k
    assert max(result.errors) <= 1e-5 * result.values[0] and covers(result, matrix)
    assert singular_values(layer, k) == result  # the same numbers every time


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(3, 2, 4, padding=2, padding_mode="circular"),
        nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1),
    ],
    ids=["plain", "strided groups", "circular", "transposed"],
)
def test_convolutions_as_linear_maps(conv: Any) -> None:
    options = {
        "stride": conv.stride, "padding": conv.padding, "groups": conv.groups,
        "padding_mode": conv.padding_mode, "transposed": conv.transposed,
        "output_padding": conv.output_padding,
    }  # fmt: skip
    matrix = conv_matrix(conv.weight.double(), 6, **options)  # type: ignore[arg-type]
    result = singular_values(conv, 5, input_size=6)
    torch.testing.assert_close(
        torch.tensor(result.values, dtype=torch.float64), exact(matrix, 5), rtol=1e-8, atol=0
    )
    assert covers(result, matrix)


def test_errors_are_bounds_before_it_has_converged() -> None:
    layer = nn.Linear(60, 60)
    with pytest.warns(RuntimeWarning, match="did not converge in 2 iterations"):
        early = singular_values(layer, 6, max_iterations=2)
    assert early.iterations == 2 and max(early.errors) > 1e-3 and covers(early, layer.weight)


def test_normalized_weight_and_parameter() -> None:
    layer = fastsn.spectral_norm(nn.Linear(8, 6), n_power_iterations=50)
    before = state(layer)
    raw = layer.parametrizations.weight.original
    ours = singular_values(layer, 3)
    assert abs(ours.values[0] - 1) < 1e-3
    theirs = singular_values(layer, 3, normalized=False)
    torch.testing.assert_close(torch.tensor(theirs.values).double(), exact(raw, 3))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    hooked = nn.utils.spectral_norm(nn.Linear(8, 6))
    plain = hooked.weight_orig
    found = singular_values(hooked, 2, normalized=False)
    torch.testing.assert_close(torch.tensor(found.values).double(), exact(plain, 2))


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_extreme_and_degenerate_weights(factor: float) -> None:
    layer = nn.Linear(8, 6)
    with torch.no_grad():
        layer.weight.mul_(factor)
    result = singular_values(layer, 2)
    expected = exact(layer.weight, 2)
    torch.testing.assert_close(torch.tensor(result.values).double() / factor, expected / factor)
    nn.init.zeros_(layer.weight)
    assert singular_values(layer, 2)[:2] == ((0.0, 0.0), (0.0, 0.0))
    nn.init.constant_(layer.weight, float("inf"))
    assert all(value != value for value in singular_values(layer, 2).values)
    with torch.no_grad():
        layer.weight.copy_(torch.outer(torch.arange(1.0, 7), torch.ones(8)))
    first, second = singular_values(layer, 2).values
    assert abs(first - float(layer.weight.detach().norm())) < 1e-5 and second < 1e-9 * first


class Writer:
    """Keeps what TensorBoard's writer would write."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert isinstance(value, float)
        self.scalars[tag, step] = value


def test_monitor_follows_weights_that_change() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn")
    monitor = SpectrumMonitor(group, k=3)
    before = state(model)
    weight = model[2].parametrizations.weight.original
    for _ in range(60):
        with torch.no_grad():
            weight.mul_(1.001)
        results = monitor.update()
    for dim, label in ((0, "2.weight"), (1, "2.weight (dim 1)")):
        matrix = fastsn.analysis.unfold(weight, dim)
        assert covers(results[label], matrix) and results[label].iterations == 60
        torch.testing.assert_close(
            torch.tensor(results[label].values).double(), exact(matrix, 3), rtol=1e-4, atol=0
        )
    assert len(results["7.weight"].values) == 1  # a matrix with one row
    assert "7.weight (dim 1)" not in results
    keys = [key for key in before if "2.parametrizations.weight.original" not in key]
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in keys)


def test_monitor_of_a_convolution_as_a_map_and_of_tied_and_recurrent_weights() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3, padding=1), "rnn": nn.GRU(4, 6)})
    group = fastsn.apply(model, "sn")
    monitor = SpectrumMonitor(group, 2, iterations=200, input_sizes={"conv.weight": 5})
    results = monitor.update()
    conv = model["conv"].parametrizations.weight.original
    matrix = conv_matrix(conv.double(), 5, padding=1)
    torch.testing.assert_close(
        torch.tensor(results["conv.weight"].values).double(), exact(matrix, 2)
    )
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0"} < set(results)


def test_what_is_written() -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn")
    writer = Writer()
    written = log_sigmas(writer, group, 7)
    sigmas = group.sigmas()
    assert writer.scalars == {(tag, 7): value for tag, value in written.items()}
    assert written == {f"sigma/{label}": float(sigma) for label, sigma in sigmas.items()}
    parts = log_sigmas(writer, group, 8, "part", per_unfolding=True)
    assert parts["part/0.weight/1"] == float(group.sigmas(per_unfolding=True)["0.weight"][1])
    assert "part/7.weight/1" not in parts
    monitor = SpectrumMonitor(group, 2)
    monitor.log(writer, 9)
    assert ("singular_values/0.weight/1", 9) in writer.scalars
    assert writer.scalars["singular_values/7.weight/0", 9] > 0


def test_tensorboard_reads_it(tmp_path: Any) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    group = fastsn.apply(small_cnn(), "sn")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        log_sigmas(writer, group, 0)
        SpectrumMonitor(group, 2).log(writer, 0)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((nn.Linear(3, 4), 0), {}, ValueError, "k to be at least 1, got 0"),
        ((nn.Linear(3, 4), 4), {}, ValueError, "smaller side of the 4 x 3 matrix, got 4"),
        ((nn.Linear(3, 4), 1.0), {}, TypeError, "k to be an int, got 1.0"),
        ((nn.Linear(3, 4), True), {}, TypeError, "k to be an int, got True"),
        ((nn.Linear(3, 4),), {"tol": 0.0}, ValueError, "tol > 0"),
        ((nn.Linear(3, 4),), {"max_iterations": 0}, ValueError, "max_iterations to be at least 1"),
        ((nn.Linear(3, 4),), {"name": "wait"}, ValueError, "no parameter or buffer with name"),
        ((nn.Linear(3, 4),), {"name": "bias"}, ValueError, "two dimensions or more"),
        ((nn.Linear(3, 4),), {"dim": 2}, ValueError, r"dim in \[-2, 1\], got 2"),
        ((nn.Linear(3, 4),), {"input_size": 8}, (TypeError, ValueError), "expected"),
        ((nn.Conv2d(3, 4, 3),), {"input_size": (2, 8, 8)}, ValueError, "input shape"),
        ((nn.Conv2d(3, 4, 3),), {"input_size": 2}, ValueError, "input size the kernel"),
        ((nn.LazyLinear(3),), {}, ValueError, "lazy"),
        ((nn.Linear(3, 4, dtype=torch.complex64),), {}, ValueError, "real"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        singular_values(*arguments, **options)


def test_bad_arguments_of_monitors() -> None:
    group = fastsn.apply(small_cnn(), "sn")
    with pytest.raises(TypeError, match="expected a group"):
        SpectrumMonitor(group.model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations to be at least 1"):
        SpectrumMonitor(group, iterations=0)
    with pytest.raises(ValueError, match=r"got \['0.wait'\]"):
        SpectrumMonitor(group, input_sizes={"0.wait": 8})
    with pytest.raises(TypeError, match="add_scalar"):
        log_sigmas(print, group, 0)
    with pytest.raises(TypeError, match="add_scalar"):
        SpectrumMonitor(group).log(None, 0)
    with pytest.raises(TypeError, match="expected a group"):
        log_sigmas(Writer(), group.model, 0)  # type: ignore[arg-type]
