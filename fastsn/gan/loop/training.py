"""A training run: from a configuration to a folder, once or in as many parts as it takes."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsn.gan.config import Config, ConfigError, differences, from_dict, validate
from fastsn.gan.data.sets import load
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.measure.diagnostics import diagnose
from fastsn.gan.measure.evaluation import best_by
from fastsn.gan.measure.metrics import Evaluator
from fastsn.gan.measure.sampling import generate, grid, save_png
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.folder import RunDir, other_data
from fastsn.gan.run.logs import Log, require_tensorboard
from fastsn.gan.run.process import Asked, settings, until_asked
from fastsn.gan.run.ranks import Ranks, choose_device

__all__ = ["Diverged", "Result", "Stopped", "train"]

#: What explains itself without the name of its type.
EXPECTED = (OSError, CheckpointError, ConfigError)
#: Real images that the input gradient is averaged over.
DIAGNOSED = 64


class Stopped(RuntimeError):
    """A run that failed on its way; the message says when, why, and what is left to go on from."""


class Diverged(Stopped):
    """Losses or weights that are not finite."""


@dataclass(frozen=True)
class Result:
    """How a part of a run ended.

    Attributes:
        step: iterations done, over all parts.
        reason: ``"finished"``, or the signal that asked it to stop, such as ``"SIGTERM"``.
        path: the run's folder.
    """

    step: int
    reason: str
    path: Path


def train(
    config: Config,
    out: str | Path | None = None,
    *,
    resume: bool = True,
    show: bool = True,
    stop: threading.Event | None = None,
) -> Result:
    """Trains until ``train.steps``, going on where the folder's run was left.

    A run that is killed at any moment and started again gives the tensors, tables and grids of one
    that is not, bit for bit (but not the clock's columns, nor the same files of TensorBoard). Under
    torchrun every process calls this. SIGTERM, SIGINT and SIGHUP let it save and stop.

    Args:
        config: all options.
        out: the run's folder; default ``runs/`` and a name made of the options.
        resume: go on with a run that is there; if False, refuse one.
        show: progress on standard error.
        stop: asks the run, when it is set, to save and stop as a signal does.

    Raises:
        ConfigError, DataError, RunDirError, CheckpointError: the run cannot begin; nothing was
            written.
        Stopped: the disk is full, memory is out, a number is not finite (:class:`Diverged`), or
            anything else was raised on the way; ``events.jsonl`` says so, and the checkpoints
            before it are kept.
    """
    config = validate(config)
    ranks = Ranks.from_environment()
    device = choose_device(config.train.device, ranks.local)
    run = RunDir(Path(out) if out is not None else Path("runs") / config.run_name())
    if ranks.first:
        run.check(config, resume=resume)
        if config.log.tensorboard:
            require_tensorboard()
    with settings(config.speed, device), until_asked(stop) as asked:
        images = load(config.data)
        if ranks.first:
            run.check(config, images.fingerprint, resume=resume)
        ranks.start(device)
        try:
            trainer = Trainer(config, images, device, ranks)
            evaluator = None
            if ranks.first and config.eval.every:
                evaluator = Evaluator(config.eval, trainer.images, device)
            return _Run(config, run, trainer, evaluator, ranks, show).go(asked)
        finally:
            ranks.stop()


class _Run:
    """The parts of a run that have met: what to do, where, and with what."""

    def __init__(
        self,
        config: Config,
        run: RunDir,
        trainer: Trainer,
        evaluator: Evaluator | None,
        ranks: Ranks,
        show: bool,
    ) -> None:
        self.config, self.run, self.trainer, self.ranks = config, run, trainer, ranks
        self.evaluator, self.show = evaluator, show
        self.log: Log | None = None
        self.saved = -1

    def go(self, stop: threading.Event) -> Result:
        if self.ranks.first:
            self.run.open()
        try:
            self._restore()
            if self.ranks.first:
                self._start_log()
            reason = self._loop(stop)
            if self.ranks.first:
                self.run.record("stop", self.trainer.step, reason=reason)
            return Result(self.trainer.step, reason, self.run.path)
        finally:
            if self.log is not None:
                self.log.close()
            self.run.close()

    # Beginning

    def _restore(self) -> None:
        """Every rank goes on from the checkpoint that the first one finds."""
        found: tuple[int | None, list[str], str] = (None, [], "")
        state: dict[str, Any] | None = None
        if self.ranks.first:
            try:
                state, refusals = self.run.latest()
                found = (state["step"] if state else None, refusals, "")
            except CheckpointError as error:
                found = (None, [], str(error))
        step, self.refusals, problem = self.ranks.from_first(found)
        if problem:
            raise CheckpointError(problem)
        if step is None:
            return
        path = checkpoint.step_path(self.run.checkpoints, step)
        if state is None:
            state = checkpoint.load(path)
        try:
            self._check_origin(state)
            self.trainer.load_state_dict(state)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        self.saved = step

    def _check_origin(self, state: dict[str, Any]) -> None:
        """A checkpoint says by itself what run it is of; the file beside it may be another's."""
        changed = differences(self.config, from_dict(state["config"], "the checkpoint"))
        if isinstance(state.get("data"), dict):
            changed += other_data(self.trainer.images.fingerprint, state["data"])
        if changed:
            raise CheckpointError(
                "expected a checkpoint of this run, got one of other options (its -> the run's): "
                + "; ".join(changed)
            )

    def _start_log(self) -> None:
        step, config = self.trainer.step, self.config
        self.run.begin(config, self.trainer.images.fingerprint, step)
        for refusal in self.refusals:
            self.run.record("refused", step, why=refusal)
        self.run.record("resume" if self.saved >= 0 else "start", step)
        self.log = Log(
            self.run,
            config.train.steps,
            step,
            tensorboard=config.log.tensorboard,
            show=self.show,
        )
        for refusal in self.refusals:
            self.log.say(f"checkpoint refused, the one before it is used: {refusal}")
        if self.saved >= 0:
            self.log.say(f"{self.run.path}: goes on at step {step}")

    # The loop

    def _loop(self, stop: threading.Event) -> str:
        try:
            return self._iterate(stop)
        except BaseException as error:
            step = self.trainer.step
            kept = (
                f"the checkpoint of step {self.saved}" if self.saved >= 0 else "no checkpoint yet"
            )
            kind = "" if isinstance(error, (*EXPECTED, Diverged)) else f"{type(error).__name__}: "
            why = f"step {step}: {kind}{error}; kept: {kept}"
            if self.ranks.first:
                with contextlib.suppress(OSError):  # a full disk cannot take this either
                    reason = "diverged" if isinstance(error, Diverged) else "failed"
                    self.run.record("stop", step, reason=reason, why=why)
            if not isinstance(error, Exception):  # the second Ctrl-C, sys.exit
                raise
            raise (Diverged if isinstance(error, Diverged) else Stopped)(why) from error

    def _iterate(self, stop: threading.Event) -> str:
        config, trainer = self.config, self.trainer
        while trainer.step < config.train.steps:
            step = trainer.step + 1
            logs = step % config.log.every == 0 or step == config.train.steps
            # Several processes agree when they meet anyway; one alone looks at every iteration.
            asked = stop.is_set()
            if self.ranks.size > 1:
                asked = logs and self.ranks.any(asked, trainer.device)
            last = step == config.train.steps
            # What is evaluated is saved, so that the best of it is.
            evaluates = _due(step, config.eval.every, last)
            saves = asked or evaluates or _due(step, config.checkpoint.every, last)
            trainer.iterate(hold=saves)
            if logs:
                self._log_losses(step)
            self._look(step)
            if saves:
                self._save()
            if asked and step < config.train.steps:
                return str(getattr(stop, "by", Asked.by))
        return "finished"

    def _log_losses(self, step: int) -> None:
        config = self.config
        losses = self.trainer.take_losses()
        bad = [name for name, value in losses.items() if not _is_finite(value)]
        if bad:
            raise Diverged(f"expected finite losses, got {losses[bad[0]]} for {bad[0]}")
        if self.log is not None:
            self.log.losses(step, losses, config.optim.n_dis * config.optim.batch_d)

    def _look(self, step: int) -> None:
        """Samples, diagnostics and metrics, where they are due; by the first rank alone."""
        log, config, trainer = self.log, self.config, self.trainer
        if log is None:
            return
        last = step == config.train.steps
        with log.not_training():
            if _due(step, config.log.diagnostics_every, last):
                real = trainer.images.sample(
                    min(DIAGNOSED, config.optim.batch_d), trainer.image_rng("diagnostics", step)
                )
                rows = diagnose(trainer.nets.discriminator, real.to(trainer.device))
                log.diagnostics(step, rows)
            if _due(step, config.log.samples_every, last):
                samples = generate(trainer.sampled, config.log.n_samples, trainer.rng, "samples")
                picture = grid(samples)
                save_png(self.run.samples / f"step-{step:08d}.png", picture)
                log.images(step, picture)
            if _due(step, config.eval.every, last):
                log.metrics(step, self._evaluate(step))

    def _evaluate(self, step: int) -> dict[str, Any]:
        assert self.evaluator is not None
        trainer = self.trainer
        row = self.evaluator.generator(trainer.sampled, trainer.rng, step)
        name, protocol = best_by(row), json.dumps(row["protocol"], sort_keys=True)
        # What was measured by another protocol is no rival.
        rival = trainer.best.get("protocol", protocol) == protocol
        if not rival or row[name] < trainer.best.get("value", math.inf):
            trainer.best = {"name": name, "value": row[name], "step": step, "protocol": protocol}
        return row

    def _save(self) -> None:
        """A checkpoint of every rank's state, by the first one; never of numbers gone wrong."""
        trainer, step = self.trainer, self.trainer.step
        if not trainer.is_finite():
            raise Diverged("expected finite weights to save, got others")
        state = trainer.state_dict()
        if self.log is not None:
            with self.log.not_training():
                self.log.sync()
                content = checkpoint.to_bytes(state)
                # The best one first: killed between the two, the run does this step again.
                if trainer.best.get("step") == step:
                    checkpoint.save(self.run.checkpoints / "best.pt", content)
                checkpoint.save(checkpoint.step_path(self.run.checkpoints, step), content)
                checkpoint.prune(self.run.checkpoints, self.config.checkpoint.keep)
        self.saved = step


def _due(step: int, every: int, last: bool) -> bool:
    return bool(every) and (step % every == 0 or last)


def _is_finite(value: float) -> bool:
    return value - value == 0
