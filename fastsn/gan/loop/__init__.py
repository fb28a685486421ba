"""The training loop."""

from fastsn.gan.loop.training import Diverged, Result, Stopped, train

__all__ = ["Diverged", "Result", "Stopped", "train"]
