"""``python -m paper.study``: runs what ``paper/protocol.md`` has laid down, and reports it.

Several processes may work on one folder at the same time: none takes a run that another has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastsn.gan.report import read_run
from fastsn.gan.run.checkpoint import replace_file
from fastsn.gan.run.jsonl import to_line
from fastsn.gan.sweep import run_jobs
from fastsn.gan.sweep.state import SETTLED, state_of
from paper.records import few_samples, read_records
from paper.study.plan import lot, runs, seeds
from paper.study.power import power_page
from paper.study.records import SECOND, line_of, read_entries, record, write_entries
from paper.study.report import RECORDS, REPEATED, SAMPLED, SHOWN, write_report

__all__ = ["main"]

PILOT, RESULTS = Path("paper/results/small/runs"), Path("paper/results/study")
#: Claims of the primary family.
PRIMARY = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m paper.study", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, text in (
        ("list", "every run in its order, and what has become of it"),
        ("run", "trains what is not done; killed, it goes on by the same command"),
        ("record", "keeps what has ended, measured by the second classifier as well"),
        ("repeat", "trains the runs of the lot again, and compares their records"),
        ("report", "tables, tests, controls and figures, from the records alone"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
        one.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
        one.add_argument("--second", type=Path, default=SECOND, help="the classifier's weights")
        one.add_argument("--seeds", type=int, default=seeds(), help="how many seeds")
    commands.add_parser("lot", help="the two runs that are trained twice")
    commands.add_parser("power", help="what differences the pilot's spread lets a test find")
    options = parser.parse_args(argv)
    return COMMANDS[options.command](options)


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
    rows = run_jobs([run.config for run in runs(options.seeds)], options.runs)
    return int(any(row["status"] not in SETTLED for row in rows))


def _record(options: argparse.Namespace) -> int:
    path = options.out / RECORDS
    known = {entry.name: entry for entry in read_entries(path)}
    for run in runs(options.seeds):
        name = run.config.run_name()
        if name in known and known[name].steps == run.config.train.steps:
            continue
        entry = record(run, options.runs, options.second)
        if entry is not None:
            known[name] = entry
            write_entries(known.values(), path)
            if (run.setting, run.seed) == SAMPLED and run.arm in SHOWN:
                files = read_run(options.runs / name)
                (options.out / "samples").mkdir(exist_ok=True)
                replace_file(options.out / "samples" / f"{run.arm}.png", few_samples(files))
            sys.stdout.write(f"{name}\n")
    return 0


def _repeat(options: argparse.Namespace) -> int:
    """The two runs in a folder of their own; what they give must be what is recorded."""
    folder = options.runs.with_name(f"{options.runs.name}-again")
    run_jobs([run.config for run in lot()], folder)
    recorded = {entry.name: entry for entry in read_entries(options.out / RECORDS)}
    rows = []
    for run in lot():
        name = run.config.run_name()
        again = record(run, folder, options.second)
        if again is None or name not in recorded:
            sys.stderr.write(f"paper.study: {name}: expected a recorded run, and it again\n")
            return 1
        rows.append({"run": name, "equal": line_of(again) == line_of(recorded[name])})
    replace_file(options.out / REPEATED, "".join(map(to_line, rows)).encode())
    return int(not all(row["equal"] for row in rows))


def _report(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{write_report(options.out, options.seeds)}\n")
    return 0


def _lot(options: argparse.Namespace) -> int:
    sys.stdout.write("".join(f"{run.config.run_name()}\n" for run in lot()))
    return 0


def _power(options: argparse.Namespace) -> int:
    sys.stdout.write(f"{power_page(read_records(PILOT), PRIMARY)}\n")
    return 0


COMMANDS = {
    "list": _list,
    "run": _run,
    "record": _record,
    "repeat": _repeat,
    "report": _report,
    "lot": _lot,
    "power": _power,
}

if __name__ == "__main__":
    sys.exit(main())
