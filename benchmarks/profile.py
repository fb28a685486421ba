"""Where the time of a BSN forward and backward goes: ``python -m benchmarks.profile``."""

from __future__ import annotations

import copy

import torch

import fastsn
from benchmarks.peers import Weights, make_run
from benchmarks.timing import side_by_side
from benchmarks.workloads import Case, make_case
from fastsn.backends import select_backend
from fastsn.op import normalize
from fastsn.plan import plan_of

__all__ = ["profile"]

CPU = torch.device("cpu")


def profile(case: Case, seconds: float = 4.0) -> None:
    """The parts of a BSN forward and backward, each called alone, in turns with the whole."""
    weights = Weights(copy.deepcopy(case.model))
    group = fastsn.apply(weights, "bsn")
    norms = [member.norm for member in group.members]
    pairs = [pair for norm in norms for pair in norm.vectors()]
    us, vs = [u for u, _ in pairs], [v for _, v in pairs]
    plan = plan_of(
        tuple(norm.shape for norm in norms),
        tuple(norm.dim for norm in norms),
        tuple(norm.kind for norm in norms),
        (1.0,) * len(norms),
        1e-12,
    )
    args = plan, [member.weight.detach() for member in group.members], us, vs, None, 1, None
    backend = select_backend("", CPU, torch.float32, None)
    # compiled kernels put the new vectors into the buffers themselves
    store = (True,) if backend.stores_vectors else ()
    weights_sn, *stats = backend.forward(*args, *store)
    pulled = plan, case.grads, None, weights_sn, *stats, None, torch.float32
    times = side_by_side(
        {
            "forward": make_run("fastsn-bsn", case, "forward"),
            "both": make_run("fastsn-bsn", case, "forward_backward"),
            "kernel": lambda: backend.forward(*args, *store),
            "op": torch.no_grad()(lambda: normalize(*args, "", store=True)),
            "backward kernel": lambda: backend.backward(*pulled),
        },
        CPU,
        seconds=seconds,
    )
    whole, forward, op = times["both"], times["forward"], times["op"]
    rest = whole - forward - times["backward kernel"]
    for name, seconds in (
        (f"forward: kernels of {backend.name}", times["kernel"]),
        ("forward: the op around them", op - times["kernel"]),
        ("forward: hooks, parametrizations, graph", forward - op),
        (f"backward: kernels of {backend.name}", times["backward kernel"]),
        ("backward: autograd and the op", rest),
        ("all", whole),
    ):
        print(f"  {name:<40} {seconds * 1e6:8.0f} us {seconds / whole:7.0%}")


if __name__ == "__main__":
    profile(make_case("cnn"))
