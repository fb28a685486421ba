"""Runs that take a second: configurations, comparisons, and processes to be killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from fastsn.gan.config import Config, from_dict
from fastsn.gan.loop.training import train
from fastsn.gan.run import checkpoint
from fastsn.gan.run.jsonl import read_rows

#: What a row of the log says of the machine instead of the training.
MACHINE = {"steps_per_s", "images_per_s", "memory_mib"}


def tiny(**sections: dict[str, Any]) -> Config:
    """A run of 30 steps on shipped images with a few channels; ``sections`` change it."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"width": 0.05},
        "optim": {"batch_d": 8, "batch_g": 8, "lr_g": 1e-3, "lr_d": 1e-3},
        "train": {"steps": 30, "device": "cpu"},
        "log": {
            "every": 5,
            "samples_every": 10,
            "n_samples": 4,
            "diagnostics_every": 0,
            "tensorboard": False,
        },
        "checkpoint": {"every": 10},
    }
    for section, options in sections.items():
        tree[section] = {**tree.get(section, {}), **options}
    return from_dict(tree)


def start(config: Config, out: Path, *, new: bool = False) -> BaseProcess:
    """A process that trains.

    It is forked, which starts in no time and is safe with one thread in it; ``new`` starts one from
    nothing.
    """
    context = multiprocessing.get_context("spawn" if new else "fork")
    process = context.Process(target=_train, args=(config, out))
    process.start()
    return process


def _train(config: Config, out: Path) -> None:
    torch.set_num_threads(1)
    train(config, out, show=False)


def run(config: Config, out: Path) -> None:
    """Trains in a process of its own, as :func:`start` does, and waits for it."""
    process = start(config, out)
    process.join()
    assert process.exitcode == 0


def last_state(out: Path) -> dict[str, Any]:
    return checkpoint.load(checkpoint.candidates(out / "checkpoints")[0][1])


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, tree


def assert_same_run(mine: Path, theirs: Path) -> None:
    """The same bytes in the last checkpoint, and the same rows but for the clock."""
    a, b = dict(leaves(last_state(mine))), dict(leaves(last_state(theirs)))
    assert a.keys() == b.keys()
    tensors = [name for name, value in a.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 20
    assert [name for name in tensors if _bytes(a[name]) != _bytes(b[name])] == []
    assert [name for name in a if name not in tensors and a[name] != b[name]] == []
    for table in ("log.jsonl", "diagnostics.jsonl", "metrics.jsonl"):
        assert rows(mine, table) == rows(theirs, table)
    assert grids(mine) == grids(theirs)


def _bytes(tensor: torch.Tensor) -> bytes:
    return (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.ndim
        else bytes(tensor.reshape(1).view(torch.uint8).tolist())
    )


def rows(out: Path, table: str = "log.jsonl") -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in MACHINE}
        for row in read_rows(out / table)
    ]


def grids(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "samples").iterdir()}


def events(out: Path) -> list[str]:
    return [row["event"] for row in read_rows(out / "events.jsonl")]
