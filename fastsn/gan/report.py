"""Curves and samples of one or several runs: PNG files, and a Markdown page that shows them.

Everything comes from the runs' own files, so a report can be made again, elsewhere and later.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastsn.gan.config import Config, flatten, read_config
from fastsn.gan.measure.diagnostics import WHOLE
from fastsn.gan.measure.evaluation import best_value
from fastsn.gan.plotting import Sheet, curve, drawing, legend
from fastsn.gan.run.folder import RunDirError
from fastsn.gan.run.jsonl import read_rows

__all__ = ["RunFiles", "markdown_table", "read_run", "report"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder says."""

    name: str
    path: Path
    config: Config
    log: Rows
    diagnostics: Rows
    metrics: Rows
    events: Rows

    @property
    def last_samples(self) -> Path | None:
        """The newest sample grid."""
        return max((self.path / "samples").glob("step-*.png"), default=None)


def read_run(path: Path) -> RunFiles:
    """The files of a run.

    Raises:
        RunDirError: the folder is missing, not a run's, damaged, or has logged nothing yet.
    """
    if not (path / "config.yaml").is_file():
        raise RunDirError(f"{path}: expected the folder of a run, got no config.yaml in it")
    try:
        log, diagnostics, metrics, events = (
            read_rows(path / f"{name}.jsonl", needed)
            for name, needed in (
                ("log", ("step", "loss_d")),
                ("diagnostics", ("step", "layer")),
                ("metrics", ("step",)),
                ("events", ("event", "step")),
            )
        )
    except ValueError as error:
        raise RunDirError(str(error)) from None
    if not log:
        raise RunDirError(f"{path}: expected rows in log.jsonl, got a run that has logged nothing")
    config = read_config(path / "config.yaml")
    return RunFiles(path.resolve().name, path, config, log, diagnostics, metrics, events)


