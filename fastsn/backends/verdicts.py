"""Verdicts of self-tests on disk: one small file for each card, driver, torch and build of ours.

A folder that cannot be written is no trouble: verdicts then last as long as the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

try:
    import fcntl
except ImportError:  # not on Windows, where each process then decides for itself
    fcntl = None  # type: ignore[assignment]

__all__ = ["File", "fingerprint"]

#: Seconds that a process waits for another one's test before it makes its own.
_PATIENCE = 300.0


def folder() -> Path | None:
    """The user's cache folder for us, whether or not it exists; None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # others are to be ignored, says the XDG specification
        return Path(given) / "fastsn"
    try:
        return Path.home() / ".cache" / "fastsn"
    except RuntimeError:
        return None


def fingerprint(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Everything that a verdict depends on."""
    facts: dict[str, Any] = {"device": device.type, "dtype": dtype, "torch": torch.__version__}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts |= {
            "name": found.name,  # which says MIG where it is a part of a card
            "capability": f"{found.major}.{found.minor}",
            "architecture": getattr(found, "gcnArchName", ""),
            "multiprocessors": found.multi_processor_count,
            "memory": found.total_memory >> 30,
            "MPS": os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "")
            or os.path.exists(
                os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps") + "/control"
            ),
            "CUDA": torch.version.cuda,
            "ROCm": torch.version.hip,
        }
    facts |= {"driver": _driver(), "triton": _version("triton"), "ours": _hash_of_ours()}
    facts |= {"machine": platform.machine()}
    return {name: str(value) for name, value in facts.items()}


@cache
def _driver() -> str:
    for place in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        with suppress(OSError):
            return Path(place).read_text().strip()
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(ask()) if ask is not None and torch.version.cuda else "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@cache
def _hash_of_ours() -> str:
    """Of the sources of our backends and of the extension, as they are on disk."""
    package = Path(__file__).parents[1]
    files = [*package.joinpath("backends").rglob("*.py"), *package.glob("plan.py")]
    files += package.glob("_C_cuda*")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class File:
    """What is on disk for one fingerprint."""

    def __init__(self, facts: dict[str, str]) -> None:
        self._facts = facts
        self._folder = folder()
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        self._name = f"verdict-{key}"

    def read(self, part: str) -> dict[str, Any]:
        """One part of it; empty where there is none, or none that can be believed."""
        if self._folder is None:
            return {}
        try:
            content = json.loads((self._folder / f"{self._name}.json").read_text())
            if content["facts"] != self._facts or not isinstance(content[part], dict):
                return {}
            found = content[part]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        kind = list if part == "reasons" else str
        return found if all(isinstance(value, kind) for value in found.values()) else {}

    def writable(self) -> bool:
        """Whether what is written will be there for others to read."""
        if self._folder is None:
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self._folder, os.W_OK)

    def write(self, parts: dict[str, Any]) -> None:
        """Puts it in place as a whole; silently not where the disk cannot be written."""
        if not self.writable() or self._folder is None:
            return
        place = self._folder / f"{self._name}.json"
        draft = place.with_name(f"{self._name}.{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps({"facts": self._facts, **parts}, indent=1))
            os.replace(draft, place)
        except OSError:  # a full disk, say
            with suppress(OSError):
                draft.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps out other processes of this machine, as far as the disk knows locks."""
        handle = None
        if fcntl is not None and self.writable() and self._folder is not None:
            with suppress(OSError):
                handle = (self._folder / f"{self._name}.lock").open("a")
        try:
            if handle is not None:
                _acquire(handle)
            yield
        finally:
            if handle is not None:
                handle.close()  # and with it the lock

    @staticmethod
    def remove_all() -> int:
        """Removes all verdicts; how many there were."""
        place, count = folder(), 0
        for path in place.glob("verdict-*") if place is not None else ():
            with suppress(OSError):
                path.unlink()
                count += path.suffix == ".json"
        return count


def _acquire(handle: Any) -> None:
    """Waits for the lock, but not for ever: its owner may be stopped."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # a network disk without locks
            return None
    return None
