"""``python -m paper.study``: runs what ``paper/protocol.md`` has laid down, and reports it.

Several processes may work on one folder at the same time: none takes a run that another has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastsn.gan.sweep import Job, run_jobs
from fastsn.gan.sweep.state import SETTLED, state_of
from paper.records import read_records
from paper.study.plan import lot, runs, seeds
from paper.study.power import power_page

__all__ = ["main"]

PILOT = Path("paper/results/small/runs")
#: Claims of the primary family.
PRIMARY = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m paper.study", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, text in (
        ("list", "every run in its order, and what has become of it"),
        ("run", "trains what is not done; killed, it goes on by the same command"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
        one.add_argument("--seeds", type=int, default=seeds(), help="how many seeds")
    commands.add_parser("lot", help="the two runs that are trained twice")
    commands.add_parser("power", help="what differences the pilot's spread lets a test find")
    options = parser.parse_args(argv)
    return {"list": _list, "run": _run, "lot": _lot, "power": _power}[options.command](options)


def _list(options: argparse.Namespace) -> int:
    done = total = 0
    for run in runs(options.seeds):
        state = state_of(run.config, options.runs / run.config.run_name())
        steps = run.config.train.steps
        done += steps if state.status in SETTLED else state.step
        total += steps
        sys.stdout.write(
            f"{run.seed}  {run.setting}  {run.arm:26}{state.status:10}{state.step:6} of {steps}  "
            f"{run.config.run_name()}\n"
        )
    sys.stdout.write(f"{done:,} of {total:,} iterations are done\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    rows = run_jobs([Job(run.config) for run in runs(options.seeds)], options.runs)
    return int(any(row["status"] not in SETTLED for row in rows))


def _lot(options: argparse.Namespace) -> int:
    sys.stdout.write("".join(f"{run.config.run_name()}\n" for run in lot()))
    return 0


def _power(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{power_page(read_records(PILOT), PRIMARY)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
