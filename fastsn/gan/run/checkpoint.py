"""Checkpoints: written whole or not at all, and read with suspicion.

A file appears under its name only after every byte of it is on the disk (temporary file, fsync,
rename, fsync of the folder). Reading checks the archive's checksums, loads tensors and plain
containers alone (``weights_only``), and refuses what is not of this kind.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "CheckpointError",
    "candidates",
    "load",
    "prune",
    "remove_temporary",
    "replace_file",
    "save",
    "step_path",
    "to_bytes",
]

FORMAT = "fastsn.gan checkpoint"
VERSION = 1
#: Entries of every checkpoint, and their types; ``data``, the images' fingerprint, came later.
ENTRIES: dict[str, type] = {
    "step": int,
    "world_size": int,
    "config": dict,
    "image_shape": list,
    "generator": dict,
    "discriminator": dict,
    "optimizer_g": dict,
    "optimizer_d": dict,
    "ema": dict,
    "sums": torch.Tensor,
    "best": dict,
}

_NAME = re.compile(r"step-(\d{8})\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names the file."""


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}.pt"


def candidates(folder: Path) -> list[tuple[int, Path]]:
    """``(step, path)`` of all checkpoints by name, the last one first; none of them is read."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def to_bytes(state: dict[str, Any]) -> bytes:
    """The file of a state; ``state`` has the entries of :data:`ENTRIES`."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    return buffer.getvalue()


def save(path: Path, content: bytes) -> None:
    """Writes what :func:`to_bytes` gave, replacing what was there at once or not at all.

    Raises:
        CheckpointError: the disk is full, the folder read-only, and so on; ``path`` is as it was.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error.strerror}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Gives ``path`` this content at once or not at all, even if the power fails.

    Raises:
        OSError: the disk is full, and so on; nothing remains, and the error names ``path``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself survives a power failure only once the folder is on the disk.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        CheckpointError: missing, truncated, damaged, or not a checkpoint of this kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: expected an intact checkpoint, got damage in {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path}: cannot read the checkpoint: {reason}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint, got a truncated or foreign file ({error})"
        ) from error
    except Exception as error:  # whatever else the unpickler makes of a foreign file
        first = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: expected a checkpoint of tensors and plain containers, got: {first}"
        ) from error
    _check(path, state)
    return state


def _check(path: Path, state: Any) -> None:
    kind = state.get("format") if isinstance(state, dict) else type(state).__name__
    if kind != FORMAT:
        raise CheckpointError(f"{path}: expected a {FORMAT}, got {kind!r}")
    if state.get("version") != VERSION:
        raise CheckpointError(f"{path}: expected version {VERSION}, got {state.get('version')!r}")
    for name, wanted in ENTRIES.items():
        if not isinstance(state.get(name), wanted):
            raise CheckpointError(
                f"{path}: expected entry '{name}' of type {wanted.__name__}, "
                f"got {type(state.get(name)).__name__}"
            )
    if isinstance(state["step"], bool) or not 0 <= state["step"] < 10**8:
        raise CheckpointError(f"{path}: expected a number of iterations, got {state['step']}")


def prune(folder: Path, keep: int) -> None:
    """Removes all but the last ``keep`` checkpoints."""
    for _, path in candidates(folder)[keep:]:
        path.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Removes what a killed process left half written."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
