"""The paper's experiments: what is run for each, at which size, and how it is drawn.

The data is in ``experiments/*.yaml``; here it becomes :class:`Experiment` objects and
configurations. Equal options give equal runs, whatever experiment asks for them.

Values are named as the runs name them: of the network ``grad_norm``, ``output_grad_norm``,
``input_grad_norm``, ``log_variance_product``; of the evaluations ``score`` and ``distance``, whose
real names depend on the extractor; per layer also ``variance``, ``conv_ratio`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fastsn.gan.config import Config, ConfigError, from_dict
from fastsn.gan.presets import load_preset

#: ``full``: as in the paper. ``small``: narrow networks on the shipped Fashion-MNIST images, a
#: minute or two for a run. ``smoke``: two iterations.
SIZES = ("full", "small", "smoke")

#: Names for people, by ``data.name``.
NAMES = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mini": "Fashion-MNIST",
    "cifar10": "CIFAR10",
    "stl10": "STL10",
    "celeba": "CelebA",
    "imagenet": "ILSVRC2012",
}


@dataclass(frozen=True)
class Arm:
    """One curve or point of a figure: runs with the same options and several seeds.

    Attributes:
        label: in the legend.
        preset: what the runs start from, as ``paper/cifar10_sn``.
        options: changes to it by dotted name, as ``{"norm.scale": 1.75}``.
        series: the line, or group of bars, it belongs to, where arms are parts of those; else "".
        x: where it is on that line.
        sizes: the sizes that it is run at.
        seeds: at most this many at any size; 0: it is no run, only options to be shown.
    """

    label: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    series: str = ""
    x: float | None = None
    sizes: tuple[str, ...] = SIZES
    seeds: int | None = None


@dataclass(frozen=True)
class Plot:
    """How runs are drawn.

    Attributes:
        kind: a function of :mod:`paper.curves` or :mod:`paper.points`.
        value: what is drawn.
        log: on a logarithmic axis.
        bounds: values of layers drawn dashed.
        panels: of the layers' curves: a panel for each of the ``arms``, or of the ``layers``.
        moment: part of the iterations, of bars of layers.
        pick: ``last`` value of a run, or ``best``, over ``x_label``.
        table: number of the table, for the paper's own numbers.
        names: of options.
    """

    kind: str
    value: str = ""
    log: bool = False
    bounds: tuple[str, ...] = ()
    panels: str = "arms"
    moment: float = 1.0
    x_label: str = ""
    pick: str = "last"
    table: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper.

    Attributes:
        name: ``fig5``, ``table1``.
        title: what it shows, in our words.
        source: where it is in the paper, as ``section 4, Figure 5``.
        data: the paper's data set, as ``cifar10``.
        arms: the runs.
        plot: how they are drawn.
    """

    name: str
    title: str
    source: str
    data: str
    arms: tuple[Arm, ...]
    plot: Plot

    @property
    def number(self) -> int:
        """Of the figure or the table."""
        return int(self.name.lstrip("figtable"))


@cache
def read(name: str) -> dict[str, Any]:
    """The content of ``experiments/NAME.yaml``."""
    path = Path(__file__).parent / "experiments" / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# From YAML to experiments


def _experiments() -> Iterator[Experiment]:
    entries = {**read("gradients"), **read("quality")}
    templates = entries.pop("templates")
    for name in sorted(entries, key=lambda name: (name[:3], int(name.lstrip("figtable")))):
        words = entries[name]
        words = {**templates.get(words.get("of"), {}), **words}
        words["settings"] = read("arms")["rows"].get(words.get("row"), "")
        words["Value"] = words.get("value", "").capitalize()
        plot = {key: _filled(value, words) for key, value in words["plot"].items()}
        plot = {key: tuple(v) if isinstance(v, list) else v for key, v in plot.items()}
        kind = "Figure" if name.startswith("fig") else "Table"
        yield Experiment(
            name,
            _filled(words["title"], words),
            f"{words['where']}, {kind} {name.lstrip('figtable')}",
            words["data"],
            tuple(_arms(words)),
            Plot(**plot),
        )


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    return value.format_map(words) if isinstance(value, str) else value


def _arms(words: Mapping[str, Any]) -> Iterator[Arm]:
    """The arms of a group; ``over`` repeats them for several data sets, each a series."""
    group = read("arms")["groups"][words["arms"]]
    if "over" not in words:
        yield from _group(group, words)
        return
    for data, sizes in words["over"].items():
        for arm in _group(group, {**words, "data": data}):
            yield replace(arm, series=NAMES[data], sizes=tuple(sizes))


def _group(group: Iterable[Mapping[str, Any]], words: Mapping[str, Any]) -> Iterator[Arm]:
    rows = read("arms")["rows"]
    group = list(group)
    if "rows" in group[0]:
        for row in sorted(rows) if group[0]["rows"] == "sorted" else rows:
            for spec in group:
                yield _one(spec, {**words, "row": row, "settings": rows[row]})
        return
    for spec in group:
        if "methods" in spec:
            yield from _methods(spec)
        elif "scales" in spec:
            yield from _scaled(spec, words)
        elif "spread" in spec:
            for seed in range(1, spec["full"] + 1):
                sizes = tuple(size for size in SIZES if seed <= spec[size])
                arm = _one(spec, {**words, "seed": seed})
                options = {"norm.spread": spec["spread"], "norm.spread_seed": seed}
                yield replace(arm, options=options, sizes=sizes, seeds=1)
        else:
            yield _one(spec, words)


