"""``fastsn experiment``: lists, runs, records and draws the paper's experiments."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsn.gan.config import Config, ConfigError, flatten
from fastsn.gan.presets import DATA_SETS
from paper.claims import table
from paper.evidence import Evidence
from paper.execute import Sources, Workers, execute, record_all
from paper.outputs import (
    Results,
    around_block,
    draw_experiments,
    read_records,
    write_block,
    write_text,
)
from paper.page import page
from paper.registry import find, plan
from paper.registry import names as all_names
from paper.scales import SCALES
from paper.spec import Experiment
from paper.theory.checks import CHECKS, TheoryCheck
from paper.theory.results import draw_checks, run_checks, verdicts

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_options", "experiment"]

#: What the first word may be instead of an experiment, with names after it or, for all, without.
VERBS = ("list", "record", "draw")


def add_options(parser: ArgumentParser) -> None:
    """The options of ``fastsn experiment``."""
    parser.add_argument(
        "names",
        type=str,
        nargs="+",
        help="experiments such as fig5, table1 or theorem2, or all: runs what is not recorded "
        "yet, records it and draws. Or list: shows all experiments and their cost; record NAME...: "
        "only records runs that have ended, and draws; draw NAME...: only draws, from the records",
    )
    parser.add_argument(
        "--scale", type=str, default="small", help=f"{', '.join(SCALES[:-1])} or {SCALES[-1]}"
    )
    parser.add_argument("--out", type=str, default="results", help="folder of the results")
    parser.add_argument(
        "--records", type=str | None, default=None, help="folder of the records; default: --out"
    )
    parser.add_argument("--runs", type=str, default="runs", help="folder of the runs")
    parser.add_argument(
        "--readme",
        type=str | None,
        default=None,
        help="file to write a list of figures, and the tables, to, between its marks",
    )
    parser.add_argument(
        "--dry_run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="print every run as a command, and do nothing",
    )
    parser.add_argument(
        "--ray",
        type=str | None,
        default=None,
        help="run in parallel by Ray: local, or the address of a cluster",
    )
    parser.add_argument(
        "--gpus_per_run", type=float, default=0.0, help="with Ray; parts are shared"
    )
    parser.add_argument("--cpus_per_run", type=float, default=1.0, help="with Ray")
    parser.add_argument(
        "--weights", type=str | None, default=None, help="Inception weights, for scale full"
    )
    for name in DATA_SETS:
        parser.add_argument(
            f"--roots.{name}",
            type=str | None,
            default=None,
            help=f"the images of {name}, for scale full",
        )


def experiment(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    verb, names = "run", list(options.names)
    if names[0] in VERBS:
        verb, *names = names
        names = names or ["all"]
    if options.scale not in SCALES:
        raise ConfigError(f"--scale: expected one of {', '.join(SCALES)}, got {options.scale!r}")
    chosen, checks = find(all_names() if names == ["all"] else names)
    if verb == "list":
        _say(_listed(chosen, checks))
        return 0
    out = Results(Path(options.out) / options.scale)
    records = Results(Path(options.records or options.out) / options.scale)
    runs = plan(chosen, options.scale)
    folder = Path(options.runs) / options.scale
    if options.dry_run:
        _say("\n".join(_command(name, config, folder) for name, config in runs.items()))
        return 0
    if options.readme is not None:
        around_block(Path(options.readme))
    problems: list[str] = []
    if verb == "record":
        problems = record_all(runs, folder, records.runs)
    elif verb == "run":
        sources = Sources(options.roots.as_dict(), options.weights)
        workers = Workers(options.ray, options.gpus_per_run, options.cpus_per_run)
        prepared = {name: sources.into(config) for name, config in runs.items()}
        problems = execute(prepared, folder, records.runs, workers)
        run_checks(checks, options.scale, records)
    done = draw_experiments(chosen, options.scale, records, out)
    done += draw_checks(checks, records, out)
    evidence = Evidence(options.scale, read_records(records), verdicts(CHECKS.values(), records))
    claims = write_text(out.tables / "claims.md", table(evidence) + "\n")
    page(out.path, out.path / "index.html")
    if options.readme is not None:
        write_block(Path(options.readme), options.scale, claims, done)
    _say("\n".join(one.line for one in done))
    if problems:
        sys.stderr.write("".join(f"not recorded: {line}\n" for line in problems))
    return 1 if problems and verb == "run" else 0


def _listed(chosen: Sequence[Experiment], checks: Sequence[TheoryCheck]) -> str:
    rows = [["name", *SCALES, "shows", "in the paper"]]
    together: dict[str, dict[str, Config]] = {scale: {} for scale in SCALES}
    for one in chosen:
        plans = {scale: plan([one], scale) for scale in SCALES}
        for scale, runs in plans.items():
            together[scale] |= runs
        rows.append([one.name, *map(_cost, plans.values()), one.title, one.source])
    rows += [[one.name, *["no runs"] * len(SCALES), one.title, one.source] for one in checks]
    rows.append(["", *map(_cost, together.values()), "together", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    said = "Runs x iterations at each scale; runs that experiments share count once together."
    return "\n".join([*lines, said])


def _cost(runs: Mapping[str, Config]) -> str:
    """Runs and their mean length, as ``15 x 400k``."""
    steps = [config.train.steps for config in runs.values()]
    return f"{len(steps)} x {_short(sum(steps) / len(steps))}" if steps else "no runs"


def _short(number: float) -> str:
    return f"{number / 1000:.0f}k" if number >= 10_000 else f"{number:.0f}"


def _command(name: str, config: Config, folder: Path) -> str:
    """The run as a command of its own: the options that are not the defaults."""
    defaults = dict(flatten(Config().to_dict()))
    words = [
        f"--{option}={str(value).lower() if isinstance(value, bool) else value}"
        for option, value in flatten(config.to_dict())
        if value != defaults[option]
    ]
    return shlex.join(["fastsn", "train", *words, f"--out={folder / name}"])


def _say(text: Any) -> None:
    sys.stdout.write(f"{text}\n")
