"""What normalizing all weights of a network costs by itself: fastsn beside torch, in turns.

The short table of ``fastsn bench``; ``benchmarks/step.py`` times training steps.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat, restricted_number_type
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastsn
from fastsn.gan.config import ConfigError, ModelName
from fastsn.gan.nets.models import build
from fastsn.gan.run.folder import environment
from fastsn.gan.run.ranks import choose_device

__all__ = ["BenchOptions", "bench", "in_turns", "measure", "recorded", "table"]

#: An hour is a typing error.
Seconds = restricted_number_type("Seconds", float, [(">", 0), ("<=", 3600)])

MODES = ("forward", "forward + backward", "evaluation")


@dataclass(frozen=True)
class BenchOptions:
    """Whose weights are normalized, and where.

    Args:
        model: network whose discriminator's weights are taken: mnist, cnn32, resnet128, ...
        width: factor of the number of channels.
        seconds: of each method in each mode.
        device: auto, cpu or cuda.
        backend: of fastsn: auto, reference, cpu, triton or cuda.
        out: JSON file to write, too.
    """

    model: ModelName = "cnn32"
    width: PositiveFloat = 1.0
    seconds: Seconds = 0.5  # type: ignore[valid-type]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: str = "auto"
    out: str | None = None


class Weights(nn.Module):
    """A network's layers without the network: its forward reads all weights."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        self.layers = nn.ModuleList(m for m in network.modules() if isinstance(m, kinds))

    def forward(self) -> list[Tensor]:
        layers: list[Any] = list(self.layers)
        return [layer.weight for layer in layers]


def _torch(weights: Weights) -> None:
    for layer in weights.layers:
        parametrizations.spectral_norm(layer)


#: Title -> how it is put on the layers. The first is what the others are compared with.
METHODS: dict[str, Callable[[Weights], Any]] = {
    "torch SN": _torch,
    "fastsn SN": partial(fastsn.apply, method="sn"),
    "fastsn BSN": partial(fastsn.apply, method="bsn"),
}


def bench(options: BenchOptions) -> str:
    """Times the methods; returns the table, and writes ``options.out``."""
    return table(recorded(lambda: measure(options), options.out))


def measure(options: BenchOptions) -> dict[str, Any]:
    """Median seconds of every method in every mode, and what they were measured on.

    Raises:
        ConfigError: an option out of range, or a backend that cannot serve here.
    """
    device = choose_device(options.device)
    start = Weights(build(options.model, width=options.width)[1]).to(device)
    originals = list(start())
    try:
        with fastsn.use_backend(options.backend):
            rows = _rows(start, device, options.seconds)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--backend {options.backend}: {error}") from error
    machine = environment()
    del machine["command"]  # says nothing about speed, and may name private folders
    return {
        "options": asdict(options),
        "environment": machine,
        "weights": len(originals),
        "parameters": sum(weight.numel() for weight in originals),
        "rows": rows,
    }


def _rows(start: Weights, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    rows: list[dict[str, Any]] = [{"method": title} for title in METHODS]
    grads = [torch.randn_like(weight) for weight in start()]
    for mode in MODES:
        runs = {title: _run(put_on, start, grads, mode) for title, put_on in METHODS.items()}
        times = in_turns(runs, wait, seconds)
        for row, taken in zip(rows, times.values(), strict=True):
            row[mode] = statistics.median(taken)
    return rows


def _run(
    put_on: Callable[[Weights], Any], start: Weights, grads: list[Tensor], mode: str
) -> Callable[[], None]:
    weights = copy.deepcopy(start)
    put_on(weights)
    layers: list[Any] = list(weights.layers)
    originals = [layer.parametrizations.weight.original for layer in layers]
    weights.train(mode != "evaluation")

    def run() -> None:
        with torch.set_grad_enabled(mode != "evaluation"):
            weights_sn = weights()
        if mode == "forward + backward":
            torch.autograd.grad(weights_sn, originals, grads)

    return run


def table(result: dict[str, Any]) -> str:
    """The rows for people; in brackets how many times faster than torch's SN."""
    options, first = result["options"], result["rows"][0]
    lines = [
        f"normalizing the {result['weights']} weights ({result['parameters'] / 1e6:.2f} M) of "
        f"{options['model']}'s discriminator once, {result['environment']['torch']}, "
        f"{result['environment']['threads']} threads, medians in turns",
        f"{'':<12}" + "".join(f"{mode:>24}" for mode in MODES),
    ]
    for row in result["rows"]:
        cells = [f"{row[mode] * 1e3:.3f} ms ({first[mode] / row[mode]:4.1f}x)" for mode in MODES]
        lines.append(f"{row['method']:<12}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def recorded(measuring: Callable[[], dict[str, Any]], out: str | None) -> dict[str, Any]:
    """The result of ``measuring``, also written to the JSON file ``out``, if there is one.

    Raises:
        ConfigError: before anything is measured, if ``out`` has no folder.
    """
    if out is not None and not Path(out).parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {out}")
    result = measuring()
    if out is not None:
        Path(out).write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")
    return result


def in_turns(
    steps: dict[str, Callable[[], None]], wait: Callable[[], None], seconds: float
) -> dict[str, list[float]]:
    """Seconds per iteration of every turn."""
    inner = {}
    for title, step in steps.items():
        for _ in range(4):  # optimizer states, CUDA graphs, caches
            step()
        wait()
        start = time.perf_counter()
        step()
        wait()
        # Turns of about 50 ms: long against the clock, short against what disturbs.
        inner[title] = max(1, round(0.05 / max(time.perf_counter() - start, 1e-6)))
    times: dict[str, list[float]] = {title: [] for title in steps}
    end = time.perf_counter() + seconds * len(steps)
    while time.perf_counter() < end or len(times[next(iter(steps))]) < 3:
        for title, step in steps.items():
            start = time.perf_counter()
            for _ in range(inner[title]):
                step()
            wait()
            times[title].append((time.perf_counter() - start) / inner[title])
    return times
