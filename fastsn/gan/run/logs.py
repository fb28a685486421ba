"""What a run says while it trains: rows on the disk, TensorBoard, and a line for people."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsn.gan.config import ConfigError
from fastsn.gan.run.folder import TABLES, RunDir

__all__ = ["Log", "memory_in_use", "progress", "require_tensorboard"]

#: Seconds between two lines where there is no terminal.
QUIET = 15.0


class Log:
    """Tables, TensorBoard and progress of one run; only its first process has one.

    Args:
        run: an open folder.
        total: iterations in all.
        step: where the run begins or goes on.
        tensorboard: also write TensorBoard files.
        show: a progress bar, or lines where there is no terminal.
    """

    def __init__(
        self, run: RunDir, total: int, step: int, *, tensorboard: bool, show: bool = True
    ) -> None:
        self._tables = {name: run.table(name) for name in TABLES}
        self._board = _summary_writer(run.path / "tensorboard", step) if tensorboard else None
        self._total, self._show = total, show
        self._bar = _bar(total, step) if show and sys.stderr.isatty() else None
        self._said = 0.0
        self._clock, self._last = time.perf_counter(), step

    def losses(self, step: int, row: dict[str, Any], images_per_step: int) -> None:
        """A row of ``log.jsonl``: losses, and the speed since the last one."""
        now = time.perf_counter()
        rate = (step - self._last) / max(now - self._clock, 1e-9)
        self._clock, self._last = now, step
        speed = {
            "steps_per_s": round(rate, 3),
            "images_per_s": round(rate * images_per_step, 1),
            "memory_mib": round(memory_in_use() / 2**20, 1),
        }
        self._tables["log.jsonl"].write({"step": step, **row, **speed})
        self._scalars("train", step, {**row, **speed})
        self._progress(step, rate, row)

    def diagnostics(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Rows of ``diagnostics.jsonl``, one for each layer and one for the whole."""
        for row in rows:
            self._tables["diagnostics.jsonl"].write({"step": step, **row})
            self._scalars(f"diagnostics/{row['layer']}", step, row)

    def metrics(self, step: int, row: dict[str, Any]) -> None:
        """A row of ``metrics.jsonl``."""
        self._tables["metrics.jsonl"].write({"step": step, **row})
        self._scalars("metrics", step, row)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        self.say(f"step {step}: {shown}")

    def images(self, step: int, grid: Tensor) -> None:
        """A grid of samples ``uint8 [c, h, w]`` for TensorBoard."""
        if self._board is not None:
            self._board.add_image("samples", grid, step)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Leaves the time of the block out of the speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - start

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def sync(self) -> None:
        """Returns when all rows are on the disk: before the checkpoint they belong to."""
        for table in self._tables.values():
            table.sync()

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()

    def _scalars(self, group: str, step: int, row: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._board.add_scalar(f"{group}/{name}", value, step)

    def _progress(self, step: int, rate: float, row: dict[str, Any]) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if isinstance(v, float)})
            return
        now = time.monotonic()
        if now - self._said >= QUIET or step == self._total:
            self._said = now
            shown = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
            self.say(f"step {step}/{self._total}  {shown}  {rate:.1f} it/s")


def progress(parts: Iterable[Any], what: str, size: int, total: int) -> Iterator[Any]:
    """``parts`` of ``size`` things each, with what is done and the time left: a bar on a terminal,
    elsewhere a line now and then, if it takes long."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, total=total, file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
            for part in parts:
                yield part
                bar.update(min(size, total - bar.n))
        return
    start = said = time.monotonic()
    for number, part in enumerate(parts, start=1):
        yield part
        now, done = time.monotonic(), min(number * size, total)
        if now - said >= QUIET and done < total:
            said = now
            left = (now - start) * (total - done) / done
            sys.stderr.write(f"{what}: {done:,} of {total:,}, {left:.0f} s left\n")
            sys.stderr.flush()


def _bar(total: int, step: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=step, unit="it", file=sys.stderr, dynamic_ncols=True)


def require_tensorboard() -> None:
    """Raises ConfigError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "log.tensorboard: expected the package tensorboard, got none: "
            "pip install 'fastsn[gan]', or set it to false"
        )


def _summary_writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # A resumed run writes these steps anew.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def memory_in_use() -> int:
    """Bytes: the peak on the GPU, or this process's peak on the CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