def report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report of ``runs`` to the folder ``out``.

    Returns:
        The page, ``out/report.md``.

    Raises:
        RunDirError: a folder is not a run's, or two have one name.
        ConfigError: matplotlib is missing.
    """
    read = [read_run(path) for path in runs]
    names = [run.name for run in read]
    if len(set(names)) < len(names):
        raise RunDirError(f"expected runs with different names, got {', '.join(sorted(names))}")
    if out.exists() and not out.is_dir():
        raise RunDirError(f"{out}: expected a folder for the report, got a file")
    parts = [
        f"# {', '.join(names)}",
        *_section("Runs", [_summary(run) for run in read]),
        *_section("Metrics", [row for run in read for row in _last_metrics(run)]),
        *_section("Options that differ", _options(read)),
    ]
    with drawing():
        out.mkdir(parents=True, exist_ok=True)
        for name, (title, log, panels) in FIGURES.items():
            # Numbers of different protocols are not drawn in one picture.
            groups = _by_protocol(read) if name == "metrics" else [read]
            for number, group in enumerate(groups, start=1):
                file = f"{name}.png" if len(groups) == 1 else f"{name}-{number}.png"
                of = "" if len(groups) == 1 else f" of {', '.join(run.name for run in group)}"
                if _draw(f"{title}{of}", log, panels, group, out / file):
                    parts += [f"## {title}{of}", f"![{title}]({file})"]
    for run in read:
        if run.last_samples is not None:
            file = f"samples-{run.name}.png"
            shutil.copyfile(run.last_samples, out / file)
            parts += [f"## Samples of {run.name}, {run.last_samples.stem}", f"![samples](<{file}>)"]
    page = out / "report.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _by_protocol(runs: Sequence[RunFiles]) -> list[list[RunFiles]]:
    groups: dict[str, list[RunFiles]] = {}
    for run in runs:
        protocols = [json.dumps(row.get("protocol"), sort_keys=True) for row in run.metrics]
        groups.setdefault(protocols[-1] if protocols else "", []).append(run)
    return [*groups.values()]


# Tables


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table in Markdown; columns of numbers are set to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

    numeric = {n for n in names if all(isinstance(row.get(n, 0), int | float) for row in rows)}
    lines = [names, ["---:" if name in numeric else "---" for name in names]]
    lines += [[cell(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section(title: str, rows: Rows) -> list[str]:
    return [f"## {title}", markdown_table(rows)] if rows else []


def _summary(run: RunFiles) -> dict[str, Any]:
    last = run.log[-1]
    rates = sorted(row.get("steps_per_s", 0.0) for row in run.log)
    ends = [row for row in run.events if row["event"] == "stop"]
    stopped = ends[-1].get("why") or ends[-1].get("reason") if ends else "not yet"
    return {
        "run": run.name,
        "iterations": f"{last['step']} of {run.config.train.steps}",
        "resumed": sum(row["event"] == "resume" for row in run.events),
        "stopped": stopped,
        "loss of D": last["loss_d"],
        "loss of G": last.get("loss_g", ""),
        "iterations / s, median": rates[len(rates) // 2],
        "memory, MiB": last.get("memory_mib", ""),
    }


def _last_metrics(run: RunFiles) -> Iterator[dict[str, Any]]:
    """The last and, beside it, the best row of each number, with the protocol as it was stored."""
    last = run.metrics[-1] if run.metrics else {}
    for name, value in last.items():
        if isinstance(value, float):
            best, at = best_value(run.metrics, name)
            yield {"run": run.name, "number": name, "last": value, "best": best, "at step": at}
    if last.get("protocol") is not None:
        yield {"run": run.name, "number": "protocol", "last": json.dumps(last["protocol"])}


def _options(runs: Sequence[RunFiles]) -> Rows:
    trees = [dict(flatten(run.config.to_dict())) for run in runs]
    return [
        {"option": name, **{run.name: tree[name] for run, tree in zip(runs, trees, strict=True)}}
        for name in trees[0]
        if len({repr(tree[name]) for tree in trees}) > 1
    ]


# Figures


class Curve(NamedTuple):
    """One line.

    Attributes:
        label: in the legend; None leaves it out.
        thing: curves of a run about the same thing have the same colour.
        points: ``(step, value)``.
        dashed: tells it from the other curves of its thing.
    """

    label: str | None
    thing: str
    points: list[tuple[int, float]]
    dashed: bool = False


Curves = Callable[[RunFiles], list[Curve]]


def _points(rows: Rows, name: str) -> list[tuple[int, float]]:
    # Rows hold what is not finite as a string, which float reads.
    return [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]


def _logged(solid: str, dashed: str = "") -> Curves:
    """Columns of the log, labelled by the ends of their names."""
    names = [solid, dashed] if dashed else [solid]
    return lambda run: [
        Curve(name.rpartition("_")[2] if dashed else "", "", _points(run.log, name), name == dashed)
        for name in names
    ]


def _whole(name: str) -> Curves:
    return lambda run: [
        Curve("", "", _points([row for row in run.diagnostics if row["layer"] == WHOLE], name))
    ]


def _by_layer(name: str, *bounds: str) -> Curves:
    """A curve per layer, and dashed ones for its bounds."""

    def curves(run: RunFiles) -> list[Curve]:
        found = []
        for layer in dict.fromkeys(row["layer"] for row in run.diagnostics):
            if layer != WHOLE:
                rows = [row for row in run.diagnostics if row["layer"] == layer]
                found.append(Curve(layer, layer, _points(rows, name)))
                found += [Curve(None, layer, _points(rows, bound), True) for bound in bounds]
        return found

    return curves


def _metrics(*prefixes: str) -> Curves:
    return lambda run: [
        Curve(name, name, _points(run.metrics, name))
        for name in dict.fromkeys(name for row in run.metrics for name in row)
        if name.startswith(prefixes) and not name.endswith("_std")
    ]


#: Name of the file -> title, whether values are logarithmic, panels.
FIGURES: dict[str, tuple[str, bool, dict[str, Curves]]] = {
    "losses": (
        "Losses and scores",
        False,
        {
            "loss (D; dashed: G)": _logged("loss_d", "loss_g"),
            "mean score (dashed: generated)": _logged("score_real", "score_fake"),
        },
    ),
    "metrics": (
        "Metrics",
        False,
        {"distance": _metrics("fid_", "frechet_"), "score": _metrics("is_", "score_")},
    ),
    "gradients": (
        "Gradient norms",
        True,
        {
            "by all weights of D": _whole("grad_norm"),
            "by D's input, mean over images": _whole("input_grad_norm"),
        },
    ),
    "layers": (
        "Layers of the discriminator",
        True,
        {
            "gradient norm": _by_layer("grad_norm"),
            "parameter variance (dashed: its bound)": _by_layer("variance", "variance_bound"),
        },
    ),
    "norms": (
        "Spectral norms",
        True,
        {
            "sigma over its exact value": _by_layer("ratio"),
            "norm of the convolution (dashed: bounds)": _by_layer("conv_norm", "conv_upper"),
        },
    ),
    "speed": ("Speed", False, {"iterations per second": _logged("steps_per_s")}),
}


def _draw(
    title: str, log: bool, panels: dict[str, Curves], runs: Sequence[RunFiles], path: Path
) -> bool:
    """Draws a figure; returns False, and writes nothing, where the runs have nothing for it."""
    drawn = {
        name: [(run, line) for run in runs for line in curves(run) if line.points]
        for name, curves in panels.items()
    }
    drawn = {name: lines for name, lines in drawn.items() if lines}
    if not drawn:
        return False
    sheet = Sheet()
    for axes, (name, lines) in zip(
        sheet.panels(len(drawn), (5.2, 3.4)), drawn.items(), strict=True
    ):
        things = list(dict.fromkeys((run.name, line.thing) for run, line in lines))
        for run, line in lines:
            steps, values = zip(*line.points, strict=True)
            label = line.label if len(runs) == 1 else f"{run.name} {line.label}".strip()
            index = things.index((run.name, line.thing))
            shown = "_" if line.label is None else str(label)
            curve(axes, steps, values, shown, index, dashed=line.dashed)
        axes.set_title(name)
        axes.set_xlabel("iteration")
        if log and all(value > 0 for _, line in lines for _, value in line.points):
            axes.set_yscale("log")
        legend(axes, loc="best")
    sheet.save(path, title)
    return True
