"""A GAN with fused BSSN on real images, in a few minutes: ``python -m benchmarks.gan``.

It trains the paper's MNIST network, at a part of its width, on 5,000 shipped images of clothing; is
stopped on the way, and goes on; and shows what came out. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step import BenchOptions, measure, table
from fastsn.gan.measure.evaluation import best_by
from fastsn.gan.presets import load_preset
from fastsn.gan.report import report
from fastsn.gan.run.jsonl import read_rows

OUT = Path("runs/demo")

#: Part of the iterations after which the training is stopped.
STOP = 0.3
#: Pictures for the README: name there, name in the report.
PICTURES = {
    "demo-metrics.png": "metrics.png",
    "demo-losses.png": "losses.png",
    "demo-layers.png": "layers.png",
}
SUMMARY = "demo.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, stops, resumes, measures and reports."""
    parser = argparse.ArgumentParser(prog="benchmarks.gan", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the run")
    parser.add_argument("--images", type=Path, help="folder for the README's pictures and numbers")
    parser.add_argument("--readme", type=Path, help="file to write the numbers into, too")
    parser.add_argument("--steps", type=int, help="iterations; default: the preset's")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing each method")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    steps = options.steps or load_preset("demo").train.steps
    if (options.out / "config.yaml").exists():
        if options.out != OUT:
            parser.error(f"--out: expected a folder without a run, got {options.out}")
        shutil.rmtree(OUT)  # the demo before this one
    command = [sys.executable, "-m", "fastsn.gan.cli", "train", "--config=demo"]
    command += [f"--train.steps={steps}", f"--out={options.out}"]
    title("Training the MNIST network with fused BSSN on 5,000 images of clothing")
    print("  $ fastsn train --config=demo --out=" + str(options.out), flush=True)
    stopped = train(command, options.out, int(STOP * steps))
    title(
        f"Stopped at step {stopped}; the same command goes on, to the same bits as without a stop"
    )
    code = subprocess.run(command, check=False).returncode
    if code:
        print(f"training failed with exit code {code}")
        return 1

    title("Time of a training step, in one process, in turns")
    config = load_preset("demo")
    times = measure(
        BenchOptions(
            width=config.model.width,
            batch=config.optim.batch_d,
            seconds=options.seconds,
            device="cpu",
        )
    )
    print(indent(table(times)))

    summary = summarize(options.out, times)
    (options.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    page = report([options.out], options.out / "report")
    if options.images is not None:
        publish(options.out, options.images)
    if options.readme is not None:
        write_readme(options.readme, summary)
    title("What came out")
    problems = show(summary, steps)
    print(f"\n  pictures   {page.parent}\n  all of it  {page}")
    print(f"\n{time.perf_counter() - started:.0f} s; ", end="")
    print("all checks passed" if not problems else "FAILED: " + "; ".join(problems))
    return int(bool(problems))


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def train(command: Sequence[str], out: Path, stop: int) -> int:
    """Trains until about step ``stop``, and ends it by SIGTERM; returns the step it has saved."""
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


def show(summary: dict[str, Any], steps: int) -> list[str]:
    """Prints the numbers; returns what is not as it should be."""
    last, name = summary["last"], summary["metric"]
    protocol = last["protocol"]
    for key, value in last.items():
        if isinstance(value, float):
            print(f"  {key:<28} {value:10.4g}")
    print(
        f"  in the features of a small {protocol['extractor']} of Fashion-MNIST: "
        "numbers of its own kind, not IS and FID"
    )
    course = "  ".join(f"{step}: {value:.1f}" for step, value in summary["by_step"].items())
    print(f"  {name} by step   {course}")
    distances = list(summary["by_step"].values())
    times = {row["contender"]: row["overhead_s"] for row in summary["step_time"]["rows"]}
    checks = {
        "every step was trained": summary["steps"] == steps,
        "resumed once": summary["resumed"] == 1,
        "no row of the log twice": summary["steps_logged_once"],
        f"{name} fell": len(distances) < 2 or distances[-1] < distances[0],
    }
    ratio = times["fastsn BSSN, per step"] / times["torch SN"] if times["torch SN"] > 0 else 0.0
    print(f"  cost of BSSN in a step, over that of torch's SN   {ratio:.2f}")
    return [check for check, kept in checks.items() if not kept]


def publish(out: Path, images: Path) -> None:
    """The README's pictures and numbers."""
    from PIL import Image

    images.mkdir(parents=True, exist_ok=True)
    for target, source in PICTURES.items():
        shutil.copyfile(out / "report" / source, images / target)
    shutil.copyfile(out / SUMMARY, images / SUMMARY)
    with Image.open(max((out / "samples").glob("step-*.png"))) as grid:
        larger = grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST)
        larger.save(images / "demo-samples.png", optimize=True)


def write_readme(readme: Path, summary: dict[str, Any]) -> None:
    """The numbers, between the marks ``demo:begin`` and ``demo:end``."""
    last, name, times = summary["last"], summary["metric"], summary["step_time"]
    protocol, options = last["protocol"], times["options"]
    by_step = ", ".join(f"{value:.1f} at {step}" for step, value in summary["by_step"].items())
    lines = [
        f"Frechet distance ({name}) by iteration: {by_step}; in the features of a small "
        f"{protocol['extractor']}, so not an FID.",
        "",
        f"Training step of that network (width {options['width']:g}, batch {options['batch']}, "
        f"{times['environment']['threads']} threads, torch {times['environment']['torch']}), "
        "medians in one process, in turns:",
        "",
        "|  | step | more than without a norm |",
        "| --- | ---: | ---: |",
    ]
    for row in times["rows"]:
        extra = "" if row is times["rows"][0] else f"{row['overhead_s'] * 1e3:.2f} ms"
        lines.append(f"| {row['contender']} | {row['median_s'] * 1e3:.1f} ms | {extra} |")
    head, _, rest = readme.read_text(encoding="utf-8").partition("<!-- demo:begin -->\n")
    _, _, tail = rest.partition("<!-- demo:end -->")
    if not tail:
        raise ValueError(f"{readme}: expected the marks demo:begin and demo:end, got none")
    block = "\n".join(["<!-- demo:begin -->", *lines, "<!-- demo:end -->"])
    readme.write_text(f"{head}{block}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
