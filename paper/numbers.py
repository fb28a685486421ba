"""The numbers that the paper states (``experiments/numbers.yaml``)."""

from __future__ import annotations

import re

from paper.catalog import read

#: Other names of a data set.
ALIASES = {"ilsvrc2012": "imagenet"}


def of_table(number: int) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """``(mean, standard error)`` or ``(value,)`` by method, data set and value; none for a table
    without results.

    The method is named as in the paper, with ``gamma`` spelled out.
    """
    rows = read("numbers")["tables"].get(number, {}).get("rows", {})
    return {
        (method, data, value): tuple(numbers)
        for method, sets in rows.items()
        for data, found in sets.items()
        for value, numbers in found.items()
    }


def paper_seeds(number: int) -> str:
    """How many seeds a table's means are of."""
    return read("numbers")["tables"].get(number, {}).get("seeds", "")


def of_sample_sheet(figure: int) -> dict[str, float]:
    """``score`` and ``distance`` in the caption of a sheet of samples, as far as it states them."""
    return read("numbers")["samples"].get(figure, {})


def same_name(a: str, b: str) -> bool:
    """Whether two names of a method or a data set mean the same: ``SN (diff. γ)``, ``CIFAR10``."""
    return _plain(a) == _plain(b)


def _plain(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("γ", "gamma"))
    return ALIASES.get(plain, plain)
