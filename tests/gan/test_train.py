"""Training: the same bits whatever interrupts it, on one rank and on two."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import assert_same_run, events, grids, last_state, rows, run, start, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from fastsn.gan import rng
from fastsn.gan.config import Config, ConfigError
from fastsn.gan.data.sets import load_images
from fastsn.gan.loop.trainer import Trainer
from fastsn.gan.loop.training import Diverged, Stopped, train
from fastsn.gan.run import checkpoint
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.run.jsonl import read_rows
from fastsn.gan.run.process import until_asked

CPU = torch.device("cpu")
MODES = [("bssn", "step"), ("bssn", "forward"), ("torch", "forward"), ("sn", "step")]


def make(**sections: dict[str, Any]) -> Trainer:
    config = tiny(**sections)
    return Trainer(config, load_images(config.data.name, None), CPU)


# Going on


def saved_step(out: Path) -> int:
    return max((step for step, _ in checkpoint.candidates(out / "checkpoints")), default=0)


@pytest.mark.endurance
@pytest.mark.parametrize(("method", "update"), MODES[:3])
def test_ten_kills_leave_no_trace(method: str, update: str, tmp_path: Path) -> None:
    """SIGKILL at random moments of a run without an end, which is then given one: same bytes, and
    no row twice or missing."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def config(steps: int) -> Config:
        return tiny(
            norm={"method": method, "update": update},
            train={"steps": steps, "ema": 0.9},
            optim={"n_dis": 2},
            log={"diagnostics_every": 100, "samples_every": 50},
        )

    moments = random.Random(0)
    for kill in range(10):
        saved = saved_step(killed)
        process = start(config(10**6), killed)
        # Every second one while it still begins, the others while it trains.
        while kill % 2 and saved_step(killed) == saved:
            process.join(0.005)
        process.join(moments.uniform(0, 0.2))
        assert process.exitcode is None
        process.kill()
        process.join()
    steps = saved_step(killed) + 10
    run(config(steps), killed)
    run(config(steps), whole)
    assert_same_run(killed, whole)
    assert [row["step"] for row in rows(killed)] == list(range(5, steps + 1, 5))
    assert events(killed).count("resume") >= 3


