"""Records of runs that never ran, with numbers that a test can compute by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsn.gan.config import from_dict
from paper.records import Record

#: Gradient norm, spectral norm of the raw kernel and of the convolution, divisor, variance.
LAYERS = ("convs.0.weight", "convs.1.weight", "fc.weight")


def record(
    name: str,
    seed: int = 0,
    *,
    score: Mapping[int, Any] | None = None,
    distance: Mapping[int, Any] | None = None,
    whole: Mapping[int, Mapping[str, Any]] | None = None,
    layers: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    diverged_at: int | None = None,
    steps: int = 100,
    samples: Path | None = None,
) -> Record:
    """A record with these values by step; the layers' are by step and in the order of LAYERS."""
    config = from_dict(
        {
            "train": {"steps": steps, "seed": seed},
            "eval": {"extractor": "classifier"},
        }
    )
    score, distance = score or {}, distance or {}
    metrics = [
        {"step": step, "frechet_2k_2k": distance.get(step), "score_2k_s10": score.get(step)}
        for step in sorted({*score, *distance})
    ]
    diagnostics = [
        {"step": step, "layer": layer, **cells}
        for step, rows in (layers or {}).items()
        for layer, cells in zip(LAYERS, rows, strict=False)
    ]
    diagnostics += [
        {"step": step, "layer": "all", **cells} for step, cells in (whole or {}).items()
    ]
    end = {"event": "stop", "step": steps, "reason": "finished", "why": None}
    if diverged_at is not None:
        end |= {"step": diverged_at, "reason": "diverged", "why": "nan in a weight"}
    environment = {"fastsn": "0", "torch": "0", "python": "0", "gpus": []}
    return Record(name, config, environment, [], diagnostics, metrics, [end], samples)
