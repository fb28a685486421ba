"""Named configurations: ``paper/cifar10_bssn``, ``paper/stl10_sn_h3``, ``demo``.

A name is a data set (a YAML file here), a method (``methods.yaml``) and perhaps a row of Table 7
(``table7.yaml``), which are merged in this order over the defaults.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from fastsn.gan.config import Config, ConfigError, from_dict

__all__ = ["load_preset", "preset_names", "preset_words"]

DATA_SETS = ("mnist", "cifar10", "stl10", "celeba", "imagenet")
#: The data sets that the paper trains with every row of Table 7.
WITH_TABLE_7 = ("cifar10", "stl10", "celeba")
#: The methods that the paper trains on some data sets only (appendix I; section 4, appendix K), and
#: not with Table 7.
ONLY = {
    "wgan_gp": ("cifar10",),
    "wgan_gp_explode": ("cifar10",),
    "wgan_gp_vanish": ("cifar10",),
    "sn_conv": ("mnist", "cifar10", "stl10"),
}


@cache
def _read(name: str) -> dict[str, Any]:
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def _parts() -> dict[str, tuple[str, str, str]]:
    """Preset name -> (data set, method, row of Table 7 or "")."""
    parts = {}
    for data in DATA_SETS:
        for method in _read("methods"):
            if data not in ONLY.get(method, DATA_SETS):
                continue
            with_rows = data in WITH_TABLE_7 and method not in ONLY
            for row in ["", *_read("table7")] if with_rows else [""]:
                name = "_".join(part for part in (data, method, row) if part)
                parts[f"paper/{name}"] = data, method, row
    return parts


def preset_names() -> list[str]:
    """All names, in the paper's order."""
    return ["demo", *_parts()]


def preset_words() -> str:
    """All names, in a sentence."""
    methods = list(_read("methods"))
    only: dict[str, list[str]] = {data: [] for data in DATA_SETS}
    for method, sets in ONLY.items():
        for data in sets:
            only[data].append(method)
    everywhere = [method for method in methods if method not in ONLY]
    more = "; ".join(f"of {data} also {', '.join(found)}" for data, found in only.items() if found)
    return (
        f"demo; paper/DATA_METHOD with DATA {', '.join(DATA_SETS)}, "
        f"METHOD {', '.join(everywhere)}, "
        f"{more}; paper/DATA_METHOD_ROW with DATA {', '.join(WITH_TABLE_7)} and ROW (of Table 7) "
        f"{', '.join(_read('table7'))}"
    )


def load_preset(name: str) -> Config:
    """The configuration of a name.

    Raises:
        ConfigError: no such preset; the message lists what there is.
    """
    if name == "demo":
        return from_dict(_read("demo"), name)
    if name not in _parts():
        raise ConfigError(
            f"--config: expected a YAML file or a preset, got {name!r}; presets: {preset_words()}"
        )
    data, method, row = _parts()[name]
    changes = _read("methods")[method]
    tree: dict[str, Any] = {}
    for layer in (
        _read(data),
        changes["all"],
        changes.get(data, {}),
        _read("table7")[row] if row else {},
    ):
        for section, options in layer.items():
            tree[section] = tree.get(section, {}) | options
    return from_dict(tree, name)
