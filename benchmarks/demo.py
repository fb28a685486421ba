"""What fastsn does and gains, on this machine, in four minutes: ``python -m benchmarks.demo``.

A model with torch's norm is converted, a plain one normalized, both are checked and timed; then the
paper's MNIST network, at a part of its width, is trained with BSSN on 5,000 shipped images of
clothing, is stopped on the way, and goes on. Every section checks what it shows; the exit status is
1 if a check failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import fastsn
from benchmarks.exact import relative_error
from benchmarks.peers import CONTENDERS, MODES, check, make_run
from benchmarks.profile import profile
from benchmarks.step import BenchOptions, measure, table
from benchmarks.timing import cpu_model, side_by_side
from benchmarks.workloads import Case, cnn_discriminator, make_case, normalized_layers
from fastsn.analysis import bsn_sigma_exact, spectral_norm_exact, unfold
from fastsn.backends import explain, select_backend
from fastsn.functional import spectral_normalize
from fastsn.gan.measure.evaluation import best_by
from fastsn.gan.presets import load_preset
from fastsn.gan.report import report
from fastsn.gan.run.jsonl import read_rows

CPU = torch.device("cpu")
SCALE = 1.2
OUT = Path("runs/demo")

#: Part of the iterations after which the training is stopped.
STOP = 0.3
#: What ``--publish`` copies for the site: name there, name in the report.
PICTURES = {
    "demo-metrics.png": "metrics.png",
    "demo-losses.png": "losses.png",
    "demo-layers.png": "layers.png",
}
SUMMARY = "demo.json"

failures: list[str] = []


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def holds(text: str, kept: bool) -> None:
    """One checked fact."""
    print(f"  {text:<66} {'':9}  {'ok' if kept else 'expected to hold'}")
    if not kept:
        failures.append(text)


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
    exact = [[spectral_norm_exact(w, d) for d in range(min(w.ndim - 1, 2))] for w in weights]
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
        worst = max(worst, abs(bsn_sigma_exact(weight) / SCALE - 1))
    expect(f"BSSN: mean of both norms of the normalized weight / {SCALE} - 1", worst, 1e-4)


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


def speed(case: Case, seconds: float) -> None:
    """All weights of the discriminator once, side by side."""
    methods = {"SN": ("torch", "fastsn"), "BSN": ("plain-bsn", "fastsn-bsn")}
    print(f"  {'':<27} {'':<4} {'torch':>9} {'fastsn':>10} {'faster':>8}   {'worst error':>11}")
    for mode in ("forward", "forward_backward", "evaluation", "three_forwards", "ten_evaluations"):
        for method, (slow, fast) in methods.items():
            shared = {"three_forwards": "-step", "ten_evaluations": "-frozen"}.get(mode, "")
            names = slow, fast + shared
            runs = {name: make_run(name, case, mode) for name in names}
            errors = [check(name, case, mode, run()) for name, run in runs.items()]
            times = side_by_side(runs, CPU, seconds=seconds)
            old, new = (times[name] for name in names)
            note = {"-step": '  update="step"', "-frozen": "  group.frozen()"}.get(shared, "")
            print(
                f"  {MODES[mode].title:<27} {method:<4} {old * 1e3:6.2f} ms {new * 1e3:7.2f} ms "
                f"{old / new:7.1f}x   {errors[1]:11.1e}{note}"
            )
    print(f'\n  torch: its parametrization (SN); "{CONTENDERS["plain-bsn"].title}" by hand (BSN).')


# The GAN


def gan(out: Path, steps: int, seconds: float) -> dict[str, Any]:
    """Trains, stops, resumes, measures and reports; all numbers that it shows."""
    command = [sys.executable, "-m", "fastsn.gan.cli", "train", "--config=demo"]
    command += [f"--train.steps={steps}", f"--out={out}"]
    title("A GAN: the MNIST network with fused BSSN, on 5,000 images of clothing")
    print(f"  $ fastsn train --config=demo --out={out}", flush=True)
    stopped = train(command, out, int(STOP * steps))
    title(f"Stopped at step {stopped}; the same command goes on, to the same bits")
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(f"training failed with exit code {code}")

    title("Time of a training step, in one process, in turns")
    config = load_preset("demo")
    width, batch = config.model.width, config.optim.batch_d
    times = measure(BenchOptions(width=width, batch=batch, seconds=seconds, device="cpu"))
    print(textwrap.indent(table(times), "  "))

    summary = summarize(out, times)
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    page = report([out], out / "report")
    title("What came out")
    show(summary, steps)
    print(f"\n  pictures   {page.parent}\n  all of it  {page}")
    return summary


def train(command: Sequence[str], out: Path, stop: int) -> int:
    """Trains until about step ``stop``, and ends it by SIGTERM; the step it has saved."""
    process = subprocess.Popen(command)
    while process.poll() is None and last_step(out) < stop:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return int(read_rows(out / "events.jsonl")[-1]["step"])


def last_step(out: Path) -> int:
    rows = read_rows(out / "log.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def summarize(out: Path, times: dict[str, Any]) -> dict[str, Any]:
    """All numbers that are shown, from the run's own files."""
    metrics, log = read_rows(out / "metrics.jsonl"), read_rows(out / "log.jsonl")
    name = best_by(metrics[0])
    rates = sorted(row["steps_per_s"] for row in log)
    return {
        "steps": log[-1]["step"],
        "resumed": sum(row["event"] == "resume" for row in read_rows(out / "events.jsonl")),
        "steps_logged_once": len({row["step"] for row in log}) == len(log),
        "median_steps_per_s": rates[len(rates) // 2],
        "metric": name,
        "by_step": {str(row["step"]): row[name] for row in metrics},
        "last": metrics[-1],
        "step_time": times,
    }


def show(summary: dict[str, Any], steps: int) -> None:
    """Prints the numbers, and checks them."""
    last, name = summary["last"], summary["metric"]
    for key, value in last.items():
        if isinstance(value, float):
            print(f"  {key:<28} {value:10.4g}")
    print(
        f"  in the features of a small {last['protocol']['extractor']} of Fashion-MNIST: "
        "numbers of its own kind, not IS and FID"
    )
    course = "  ".join(f"{step}: {value:.1f}" for step, value in summary["by_step"].items())
    print(f"  {name} by step   {course}")
    extra = {row["contender"]: row["overhead_s"] for row in summary["step_time"]["rows"]}
    ratio = extra["fastsn BSSN, per step"] / extra["torch SN"] if extra["torch SN"] > 0 else 0.0
    print(f"  cost of BSSN in a step, over that of torch's SN   {ratio:.2f}\n")
    distances = list(summary["by_step"].values())
    holds("every step was trained", summary["steps"] == steps)
    holds("resumed once", summary["resumed"] == 1)
    holds("no row of the log twice", summary["steps_logged_once"])
    holds(f"{name} fell", len(distances) < 2 or distances[-1] < distances[0])


def publish(out: Path, images: Path) -> None:
    """The site's pictures and numbers; ``python -m benchmarks.report`` writes them into pages."""
    from PIL import Image

    images.mkdir(parents=True, exist_ok=True)
    for target, source in PICTURES.items():
        shutil.copyfile(out / "report" / source, images / target)
    shutil.copyfile(out / SUMMARY, images / SUMMARY)
    with Image.open(max((out / "samples").glob("step-*.png"))) as grid:
        larger = grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST)
        larger.save(images / "demo-samples.png", optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all sections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the run")
    parser.add_argument("--publish", type=Path, help="folder for the site's pictures and numbers")
    parser.add_argument("--steps", type=int, help="iterations; default: the preset's")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing each method")
    options = parser.parse_args(argv)
    if (options.out / "config.yaml").exists():
        if options.out != OUT:
            parser.error(f"--out: expected a folder without a run, got {options.out}")
        shutil.rmtree(OUT)  # the demo before this one
    started = time.perf_counter()
    torch.manual_seed(0)
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
    speed(case, min(1.0, options.seconds))
    title("Where the time goes: BSN, forward and backward")
    profile(case, 2 * options.seconds)
    gan(options.out, options.steps or load_preset("demo").train.steps, options.seconds)
    if options.publish is not None:
        publish(options.out, options.publish)
    print(f"\n{time.perf_counter() - started:.0f} s; ", end="")
    print("all checks passed" if not failures else "FAILED: " + "; ".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
