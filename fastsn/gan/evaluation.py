"""Metrics of a generator, in training and by ``fastsn eval``; :mod:`fastsn.gan.metrics` has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastsn.gan.config import EvalConfig
from fastsn.gan.data import Images
from fastsn.gan.rng import Rng

__all__ = ["Evaluator", "evaluate_source"]


class Evaluator:
    """Evaluates generators against one data set.

    Args:
        options: extractor and sample counts.
        real: the data set.
        device: where features are computed.

    Raises:
        ConfigError, DataError: no such weights, or images that do not fit the extractor.
    """

    def __init__(self, options: EvalConfig, real: Images, device: torch.device) -> None:
        self.options, self.real, self.device = options, real, device
        self._extractor: Any = None
        if options.every:
            self._extractor = self._load()

    def _load(self) -> Any:
        from fastsn.gan.metrics import load_extractor

        extractor = load_extractor(self.options.extractor, self.options.weights, self.device)
        return extractor

    best_by = "frechet"

    def __call__(self, generator: nn.Module, rng: Rng, step: int) -> dict[str, Any]:
        raise NotImplementedError
