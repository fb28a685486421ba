"""What fastsn does and gains, on this machine, in under a minute: ``python -m benchmarks.demo``.

Every section checks what it shows; the exit status is 1 if a check failed.
"""

from __future__ import annotations

import copy
import platform
import sys
import textwrap
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import fastsn
from benchmarks.exact import relative_error
from benchmarks.peers import CONTENDERS, MODES, Weights, check, make_run
from benchmarks.timing import cpu_model, keep_freed_memory, side_by_side
from benchmarks.workloads import Case, cnn_discriminator, make_case, normalized_layers
from fastsn.backends import explain, select_backend
from fastsn.functional import spectral_normalize
from fastsn.op import normalize
from fastsn.plan import plan_of

CPU = torch.device("cpu")
SCALE = 1.2
failures: list[str] = []


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def expect(text: str, value: float, at_most: float) -> None:
    """One checked number."""
    kept = value <= at_most
    print(f"  {text:<66} {value:9.2g}  {'ok' if kept else f'expected <= {at_most:g}'}")
    if not kept:
        failures.append(text)


def backends() -> None:
    """Which backend serves float32 weights on the CPU, and why not the others."""
    used = select_backend("", CPU, torch.float32, None).name
    for name, reasons in explain(CPU).items():
        why = "serves all of this" if name == used else "; ".join(reasons) or "usable"
        indent = {"initial_indent": "  ", "subsequent_indent": " " * 13}
        print(textwrap.fill(f"{name:<10} {why}", 96, **indent))


