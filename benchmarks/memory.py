"""Peak extra memory of one forward and one backward: ``python -m benchmarks.memory fastsn cnn``.

Runs in a process of its own and reads the peak of its resident memory (Linux), so that everything
counts: results, saved tensors, workspaces, copies. Prints one line of JSON, in bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

__all__ = ["measure", "unsupported_reasons"]

ROOT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def unsupported_reasons() -> list[str]:
    """Why peak memory cannot be measured here."""
    if STATUS.exists() and CLEAR_REFS.exists():
        return []
    return ["expected Linux's /proc/self/status and /proc/self/clear_refs, got none"]


def measure(contender: str, workload: str) -> dict[str, int]:
    """Bytes of the weights, and beyond what was there before at the peaks of both directions."""
    # With a fixed threshold glibc gives large blocks back when they are freed: reused memory would
    # not show in the peak.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", contender, workload]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"expected {field} in {STATUS}, got none")


def _reset_peak() -> int:
    CLEAR_REFS.write_text("5")
    return _resident("VmRSS")


def _main(contender: str, workload: str) -> None:
    from benchmarks.peers import CONTENDERS, Weights
    from benchmarks.workloads import make_case

    torch.set_num_threads(2)
    case = make_case(workload)
    weights = Weights(case.model)
    read, originals, *_ = CONTENDERS[contender].install(weights, case)
    # the first call also loads code and starts threads
    torch.autograd.grad(read(), originals, case.grads)

    before = _reset_peak()
    weights_sn = read()
    forward = _resident("VmHWM") - before
    before = _reset_peak()
    grads = torch.autograd.grad(weights_sn, originals, case.grads)
    backward = _resident("VmHWM") - before
    if len(grads) != len(weights_sn):
        raise AssertionError("expected a gradient for every weight")
    print(json.dumps({"weights": case.n_bytes, "forward": forward, "backward": backward}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
