"""The command ``fastsn sweep``: its options, the runs they stand for, and what it says of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from fastsn.gan.config import FREE, Config, ConfigError, flatten, from_dict, validate
from fastsn.gan.sweep.jobs import distinct, run_jobs
from fastsn.gan.sweep.state import SETTLED, state_of
from fastsn.gan.sweep.table import varied_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["SweepOptions", "add_options", "grid", "parse_varied", "sweep"]

#: Runs of one sweep.
MOST = 100_000
#: Of these a sweep says 1, as ``fastsn train`` does of a run that stopped so.
UNDONE = ("diverged", "failed", "busy")


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What a sweep has beside the options that all its runs share.

    Args:
        seeds: runs of every combination, with the seeds train.seed, train.seed + 1 and so on.
        out: folder of the runs and of results.jsonl and results.csv.
        ray: run beside each other by Ray Tune: local starts a Ray on this machine, auto or an
            address joins a cluster, whose machines must all see the folder; default: one run after
            another.
        gpus_per_run: GPUs of a run under Ray; 0.25 puts four runs on one.
        cpus_per_run: CPUs, and threads, of a run under Ray.
        dry_run: only print the runs.
    """

    seeds: PositiveInt = 1
    out: str = "runs"
    ray: str | None = None
    gpus_per_run: NonNegativeFloat = 0.0
    cpus_per_run: PositiveFloat = 1.0
    dry_run: bool = False


def add_options(parser: ArgumentParser) -> None:
    """``--vary`` and the fields of :class:`SweepOptions`."""
    parser.add_argument(
        "--vary",
        type=str,
        action="append",
        default=[],
        metavar="OPTION=VALUE,VALUE",
        help="an option and its values, as norm.scale=0.7,1.0,1.2; several make a grid",
    )
    parser.add_class_arguments(SweepOptions, None)


def parse_varied(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``{"norm.scale": [0.7, 1.0]}`` of ``["norm.scale=0.7,1.0"]``, with values of its type.

    Raises:
        ConfigError: no such option, one that makes no other run, or values of another type.
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals:
            raise ConfigError(f"--vary: expected OPTION=VALUE,VALUE, got {text!r}")
        try:
            values = yaml.safe_load(listed if listed.startswith("[") else f"[{listed}]")
        except yaml.YAMLError:
            raise ConfigError(f"--vary {name}: expected values, got {listed!r}") from None
        if not isinstance(values, list) or not values:
            raise ConfigError(f"--vary {name}: expected one or more values, got {listed!r}")
        section, _, option = name.partition(".")
        typed = [from_dict({section: {option: value}}, "--vary") for value in values]
        if name in FREE:
            raise ConfigError(
                f"--vary {name}: expected an option that makes another run, got one that a run can "
                f"change on its way: give --{name} for all runs"
            )
        if name in varied:
            raise ConfigError(f"--vary {name}: expected it once, got it twice")
        varied[name] = [getattr(getattr(config, section), option) for config in typed]
    return varied


def grid(base: Config, varied: Mapping[str, Sequence[Any]], seeds: int = 1) -> list[Config]:
    """Every combination of values, each with every seed; the last option changes fastest.

    Raises:
        ConfigError: a combination that no run can have; the message names it.
    """
    values = dict(varied)
    total = math.prod(map(len, values.values())) * seeds
    if not 1 <= total <= MOST:
        raise ConfigError(
            f"--seeds, --vary: expected between 1 and {MOST:,} runs in all, got {total:,}"
        )
    if seeds > 1:
        if "train.seed" in values:
            raise ConfigError("--seeds: expected 1 with --vary train.seed, got both")
        first = base.train.seed
        values["train.seed"] = range(first, first + seeds)
    jobs = []
    for combination in itertools.product(*values.values()):
        tree = base.to_dict()
        for name, value in zip(values, combination, strict=True):
            section, _, option = name.partition(".")
            tree[section][option] = value
        try:
            jobs.append(validate(from_dict(tree)))
        except ConfigError as error:
            chosen = _chosen(zip(values, combination, strict=True))
            raise ConfigError(f"{error} (at {chosen})" if chosen else str(error)) from None
    return jobs


def _chosen(options: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in options)


def sweep(tree: dict[str, Any]) -> int:
    """Does what the command's options say; returns its exit code."""
    fields = [field.name for field in dataclasses.fields(SweepOptions)]
    options = SweepOptions(**{name: tree.pop(name) for name in fields})
    varied = parse_varied(tree.pop("vary"))
    jobs = grid(from_dict(tree), varied, options.seeds)
    root = Path(options.out)
    if options.dry_run:
        sys.stdout.write(_plan(distinct(jobs), root))
        return 0
    try:
        rows = run_jobs(
            jobs,
            root,
            ray=options.ray,
            gpus_per_run=options.gpus_per_run,
            cpus_per_run=options.cpus_per_run,
        )
    except KeyboardInterrupt:
        sys.stderr.write("fastsn: interrupted; the same command goes on from the checkpoints\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"fastsn: stopped: {error}; the same command goes on\n")
        return 1
    counts = Counter({row["run"]: row["status"] for row in rows}.values())
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    sys.stdout.write(f"{counts.total()} runs: {said}: {root / 'results.csv'}\n")
    return int(any(counts[status] for status in UNDONE))


def _plan(configs: Mapping[str, Config], root: Path) -> str:
    names = [*varied_options(configs), "train.seed"]
    lines, total, left = [], 0, 0
    for name, config in configs.items():
        options = dict(flatten(config.to_dict()))
        state = state_of(config, root / name)
        steps = config.train.steps
        total += steps
        left += 0 if state.status in SETTLED else max(0, steps - state.step)
        chosen = _chosen((name, options[name]) for name in names)
        lines.append(f"{root / name}  {state.status}, {state.step} of {steps}: {chosen}\n")
    return "".join([*lines, f"{len(configs)} runs, {left} of {total} iterations left\n"])