def training_steps(model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of some training steps, and the gradients of the last."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    outputs = []
    for batch in images:
        optimizer.zero_grad()
        output = model(batch)
        F.softplus(-output).mean().backward()
        outputs.append(output.detach())
        optimizer.step()
    return outputs + [p.grad for p in model.parameters()]


def convert() -> None:
    """torch's spectral norm, taken over: the same numbers."""
    model = cnn_discriminator()
    for layer in normalized_layers(model):
        spectral_norm(layer)
    twin = copy.deepcopy(model)
    keys = list(model.state_dict())

    group = fastsn.convert(model)  # the one line

    print("  group = fastsn.convert(model)")
    print("  " + str(group).replace("\n", "\n  ") + "\n")
    images = [torch.randn(8, 3, 32, 32) for _ in range(3)]
    results = zip(training_steps(model, images), training_steps(twin, images), strict=True)
    worst = max(relative_error(mine, theirs) for mine, theirs in results)
    expect("3 training steps: outputs and gradients, relative to torch's", worst, 1e-4)
    model.eval(), twin.eval()
    mine, theirs = model(images[0]), twin(images[0])
    expect("evaluation after them, likewise", relative_error(mine, theirs), 1e-4)
    expect("checkpoint keys that differ", len(set(keys) ^ set(model.state_dict())), 0)


def bssn() -> None:
    """A plain model, normalized by the paper's method."""
    model = cnn_discriminator()
    group = fastsn.apply(model, method="bssn", scale=SCALE)
    print(f'  group = fastsn.apply(model, method="bssn", scale={SCALE})')
    with group.frozen():
        output = model(torch.randn(4, 3, 32, 32))
    print("  sigmas  " + "  ".join(f"{sigma:.3f}" for sigma in group.sigmas().values()))
    expect("values of its output that are not finite", float((~output.isfinite()).sum()), 0)


def accuracy(case: Case) -> None:
    """Sigma against singular values in float64, from a cold start."""
    weights = case.weights
    exact = [[_top(unfold(w, d)) for d in range(min(w.ndim - 1, 2))] for w in weights]
    starts = [[(torch.randn_like(u), torch.randn_like(v)) for u, v in p] for p in case.vectors]
    print("  relative error of sigma after k iterations from random vectors, worst of 8 weights\n")
    print(f"  {'k':>6}  {'SN':>9}  {'BSN, outputs':>13}  {'BSN, inputs':>12}  {'BSN, sigma':>11}")
    errors: list[float] = []
    for k in (1, 10, 100, 1000):
        sn = _sigmas(weights, [p[:1] for p in starts], k, bidirectional=False)
        bsn = _sigmas(weights, starts, k, bidirectional=True)
        means = [[sum(s) / len(s)] for s in exact]
        columns = [
            _worst(sn[1], exact, 0),
            _worst(bsn[1], exact, 0),
            _worst(bsn[1], exact, 1),
            _worst([[float(s)] for s in bsn[0]], means, 0),
        ]
        errors = columns
        print("  {:>6}  {:>9.1e}  {:>13.1e}  {:>12.1e}  {:>11.1e}".format(k, *columns))
    print()
    expect("error of any sigma after 1000 iterations", max(errors), 1e-4)
    worst = 0.0
    for weight in bsn[2]:
        tops = [_top(unfold(weight, d)) for d in range(min(weight.ndim - 1, 2))]
        worst = max(worst, abs(sum(tops) / len(tops) / SCALE - 1))
    expect(f"BSSN: mean of both norms of the normalized weight / {SCALE} - 1", worst, 1e-4)


def unfold(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def _top(matrix: Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.double())[0])


def _sigmas(
    weights: Sequence[Tensor],
    starts: Sequence[Sequence[tuple[Tensor, Tensor]]],
    k: int,
    *,
    bidirectional: bool,
) -> tuple[Tensor, list[list[float]], list[Tensor]]:
    """Sigmas, each unfolding's own (``u^T M v`` at the final vectors), and normalized weights."""
    pairs = [pair for own in starts for pair in own]
    result = spectral_normalize(
        weights,
        [u for u, _ in pairs],
        [v for _, v in pairs],
        bidirectional=bidirectional,
        scale=SCALE,
        n_power_iterations=k,
    )
    vectors = iter(zip(result.us, result.vs, strict=True))
    views = []
    for weight, own in zip(weights, starts, strict=True):
        views.append([])
        for d in range(len(own)):
            u, v = next(vectors)
            views[-1].append(float(u.double() @ (unfold(weight, d).double() @ v.double())))
    return result.sigmas, views, result.weights


def _worst(found: Sequence[Sequence[float]], exact: Sequence[Sequence[float]], d: int) -> float:
    pairs = [(f[d], e[d]) for f, e in zip(found, exact, strict=True) if len(f) > d]
    return max(abs(f - e) / e for f, e in pairs)


def speed(case: Case) -> None:
    """All weights of the discriminator once, side by side."""
    methods = {"SN": ("torch", "fastsn"), "BSN": ("plain-bsn", "fastsn-bsn")}
    print(f"  {'':<27} {'':<4} {'torch':>9} {'fastsn':>10} {'faster':>8}   {'worst error':>11}")
    for mode in ("forward", "forward_backward", "evaluation", "three_forwards", "ten_evaluations"):
        for method, (slow, fast) in methods.items():
            shared = {"three_forwards": "-step", "ten_evaluations": "-frozen"}.get(mode, "")
            names = slow, fast + shared
            runs = {name: make_run(name, case, mode) for name in names}
            errors = [check(name, case, mode, run()) for name, run in runs.items()]
            times = side_by_side(runs, CPU, seconds=1.0)
            old, new = (times[name] for name in names)
            note = {"-step": '  update="step"', "-frozen": "  group.frozen()"}.get(shared, "")
            print(
                f"  {MODES[mode].title:<27} {method:<4} {old * 1e3:6.2f} ms {new * 1e3:7.2f} ms "
                f"{old / new:7.1f}x   {errors[1]:11.1e}{note}"
            )
    print(f'\n  torch: its parametrization (SN); "{CONTENDERS["plain-bsn"].title}" by hand (BSN).')


def profile(case: Case) -> None:
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
        seconds=4.0,
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


def main() -> int:
    """Runs all sections."""
    started = time.perf_counter()
    torch.manual_seed(0)
    keep_freed_memory()
    python = platform.python_version()
    print(f"fastsn {fastsn.__version__}, torch {torch.__version__}, Python {python}")
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, CNN discriminator of the BSSN paper")
    case = make_case("cnn")
    title("Backends")
    backends()
    title("A model with torch's spectral norm, converted in one line")
    convert()
    title("A plain model with BSSN")
    bssn()
    title("Accuracy, against singular values in float64")
    accuracy(case)
    title("Speed: all 8 weights, medians side by side")
    speed(case)
    title("Where the time goes: BSN, forward and backward")
    profile(case)
    print(f"\n{time.perf_counter() - started:.0f} s; ", end="")
    print("all checks passed" if not failures else "FAILED: " + "; ".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
