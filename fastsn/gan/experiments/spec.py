"""What an experiment is: its runs, what is measured in them, and how that is drawn. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Arm"]


@dataclass(frozen=True)
class Arm:
    """One curve or point of a figure: runs with the same options and several seeds.

    Attributes:
        label: in the legend.
        preset: what the runs start from, as ``paper/cifar10_sn``.
        options: changes to it by dotted name, as ``{"norm.scale": 1.75}``.
        series: the line it belongs to, where arms are points of lines; else "".
        x: where it is on that line.
        sizes: the scales of :data:`.scales.SCALES` that it is run at.
    """

    label: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    series: str = ""
    x: float | None = None
    sizes: tuple[str, ...] = ("full", "small", "smoke")
