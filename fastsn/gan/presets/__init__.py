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

__all__ = ["load_preset", "preset_names"]

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


def load_preset(name: str) -> Config:
    """The configuration of a name.

    Raises:
        ConfigError: no such preset; the message lists what there is.
    """
    if name == "demo":
        return from_dict(_read("demo"), name)
    if name not in _parts():
        methods = ", ".join(_read("methods"))
        raise ConfigError(
            f"--config: expected a YAML file or a preset, got {name!r}; presets: demo, and "
            f"paper/DATA_METHOD or paper/DATA_METHOD_ROW with DATA one of {', '.join(DATA_SETS)}, "
            f"METHOD one of {methods}, ROW (of Table 7) one of {', '.join(_read('table7'))}"
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
