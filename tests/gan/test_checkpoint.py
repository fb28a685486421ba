"""Checkpoints: whole or not there, and refused by name when they are not ours."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same_run, events, last_state, run, start, tiny

from fastsn.gan import cli
from fastsn.gan.loop.training import train
from fastsn.gan.measure.sampling import save_png
from fastsn.gan.run import checkpoint
from fastsn.gan.run.checkpoint import CheckpointError
from fastsn.gan.run.folder import RunDir, RunDirError
from fastsn.gan.run.jsonl import JsonLines, read_rows


def state(step: int = 3) -> dict[str, Any]:
    values = {name: kind() for name, kind in checkpoint.ENTRIES.items() if kind is not torch.Tensor}
    return {**values, "step": step, "sums": torch.arange(10.0)}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.step_path(tmp_path, 3)
    checkpoint.save(path, checkpoint.to_bytes(state()))
    loaded = checkpoint.load(path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["sums"], torch.arange(10.0))
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000003.pt"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        checkpoint.save(checkpoint.step_path(tmp_path, step), checkpoint.to_bytes(state(step)))
    (tmp_path / "best.pt").write_bytes(b"")
    checkpoint.prune(tmp_path, 2)
    assert [step for step, _ in checkpoint.candidates(tmp_path)] == [20, 3]
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(part: float, tmp_path: Path) -> None:
    path = checkpoint.step_path(tmp_path, 3)
    content = checkpoint.to_bytes(state())
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt: expected .*truncated"):
        checkpoint.load(path)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = checkpoint.step_path(tmp_path, 3)
    content = bytearray(checkpoint.to_bytes(state()))
    where = bytes(content).index(torch.arange(10.0).numpy().tobytes())
    content[where + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt: expected an intact .* damage"):
        checkpoint.load(path)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.ones(2)}, "expected a fastsn.gan checkpoint, got None"),
        (torch.ones(2), "expected a fastsn.gan checkpoint, got 'Tensor'"),
        ({"format": checkpoint.FORMAT, "version": 99}, "expected version 1, got 99"),
        (
            {"format": checkpoint.FORMAT, "version": 1, "step": "3"},
            "expected entry 'step' of type int, got str",
        ),
        (Evil(), "expected a checkpoint of tensors and plain containers"),
    ],
)
def test_a_foreign_file_is_refused(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "other.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'other.pt'}: {message}")
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_or_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"step": 1}))
    (tmp_path / "b.pt").write_text("step 1")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a checkpoint"):
            checkpoint.load(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot read .*No such file"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.step_path(tmp_path, 3)
    checkpoint.save(path, checkpoint.to_bytes(state()))
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "open":
        monkeypatch.setitem(vars(checkpoint), "open", full)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint: No space left"):
        checkpoint.save(path, checkpoint.to_bytes({**state(), "best": {"value": 1.0}}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_no_remains_and_is_named(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def tables() -> None:
        RunDir(tmp_path / "run").begin(tiny(), {"name": "noise"}, 0)

    def picture() -> None:
        save_png(tmp_path / "run" / "a.png", torch.zeros(1, 4, 4, dtype=torch.uint8))

    RunDir(tmp_path / "run").path.mkdir()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunDirError, match=r"run/data\.json: cannot write the run: No space"):
        tables()
    with pytest.raises(OSError, match=r"No space left on device: '.*run/a\.png'"):
        picture()
    assert not [*(tmp_path / "run").iterdir()]


# In a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps with checkpoints 10, 20 and 30."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(tiny(checkpoint={"keep": 3}), out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_used(
    copied: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last = checkpoint.step_path(copied / "checkpoints", 30)
    content = last.read_bytes()
    last.write_bytes(content[:-100])
    run(tiny(checkpoint={"keep": 3}), copied)
    assert events(copied)[-3:] == ["refused", "resume", "stop"]
    refused = [row for row in read_rows(copied / "events.jsonl") if row["event"] == "refused"]
    assert "step-00000030.pt: expected" in refused[0]["why"]
    assert (copied / "checkpoints" / "step-00000030.pt.refused").stat().st_size == len(
        content
    ) - 100
    assert_same_run(copied, finished)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(copied: Path) -> None:
    for _, path in checkpoint.candidates(copied / "checkpoints"):
        path.write_bytes(b"nothing")
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != "lock"}
    with pytest.raises(CheckpointError, match="got none that can be read") as caught:
        train(tiny(checkpoint={"keep": 3}), copied, show=False)
    assert str(caught.value).count("truncated or foreign") == 3
    assert {p: p.read_bytes() for p in copied.rglob("*") if p in before} == before


def test_a_checkpoint_of_other_networks_is_refused(copied: Path) -> None:
    path = checkpoint.step_path(copied / "checkpoints", 30)
    other = last_state(copied)
    other["generator"].popitem()
    path.write_bytes(checkpoint.to_bytes({k: other[k] for k in checkpoint.ENTRIES}))
    with pytest.raises(CheckpointError, match=r"step-00000030\.pt: expected a checkpoint of these"):
        train(tiny(checkpoint={"keep": 3}, train={"steps": 40}), copied, show=False)


def test_a_checkpoint_of_another_number_of_processes_is_refused(copied: Path) -> None:
    path = checkpoint.step_path(copied / "checkpoints", 30)
    other = {**last_state(copied), "world_size": 2}
    path.write_bytes(checkpoint.to_bytes({k: other[k] for k in checkpoint.ENTRIES}))
    with pytest.raises(CheckpointError, match="expected a run of 1 process.* checkpoint of 2"):
        train(tiny(checkpoint={"keep": 3}, train={"steps": 40}), copied, show=False)


def test_a_checkpoint_of_other_options_is_refused(copied: Path) -> None:
    """A file that was copied here says by itself what run it is of."""
    path = checkpoint.step_path(copied / "checkpoints", 30)
    before = path.read_bytes()
    for change, said in (
        ({"config": tiny(optim={"lr_d": 0.5}).to_dict()}, "optim.lr_d: 0.5 -> 0.001"),
        ({"data": {**last_state(copied)["data"], "hash": "other"}}, "data: hash 'other' -> "),
        ({"config": {"train": {"stepz": 3}}}, "train.stepz: expected one of"),
    ):
        path.write_bytes(checkpoint.to_bytes({**last_state(copied), **change}))
        with pytest.raises(CheckpointError, match=r"step-00000030\.pt") as caught:
            train(tiny(checkpoint={"keep": 3}, train={"steps": 40}), copied, show=False)
        assert said in str(caught.value)
        path.write_bytes(before)


def test_the_learning_rate_is_the_one_that_is_written(copied: Path) -> None:
    path = checkpoint.step_path(copied / "checkpoints", 30)
    state = last_state(copied)
    state["optimizer_d"]["param_groups"][0]["lr"] = 0.7
    path.write_bytes(checkpoint.to_bytes(state))
    with pytest.raises(CheckpointError, match=r"expected optim\.lr_d 0.001, got 0.7"):
        train(tiny(checkpoint={"keep": 3}, train={"steps": 40}), copied, show=False)


@pytest.mark.parametrize(
    "change",
    [
        {"step": True},
        {"step": -30},
        {"step": 10**30},
        {"best": {"value": "low"}},
        {"best": {"name": 1, "value": 1.0, "step": 2}},
        {"sums": torch.zeros(())},
        {"sums": torch.zeros(1, 99)},
        {"optimizer_g": {}},
        {"optimizer_d": {"state": 3, "param_groups": []}},
        {"generator": {1: 2}},
        {"generator": {"fc.weight": "text"}},
        {"config": {}},
        {"config": {"train": 3}},
        {"image_shape": [1, 28]},
        {"image_shape": ["a", "b", "c"]},
        {"image_shape": [10**9, 10**9, 10**9]},
    ],
    ids=str,
)
def test_odd_fields_are_refused_without_a_traceback(
    change: dict[str, Any], copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.step_path(copied / "checkpoints", 30)
    path.write_bytes(checkpoint.to_bytes({**last_state(copied), **change}))
    file = copied.parent / "config.yaml"
    file.write_text(tiny(checkpoint={"keep": 3}, train={"steps": 40}).to_yaml())
    shapes = "image_shape" in change
    words = ["sample", str(path), "--out", str(copied.parent / "a.png")]
    if not shapes:
        words = ["train", f"--config={file}", f"--out={copied}"]
    step = change.get("step")
    code = cli.main(words)
    output = capfd.readouterr().err
    assert "Traceback" not in output
    if step is None:
        assert code == 2 and "step-00000030.pt" in output
    else:  # the one before it is used
        assert code == 0 and "refused" in output


def test_checkpoints_from_before_the_penalty_go_on(copied: Path, finished: Path) -> None:
    for _, path in checkpoint.candidates(copied / "checkpoints"):
        state = checkpoint.load(path)
        state["sums"] = torch.cat([state["sums"][:, :3], state["sums"][:, 4:]], 1)
        del state["data"]
        path.write_bytes(checkpoint.to_bytes(state))
    path.unlink() if (path := checkpoint.step_path(copied / "checkpoints", 30)).exists() else None
    (copied / "data.json").unlink()
    run(tiny(checkpoint={"keep": 3}), copied)
    assert_same_run(copied, finished)


def _die(*args: Any, **kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("where", ["before rename", "after rename", "half a file", "half a row"])
def test_a_kill_at_the_worst_moments(
    where: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint, or a row of the log, is where the process dies."""
    out = tmp_path / "run"
    config = tiny(checkpoint={"keep": 3})
    with monkeypatch.context() as patch:
        if where == "before rename":
            patch.setattr(os, "replace", _when("step-00000020.pt", _die, os.replace))
        elif where == "after rename":
            patch.setattr(checkpoint, "prune", _die)
        elif where == "half a file":
            patch.setattr(checkpoint, "save", _half_file)
        else:
            patch.setattr(JsonLines, "write", _half_row(JsonLines.write))
        process = start(config, out)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    run(config, out)
    assert not list((out / "checkpoints").glob("*.tmp"))
    assert_same_run(out, finished)