@pytest.mark.parametrize(
    ("method", "update", "stop"), [(*mode, 7) for mode in MODES] + [("bssn", "step", 20)]
)
def test_a_part_ended_by_sigterm_goes_on_bit_for_bit(
    method: str, update: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        norm={"method": method, "update": update}, train={"ema": 0.5}, log={"samples_every": 0}
    )
    run(config, tmp_path / "whole")
    iterate = Trainer.iterate

    def interrupted(self: Trainer, *, hold: bool = False) -> None:
        iterate(self, hold=hold)
        if self.step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", interrupted)
        run(config, tmp_path / "parts")
    assert last_state(tmp_path / "parts")["step"] == stop
    assert read_rows(tmp_path / "parts" / "events.jsonl")[-1]["reason"] == "SIGTERM"
    run(config, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_stays_as_it_is_and_can_be_made_longer(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    before = last_state(tmp_path / "run")
    run(tiny(), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]
    run(tiny(train={"steps": 40}), tmp_path / "run")
    assert before["step"] == 30 and last_state(tmp_path / "run")["step"] == 40
    run(tiny(train={"steps": 40}), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_other_options_are_shown_and_refused(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        train(tiny(train={"seed": 4}, norm={"method": "sn"}), tmp_path / "run", show=False)
    assert "norm.method: 'bssn' -> 'sn'\n  train.seed: 0 -> 4" in str(caught.value)
    with pytest.raises(RunDirError, match="expected no run with --resume false, got one"):
        train(tiny(), tmp_path / "run", resume=False, show=False)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


# Two ranks


def torchrun(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """``fastsn train`` on two ranks, which leave the numbers of their processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from fastsn.gan.cli import main\n"
        "torch.set_num_threads(1)\n"
        "Path(__file__).with_name('pid' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [*command, str(script), "train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.endurance
@pytest.mark.parametrize("update", ["step", "forward"])
def test_six_kills_of_two_ranks_leave_no_trace(update: str, tmp_path: Path) -> None:
    """Launcher and ranks die together, at random moments of a run that is then given an end."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    pids = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    file = tmp_path / "config.yaml"

    def begin(steps: int, out: Path) -> subprocess.Popen[str]:
        file.write_text(tiny(norm={"update": update}, train={"steps": steps}).to_yaml())
        for path in pids:
            path.unlink(missing_ok=True)
        return torchrun(tmp_path, "--config", str(file), "--out", str(out))

    def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.005)

    moments = random.Random(1)
    for kill in range(6):
        saved = saved_step(killed)
        process = begin(10**6, killed)
        wait_for(process, lambda: all(path.exists() and path.read_text() for path in pids))
        if kill % 3:  # the others die while they begin
            wait_for(process, lambda saved=saved: saved_step(killed) > saved)
        time.sleep(moments.uniform(0, 0.2))
        assert process.poll() is None
        # torchrun first, which would stop one rank when the other is gone
        for pid in (process.pid, *(int(path.read_text()) for path in pids)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
    steps = saved_step(killed) + 10
    for out in (killed, whole):
        rest = begin(steps, out)
        output, _ = rest.communicate()
        assert rest.returncode == 0, output
    assert_same_run(killed, whole)
    assert last_state(whole)["world_size"] == 2
    assert [row["step"] for row in rows(killed)] == list(range(5, steps + 1, 5))
    assert events(killed).count("resume") >= 2


def test_ranks_draw_different_numbers() -> None:
    draws = [torch.randn(4, generator=rng.Rng(0, CPU, rank)("latent", 3)) for rank in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# Stops


@pytest.mark.parametrize("every", [5, 1000])
def test_divergence_stops_with_a_record_before_a_bad_checkpoint(every: int, tmp_path: Path) -> None:
    """Seen in the losses, and where they are not looked at, in the weights that would be saved."""
    config = tiny(
        norm={"method": "none", "update": "forward"},
        loss={"name": "wgan"},
        optim={"lr_d": 1e30},
        log={"every": every},
        checkpoint={"every": 1},
    )
    with pytest.raises(Diverged, match="expected finite") as caught:
        train(config, tmp_path / "run", show=False)
    row = read_rows(tmp_path / "run" / "events.jsonl")[-1]
    assert row["event"] == "stop" and row["reason"] == "diverged"
    assert row["why"] == str(caught.value)
    for _, path in checkpoint.candidates(tmp_path / "run" / "checkpoints"):
        state = checkpoint.load(path)
        tensors = [*state["generator"].values(), *state["discriminator"].values()]
        assert all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_save_and_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate = Trainer.iterate

    def interrupted(self: Trainer, *, hold: bool = False) -> None:
        iterate(self, hold=hold)
        if self.step == 7:
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", interrupted)
        result = train(tiny(), tmp_path / "run", show=False)
    assert (result.reason, result.step) == (name, 8)
    last = read_rows(tmp_path / "run" / "events.jsonl")[-1]
    assert (last["event"], last["reason"], last["step"]) == ("stop", name, 8)
    assert last_state(tmp_path / "run")["step"] == 8
    run(tiny(), tmp_path / "run")
    run(tiny(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with until_asked() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), until_asked() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        os.kill(os.getpid(), signal.SIGINT)


class Odd(BaseException):
    """No Exception, as KeyboardInterrupt and SystemExit are none."""


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (ZeroDivisionError("odd"), Stopped, "ZeroDivisionError: odd"),
        (MemoryError("no room"), Stopped, "MemoryError: no room"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            Stopped,
            "OutOfMemoryError: CUDA out",
        ),
        (Odd("very"), Odd, "Odd: very"),
    ],
)
def test_every_ending_leaves_an_event(
    error: BaseException,
    raised: type[BaseException],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    iterate = Trainer.iterate

    def failing(self: Trainer, *, hold: bool = False) -> None:
        if self.step == 14:
            raise error
        iterate(self, hold=hold)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", failing)
        with pytest.raises(raised):
            train(tiny(), tmp_path / "run", show=False)
    last = read_rows(tmp_path / "run" / "events.jsonl")[-1]
    assert (last["event"], last["reason"], last["step"]) == ("stop", "failed", 14)
    assert said in last["why"] and "kept: the checkpoint of step 10" in last["why"]
    run(tiny(), tmp_path / "run")
    run(tiny(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_killed_at_its_very_beginning_begins_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("lock", "data.json", "config.yaml.123.tmp"):
        (tmp_path / "run" / name).write_text("")
    train(tiny(train={"steps": 5}), tmp_path / "run", show=False)
    assert not [*(tmp_path / "run").glob("*.tmp")]


def test_other_images_are_shown_and_refused(tmp_path: Path) -> None:
    config = tiny(train={"steps": 5}, data={"name": "folder", "root": str(tmp_path / "a")})
    for name, shade in (("a", 0), ("b", 99)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (8, 8), shade + number).save(tmp_path / name / f"{number}.png")
    train(config, tmp_path / "run", show=False)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    other = replace(config, data=replace(config.data, root=str(tmp_path / "b")))
    with pytest.raises(ConfigError, match=r"its -> yours\):\n  data: hash '\w+' -> '\w+'"):
        train(other, tmp_path / "run", show=False)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    # A run of an earlier version, without a fingerprint, goes on in its own place alone.
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(ConfigError, match=r"data\.root: "):
        train(other, tmp_path / "run", show=False)
    train(replace(config, train=replace(config.train, steps=6)), tmp_path / "run", show=False)
    assert (tmp_path / "run" / "data.json").exists()


def test_the_penalty_is_logged_apart(tmp_path: Path) -> None:
    loss = {"name": "wgan", "gradient_penalty": 10.0}
    run(tiny(loss=loss, norm={"method": "none"}, train={"steps": 5}), tmp_path / "with")
    (row,) = rows(tmp_path / "with")
    assert row["penalty"] > 0
    apart = row["loss_d"] - row["penalty"]
    assert apart == pytest.approx(row["score_fake"] - row["score_real"], abs=1e-4)
    run(tiny(train={"steps": 5}), tmp_path / "without")
    assert "penalty" not in rows(tmp_path / "without")[0]


def test_a_log_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(handle: int, content: bytes) -> int:
        if b'"step": 20, "loss' in content:
            raise OSError(28, "No space left on device")
        return write(handle, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        Stopped, match=r"No space left on device: '.*log\.jsonl'; kept: the checkpoint of step 10"
    ):
        train(tiny(), tmp_path / "run", show=False)
    assert last_state(tmp_path / "run")["step"] == 10
    monkeypatch.undo()
    train(tiny(), tmp_path / "run", show=False)
    assert [row["step"] for row in rows(tmp_path / "run")] == [5, 10, 15, 20, 25, 30]


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(RunDirError, match="/proc/fastsn"):
        train(tiny(), "/proc/fastsn", show=False)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunDirError, match="expected an empty folder or a run, got other files"):
        train(tiny(), tmp_path, show=False)
    with pytest.raises(RunDirError, match=r"letter\.txt: expected a folder for the run"):
        train(tiny(), tmp_path / "letter.txt", show=False)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


# Steps


class Synchronizations(TorchDispatchMode):
    """Notes the operations that would make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition("::")[2].partition(".")[0]
        if name in self.WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["none", "bssn", "torch"])
@pytest.mark.parametrize("penalty", [0.0, 10.0])
def test_an_iteration_never_waits_for_the_device(method: str, penalty: float) -> None:
    trainer = make(
        norm={"method": method, "update": "forward" if method == "torch" else "step"},
        loss={"gradient_penalty": penalty},
        train={"ema": 0.9},
        optim={"n_dis": 2},
    )
    for _ in range(2):
        trainer.iterate()
    with Synchronizations() as noted:
        trainer.iterate(hold=True)
    assert noted.seen == []
    with Synchronizations() as noted:
        trainer.take_losses()
        trainer.is_finite()
    assert noted.seen != []


def test_fastsn_and_torch_give_the_same_losses() -> None:
    """From one seed in "forward" mode; the vectors of both begin as the same random numbers."""
    ours = make(norm={"method": "sn", "update": "forward"})
    theirs = make(norm={"method": "torch", "update": "forward"})
    state = ours.nets.discriminator.state_dict()
    assert theirs.nets.discriminator.state_dict().keys() == state.keys()
    for name, value in theirs.nets.discriminator.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)
    first = None
    for _ in range(20):
        losses = []
        for trainer in (ours, theirs):
            trainer.iterate()
            losses.append(trainer.take_losses())
        for name, value in losses[1].items():
            assert losses[0][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
        first = first or losses[1]["loss_d"]
        # From equal states at every step: rounding grows without bound in the course of a GAN.
        for part in ("generator", "discriminator", "optimizer_g", "optimizer_d"):
            state = copy.deepcopy(getattr(theirs.nets, part).state_dict())
            getattr(ours.nets, part).load_state_dict(state)
    assert abs(first - losses[1]["loss_d"]) > 0.01  # it has learned something meanwhile


def test_the_vectors_advance_once_per_discriminator_update() -> None:
    """What "step" means: three forwards, and a fused optimizer that leaves versions alone."""
    trainer = make(optim={"n_dis": 3}, model={"width": 0.1})
    trainer.iterate()
    discriminator = trainer.nets.discriminator
    norm = trainer._step_norms[1]
    seen = [norm.vectors()[0][0].clone()]

    def note(*unused: Any) -> None:
        u = norm.vectors()[0][0]
        if not torch.equal(u, seen[-1]):
            seen.append(u.clone())

    discriminator.register_forward_hook(note)
    trainer.iterate()
    assert len(seen) == 1 + 3


@pytest.mark.parametrize("n_dis", [1, 3])
def test_reuse_of_z(n_dis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for reuse in (True, False):
        trainer = make(optim={"reuse_z": reuse, "n_dis": n_dis})
        given: list[torch.Tensor] = []
        trainer.nets.generator.register_forward_pre_hook(
            lambda _, args, to=given: to.append(args[0])
        )
        trainer.iterate()
        assert len(given) == n_dis + 1
        assert torch.equal(given[-2], given[-1]) is reuse
        assert not torch.equal(given[0], given[-2]) or n_dis == 1


def test_the_average_of_the_generator() -> None:
    trainer = make(train={"ema": 0.75})
    before = [p.detach().clone() for p in trainer.sampled.parameters()]
    assert trainer.sampled is trainer.nets.average
    trainer.iterate()
    pairs = zip(
        before, trainer.nets.generator.parameters(), trainer.sampled.parameters(), strict=True
    )
    for old, new, mean in pairs:
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * new)
    buffers = zip(trainer.nets.generator.buffers(), trainer.sampled.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in buffers)


def test_the_learning_rate_goes_down() -> None:
    trainer = make(optim={"decay": "linear"}, train={"steps": 4})
    rates = []
    for _ in range(4):
        trainer.iterate()
        rates.append(trainer.nets.optimizer_d.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_training_does_not_depend_on_what_else_draws_random_numbers(tmp_path: Path) -> None:
    first, second = make(), make()
    for _ in range(3):
        first.iterate()
    for _ in range(3):
        torch.randn(17)
        second.iterate()
    assert first.take_losses() == second.take_losses()
    assert make(train={"seed": 1}).rng("real").initial_seed() != first.rng("real").initial_seed()


def test_samples_come_from_the_same_z_and_change_no_training(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "often")
    run(tiny(log={"samples_every": 0}), tmp_path / "never")
    a, b = last_state(tmp_path / "often"), last_state(tmp_path / "never")
    assert all(torch.equal(a["generator"][k], b["generator"][k]) for k in a["generator"])
    assert sorted(grids(tmp_path / "often")) == [f"step-000000{n}.png" for n in (10, 20, 30)]
    assert grids(tmp_path / "never") == {}


# Options for speed


@pytest.mark.parametrize("option", ["cuda_graphs", "tf32"])
def test_options_for_gpus_are_refused_without_one(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"speed\.{option}: expected a CUDA device, got cpu"):
        make(speed={option: True})


@pytest.mark.parametrize("option", ["bf16", "channels_last"])
def test_options_that_work_everywhere(option: str) -> None:
    plain, fast = make(), make(speed={option: True})
    for _ in range(5):
        plain.iterate()
        fast.iterate()
    wanted, got = plain.take_losses(), fast.take_losses()
    assert got == pytest.approx(wanted, abs=0.05)
    if option == "channels_last":
        weights = [
            p for p in fast.nets.discriminator.parameters() if p.ndim == 4 and p.shape[1] > 1
        ]
        assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.slow
# of torch.compile, which looks at every input's .grad and only hides what is printed of it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_networks_give_the_same_losses() -> None:
    plain, compiled = make(), make(speed={"compile": True})
    for _ in range(3):
        plain.iterate()
        compiled.iterate()
    assert compiled.take_losses() == pytest.approx(plain.take_losses(), abs=1e-3)


def test_batches_must_divide_among_ranks() -> None:
    from fastsn.gan.run.ranks import Ranks

    config = tiny(optim={"batch_d": 9})
    with pytest.raises(ConfigError, match=r"optim\.batch_d: expected a multiple .* \(2\), got 9"):
        Trainer(config, load_images("fashion_mini", None), CPU, Ranks(0, 2))