def _one(spec: Mapping[str, Any], words: Mapping[str, Any]) -> Arm:
    options, x = dict(spec.get("options", {})), spec.get("x")
    if "scale" in spec:
        x = float(_filled(spec["scale"], words))
        options["norm.scale"] = x
    only = spec.get("only", {})
    return Arm(
        _filled(spec["label"], words),
        f"paper/{_filled(spec['preset'], words)}",
        options,
        _filled(spec.get("series", ""), words),
        x,
        tuple(size for size in SIZES if only.get(size, words.get("row")) == words.get("row")),
        spec.get("seeds"),
    )


def _scaled(spec: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[Arm]:
    """An arm for every scale; ``at_one`` is the preset whose runs are those with scale 1."""
    lists = read("arms")["scales"][spec["scales"]]
    for x in sorted({value for values in lists.values() for value in values}):
        one = x == 1 and "at_one" in spec
        yield Arm(
            _filled(spec["label"], {**words, "x": x}),
            f"paper/{spec['at_one'] if one else spec['preset']}",
            {} if one else {"norm.scale": x},
            spec.get("series", ""),
            x,
            tuple(size for size in SIZES if x in lists[size]),
            spec.get("seeds_at_one", spec.get("seeds")) if one else spec.get("seeds"),
        )


def _methods(spec: Mapping[str, Any]) -> Iterator[Arm]:
    """SN, SSN, BSN and BSSN on one data set: a column of Table 1."""
    data, seeds = spec["methods"], spec.get("seeds")
    for plain, scaled in (("sn", "ssn"), ("bsn", "bssn")):
        shared = {"series": spec["series"], "scales": spec[scaled], "seeds": seeds}
        shared |= {"seeds_at_one": None if plain == "sn" else seeds}
        shared |= {"preset": f"{data}_{scaled}", "at_one": f"{data}_{plain}"}
        arms = [*_scaled({**shared, "label": scaled.upper()}, {})]
        yield from (replace(arm, label=plain.upper()) for arm in arms if arm.x == 1)
        yield from arms


#: Name -> experiment, in the paper's order.
EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in _experiments()}


def find(wanted: Iterable[str], checks: Iterable[str] = ()) -> tuple[list[Experiment], list[str]]:
    """The experiments of these names, and the names of ``checks`` among them; ``all`` is all.

    Raises:
        ConfigError: there is none of a name; the message lists all.
    """
    known = [*EXPERIMENTS, *checks]
    names = dict.fromkeys(known if [*wanted] == ["all"] else wanted)
    for name in names:
        if name not in known:
            raise ConfigError(f"expected all, or names of {', '.join(known)}; got {name!r}")
    return (
        [EXPERIMENTS[name] for name in names if name in EXPERIMENTS],
        [name for name in names if name not in EXPERIMENTS],
    )


# From arms to configurations


def seeds_of(size: str) -> int:
    """How many seeds each arm is run with."""
    return int(read("sizes")[size]["seeds"])


def config_of(arm: Arm, size: str, seed: int) -> Config:
    """The configuration of one run.

    Raises:
        ConfigError: an unknown preset or option.
    """
    tree = load_preset(arm.preset).to_dict()
    for name, value in arm.options.items():
        section, _, option = name.partition(".")
        tree.setdefault(section, {})[option] = value
    kind = re.sub(r"\d+$", "", tree["model"]["name"])
    changes = read("sizes")[size]
    for layer in (changes, changes.get(kind, {})):
        for section, options in layer.items():
            if section in tree:
                tree[section] |= options
    factor = changes.get(kind, {}).get("lr", 1)
    for option in ("lr_g", "lr_d"):
        tree["optim"][option] *= factor
    tree["train"]["seed"] = seed
    return from_dict(tree, f"{arm.preset} at size {size}")


def arms_of(experiment: Experiment, size: str) -> list[Arm]:
    """The arms that are run at a size."""
    return [arm for arm in experiment.arms if size in arm.sizes]


def runs_of(arm: Arm, size: str) -> list[Config]:
    """The configurations of an arm's runs, one for each seed."""
    seeds = seeds_of(size) if arm.seeds is None else min(arm.seeds, seeds_of(size))
    config = config_of(arm, size, 0)
    return [replace(config, train=replace(config.train, seed=seed)) for seed in range(seeds)]


def plan(experiments: Iterable[Experiment], size: str) -> dict[str, Config]:
    """The runs that experiments need at a size, by name, each once."""
    return {
        config.run_name(): config
        for experiment in experiments
        for arm in arms_of(experiment, size)
        for config in runs_of(arm, size)
    }


def setting(experiment: Experiment, size: str) -> str:
    """What a figure's title says where it is not the paper's: other images, narrower networks,
    shorter runs, larger learning rates; "" at full size."""
    if size == "full":
        return ""
    said = []
    for arm in arms_of(experiment, size):
        paper, config = config_of(arm, "full", 0), config_of(arm, size, 0)
        images = f"{NAMES[config.data.name]} in place of {NAMES[paper.data.name]}"
        length = f"{config.train.steps:,} iterations"
        factor = config.optim.lr_d / paper.optim.lr_d
        rates = "" if factor == 1 else f", learning rates x {factor:g}"
        said.append(f"{images}, width {Fraction(config.model.width)}, {length}{rates}")
    return "; ".join(dict.fromkeys(said))
