"""The arms that the catalogs are made of, and the paper's lists of scales.

Equal options give equal runs, whatever experiment asks for them; so every arm is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from paper.spec import Arm

__all__ = [
    "CIFAR10_BSSN",
    "CIFAR10_SSN",
    "IMAGENET",
    "ROWS",
    "STL10_CELEBA",
    "VARIANTS",
    "conv",
    "grid",
    "lecun",
    "method",
    "over",
    "scaled",
    "spread",
    "sweep",
]

# The scales of appendices P to S.
CIFAR10_BSSN = (0.7, 0.8, 0.9, 1.0, *(i / 10 for i in range(12, 41, 2)))
CIFAR10_SSN = (*CIFAR10_BSSN, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0, 9.0, 10.0)
STL10_CELEBA = (0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6)
IMAGENET = (1.0, 1.2, 1.4, 1.6)
#: The paper gives no list for LeCun's initialization, only its good modes, about 0.2 and 1.2.
LECUN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
#: What is drawn instead at the small scale, and at the smoke scale.
SMALL, SMALL_LECUN = (0.5, 1.0, 1.4, 1.75, 2.5, 4.0), (0.2, 0.5, 0.8, 1.2, 1.6, 2.0)
SMOKE, SMOKE_LECUN = (1.0, 1.4), (0.2, 1.2)

#: Rows of Table 7 in the order of figures 27 to 35, and how they are labelled.
ROWS = {
    "h2": "0.0001, 0.0001, 1",
    "h4": "0.0001, 0.0002, 1",
    "h5": "0.0002, 0.0001, 1",
    "h3": "0.0002, 0.0002, 1",
    "h1": "0.0001, 0.0001, 5",
}
#: The variants of appendix N, in Table 6's order.
VARIANTS = {
    "same_gamma": "SN (same γ)",
    "bsn_same_gamma": "BSN (same γ)",
    "diff_gamma": "SN (diff. γ)",
    "bsn_diff_gamma": "BSN (diff. γ)",
    "sn": "SN",
    "bsn": "BSN",
}


def method(data: str, name: str, label: str, *, series: str = "", row: str = "") -> Arm:
    """A method's preset, with a row of Table 7 or the data set's own options."""
    options = {}
    if data == "stl10" and name.endswith("gamma"):
        options["train.steps"] = 400_000  # appendix Q: only SN and BSN run for longer
    preset = "_".join(part for part in (f"paper/{data}", name, row) if part)
    return Arm(label, preset, options, series)


def scaled(
    data: str,
    scale: float,
    *,
    bidirectional: bool = False,
    label: str = "",
    series: str = "",
    sizes: tuple[str, ...] = ("full", "small", "smoke"),
) -> Arm:
    """SSN or BSSN; with scale 1 they are SN and BSN, whose runs are taken."""
    name = "bsn" if bidirectional else "sn"
    label = label or f"{name.upper()} (scale={scale})"
    # Table 1: five seeds of SN, three of the others on ILSVRC2012.
    seeds = 3 if data == "imagenet" and (bidirectional or scale != 1) else None
    if scale == 1:
        return Arm(label, f"paper/{data}_{name}", {}, series, scale, sizes, seeds)
    options = {"norm.scale": scale}
    preset = f"paper/{data}_{'bssn' if bidirectional else 'ssn'}"
    return Arm(label, preset, options, series, scale, sizes, seeds)


def conv(
    data: str,
    scale: float,
    *,
    label: str = "",
    series: str = "",
    sizes: tuple[str, ...] = ("full", "small", "smoke"),
) -> Arm:
    """The strict SN_Conv."""
    label = label or f"SN_Conv (scale={scale})"
    return Arm(label, f"paper/{data}_sn_conv", {"norm.scale": scale}, series, scale, sizes)


def lecun(data: str, scale: float, *, series: str, sizes: tuple[str, ...]) -> Arm:
    """Scaled LeCun initialization without a norm."""
    label = f"LeCun (scale={scale})"
    return Arm(label, f"paper/{data}_lecun", {"norm.scale": scale}, series, scale, sizes)


def spread(data: str) -> tuple[Arm, ...]:
    """SN_Conv with random scales of the layers, whose geometric mean is the preset's scale
    (appendix K). How random they were is not said: here the logarithms have deviation 0.5."""
    return tuple(
        Arm(
            f"c {number}",
            f"paper/{data}_sn_conv",
            {"norm.spread": 0.5, "norm.spread_seed": number},
            sizes=("full", "small", "smoke")[: 1 + (number <= 6) + (number <= 2)],
            seeds=1,
        )
        for number in range(1, 11)
    )


def over(
    full: Sequence[float], small: Sequence[float] = (), smoke: Sequence[float] = ()
) -> Iterable[tuple[float, tuple[str, ...]]]:
    """Every value of the lists in order, and the scales whose list it is in."""
    lists = {"full": full, "small": small, "smoke": smoke}
    for value in sorted({*full, *small, *smoke}):
        yield value, tuple(size for size, listed in lists.items() if value in listed)


def sweep(make: Callable[..., Arm], series: str) -> tuple[Arm, ...]:
    """:func:`scaled`, :func:`conv` or :func:`lecun` on CIFAR10 over its lists of scales."""
    lists = (LECUN, SMALL_LECUN, SMOKE_LECUN) if make is lecun else (CIFAR10_SSN, SMALL, SMOKE)
    if make is conv:  # 1.75 is the scale of figure 4
        lists = ((*CIFAR10_SSN, 1.75), SMALL, (1.0, 1.75))
    return tuple(
        make("cifar10", value, series=series, sizes=sizes) for value, sizes in over(*lists)
    )


def grid(data: str) -> tuple[Arm, ...]:
    """All variants with all rows of Table 7: a series per row."""
    return tuple(
        method(data, name, label, series=settings, row=row)
        for row, settings in ROWS.items()
        for name, label in VARIANTS.items()
    )