def _when(name: str, then: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def call(source: Any, target: Any) -> Any:
        return (then if Path(target).name == name else otherwise)(source, target)

    return call


def _half_file(path: Path, content: bytes) -> None:
    path.with_name(f"{path.name}.1.tmp").write_bytes(content[: len(content) // 2])
    _die()


def _half_row(write: Callable[..., None]) -> Callable[..., None]:
    def call(self: JsonLines, row: dict[str, Any]) -> None:
        if row.get("step") == 15:
            os.write(self._handle, b'{"step": 15, "loss')
            _die()
        write(self, row)

    return call


def test_a_full_disk_stops_with_a_record_and_keeps_the_last_checkpoint(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny(checkpoint={"keep": 3})
    size = checkpoint.step_path(finished / "checkpoints", 30).stat().st_size
    process = start_limited(config, out, size - 1000)
    assert process == 1
    (row,) = (row for row in read_rows(out / "events.jsonl") if row["event"] == "stop")
    assert row["reason"] == "failed" and "File too large" in row["why"]
    assert checkpoint.candidates(out / "checkpoints") == []
    assert not list((out / "checkpoints").glob("*.tmp"))
    run(config, out)
    assert_same_run(out, finished)


def start_limited(config: Any, out: Path, size: int) -> int | None:
    """The exit code of a training process that may write no file larger than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        process = start(config, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    process.join()
    return process.exitcode


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    first.open()
    with pytest.raises(ValueError, match=r"run: expected no other process in the run, got one"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_rows_are_read_up_to_the_last_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with contextlib.closing(JsonLines(file)) as table:
        table.write({"step": 1, "loss": 0.5})
        table.write({"step": 2, "loss": float("nan")})
    whole = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": "nan"}]
    for torn in (b'{"step": 3', b'{"step": 3}', b""):
        content = file.read_bytes()
        file.write_bytes(content + torn)
        assert read_rows(file) == whole
        file.write_bytes(content)
    file.write_bytes(b"{]\n" + file.read_bytes())
    with pytest.raises(ValueError, match=r"log\.jsonl:1: expected a row of JSON"):
        read_rows(file)
