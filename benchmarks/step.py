"""What normalization costs in a training step: several methods in one process, in turns.

``python -m benchmarks.step --help`` has the options.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from benchmarks.timing import in_turns
from fastsn.gan.bench import Seconds, recorded
from fastsn.gan.config import (
    Config,
    DataConfig,
    ModelConfig,
    ModelName,
    NormConfig,
    OptimConfig,
    SpeedConfig,
    TrainConfig,
    validate,
)
from fastsn.gan.data.sets import Images
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.nets.models import NETWORKS
from fastsn.gan.run.folder import environment
from fastsn.gan.run.ranks import choose_device

__all__ = ["CONTENDERS", "BenchOptions", "bench_step", "measure", "table"]

#: Title -> how the discriminator is normalized. The first is what the others are compared with.
CONTENDERS = {
    "no normalization": NormConfig("none", update="forward"),
    "torch SN": NormConfig("torch", update="forward"),
    "fastsn SN, per forward": NormConfig("sn", update="forward"),
    "fastsn SN, per step": NormConfig("sn", update="step"),
    "fastsn BSSN, per forward": NormConfig("bssn", 1.2, "forward"),
    "fastsn BSSN, per step": NormConfig("bssn", 1.2, "step"),
}


@dataclass(frozen=True)
class BenchOptions:
    """What is timed, and how long.

    Args:
        model: networks: mnist, cnn32, ...
        width: factor of the number of channels.
        batch: images per update.
        n_dis: discriminator updates per generator update.
        seconds: of each contender, in all.
        device: auto, cpu or cuda.
        bf16: forwards in bfloat16.
        channels_last: channels-last memory format.
        cuda_graphs: one CUDA graph per iteration.
        out: JSON file to write, too.
    """

    model: ModelName = "mnist"
    width: PositiveFloat = 1.0
    batch: PositiveInt = 64
    n_dis: PositiveInt = 1
    seconds: Seconds = 10.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    bf16: bool = False
    channels_last: bool = False
    cuda_graphs: bool = False
    out: str | None = None


def bench_step(options: BenchOptions) -> str:
    """Times the contenders; returns the table, and writes ``options.out``."""
    return table(recorded(lambda: measure(options), options.out))


def measure(options: BenchOptions) -> dict[str, Any]:
    """Median seconds of an iteration for every contender, and what they were measured on.

    The contenders take turns of a few iterations, so that whatever else the machine does meets
    all of them.
    """
    config = _config(options)
    device = choose_device(options.device)
    network = NETWORKS[options.model]
    shape = (512, network.channels, network.resolution, network.resolution)
    pixels = torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    images = Images(pixels, name="noise", description="random pixels")
    steps: dict[str, Callable[[], None]] = {}
    for title, norm in CONTENDERS.items():
        values = {**vars(config), "norm": norm}
        steps[title] = Trainer(Config(**values), images, device).iterate
    for step in steps.values():  # optimizer states, CUDA graphs
        for _ in range(4):
            step()
    times = in_turns(steps, device, seconds=options.seconds * len(steps), min_rounds=2)
    base = statistics.median(times[next(iter(CONTENDERS))])
    rows = []
    for title, taken in times.items():
        # Of a step and the first contender's in the same round: what slows one slows both.
        pairs = zip(taken, times[next(iter(CONTENDERS))], strict=True)
        extra = statistics.median(mine - other for mine, other in pairs)
        rows.append(
            {
                "contender": title,
                "norm": asdict(CONTENDERS[title]),
                "median_s": statistics.median(taken),
                "overhead_s": extra,
                "overhead": extra / base,
                "steps": len(taken),
            }
        )
    machine = environment()
    del machine["command"]  # says nothing about speed, and may name private folders
    return {"options": asdict(options), "environment": machine, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The rows for people."""
    options = result["options"]
    lines = [
        f"training step of {options['model']} (width {options['width']:g}, batch "
        f"{options['batch']}, n_dis {options['n_dis']}), {result['environment']['torch']}, "
        f"{result['environment']['threads']} threads",
        f"{'':<26} {'step':>10} {'overhead':>10} {'':>8}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['contender']:<26} {row['median_s'] * 1e3:>7.2f} ms "
            f"{row['overhead_s'] * 1e3:>7.2f} ms {row['overhead']:>7.1%}"
        )
    return "\n".join(lines)


def _config(options: BenchOptions) -> Config:
    optim = OptimConfig(batch_d=options.batch, batch_g=options.batch, n_dis=options.n_dis)
    return validate(
        Config(
            data=DataConfig(),
            model=ModelConfig(options.model, options.width),
            optim=optim,
            train=TrainConfig(device=options.device),
            speed=SpeedConfig(
                bf16=options.bf16,
                channels_last=options.channels_last,
                cuda_graphs=options.cuda_graphs,
            ),
        )
    )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    print(bench_step(auto_cli(BenchOptions)))
