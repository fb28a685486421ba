"""``python -m paper``: lists, runs and draws the paper's experiments.

Exit codes: 0 done, 1 some runs did not end, 2 bad input, with one message and nothing written, 130
stopped by Ctrl-C.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fastsn.gan.config import Config, ConfigError, flatten
from fastsn.gan.data.images import DataError
from fastsn.gan.presets import DATA_SETS
from fastsn.gan.run.folder import RunDirError
from paper import theory
from paper.catalog import SIZES, Experiment, find, plan
from paper.output import draw_all
from paper.records import RecordError
from paper.runs import Sources, record_all, train_all

RESULTS = "paper/results"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
        chosen = options[options.command]
        return {"list": _list, "run": _run, "draw": _draw}[options.command](chosen)
    except KeyboardInterrupt:
        sys.stderr.write("paper: interrupted; the same command goes on\n")
        return 130
    except ArgumentError as error:
        message = " ".join(str(error).split())
    except (ConfigError, DataError, RunDirError, RecordError, OSError) as error:
        message = str(error)
    sys.stderr.write(f"paper: error: {message}\n")
    return 2


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m paper",
        description="The paper's figures, tables and theorems: what is run, measured and drawn.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    sub = {name: ArgumentParser(exit_on_error=False) for name in ("list", "run", "draw")}
    for name, one in sub.items():
        one.add_argument(
            "names",
            type=str,
            nargs="*",
            help="as fig5, table1 or theorem2; default: all of them",
        )
        if name != "list":
            one.add_argument(
                "--size",
                type=Literal[SIZES],
                default="small",
                help="full: the paper's; small: shipped images; smoke: two iterations",
            )
            one.add_argument("--out", type=str, default=RESULTS, help="folder of the results")
            one.add_argument("--runs", type=str, default="runs", help="folder of the runs")
    sub["draw"].add_argument(
        "--records", type=str | None, default=None, help="folder of the records; default: --out"
    )
    run = sub["run"]
    run.add_argument(
        "--dry_run", type=bool, default=False, help="print every run as a command, do nothing"
    )
    run.add_argument("--ray", type=str | None, default=None, help="local, or a cluster's address")
    run.add_argument("--gpus_per_run", type=float, default=0.0, help="with Ray; parts are shared")
    run.add_argument("--cpus_per_run", type=float, default=1.0, help="with Ray")
    run.add_argument("--weights", type=str | None, default=None, help="of Inception, for size full")
    for name in DATA_SETS:
        said = f"the images of {name}, for size full"
        run.add_argument(f"--roots.{name}", type=str | None, default=None, help=said)
    for name, summary in (
        ("list", "All experiments, and what they cost at each size."),
        ("run", "Trains what is not recorded yet, records it and draws."),
        ("draw", "Records runs that have ended, and draws from the records alone."),
    ):
        commands.add_subcommand(name, sub[name], help=summary)
    return parser


def _list(options: Namespace) -> int:
    chosen, checks = find(options.names or ["all"], theory.CHECKS)
    rows = [["name", *SIZES, "shows", "in the paper"]]
    together: dict[str, dict[str, Config]] = {size: {} for size in SIZES}
    for one in chosen:
        plans = {size: plan([one], size) for size in SIZES}
        for size, runs in plans.items():
            together[size] |= runs
        rows.append([one.name, *map(_cost, plans.values()), one.title, one.source])
    for name in checks:
        check = theory.CHECKS[name]
        rows.append([name, *["no runs"] * len(SIZES), check.title, check.source])
    rows.append(["", *map(_cost, together.values()), "together", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    _say("\n".join(lines))
    _say("Runs x iterations at each size; runs that experiments share count once together.")
    return 0


def _run(options: Namespace) -> int:
    chosen, checks = find(options.names or ["all"], theory.CHECKS)
    folder, out = Path(options.runs) / options.size, Path(options.out) / options.size
    runs = plan(chosen, options.size)
    if options.dry_run:
        _say("\n".join(_command(name, config, folder) for name, config in runs.items()))
        return 0
    sources = Sources(options.roots.as_dict(), options.weights)
    workers = {name: options[name] for name in ("ray", "gpus_per_run", "cpus_per_run")}
    prepared = {name: sources.into(config) for name, config in runs.items()}
    problems = train_all(prepared, folder, out / "runs", workers)
    theory.run(checks, options.size, out / "theory")
    return _finish(chosen, checks, options.size, out, out, problems)


def _draw(options: Namespace) -> int:
    chosen, checks = find(options.names or ["all"], theory.CHECKS)
    folder, out = Path(options.runs) / options.size, Path(options.out) / options.size
    source = Path(options.records or options.out) / options.size
    begun = [name for name in plan(chosen, options.size) if (folder / name).is_dir()]
    problems = record_all(begun, folder, source / "runs") if begun else []
    _finish(chosen, checks, options.size, source, out, problems)
    return 0


def _finish(
    chosen: Sequence[Experiment],
    checks: Sequence[str],
    size: str,
    source: Path,
    out: Path,
    problems: Sequence[str],
) -> int:
    _say("\n".join(draw_all(chosen, checks, size, source, out)))
    if problems:
        sys.stderr.write("".join(f"not recorded: {line}\n" for line in problems))
    return int(bool(problems))


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


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
