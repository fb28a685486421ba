"""What the paper measures in samples: section 5.3, appendices N to S."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from paper.arms import (
    CIFAR10_BSSN,
    CIFAR10_SSN,
    IMAGENET,
    ROWS,
    STL10_CELEBA,
    VARIANTS,
    grid,
    method,
    over,
    scaled,
)
from paper.scales import NAMES
from paper.spec import (
    Arm,
    Bars,
    Curves,
    Experiment,
    Options,
    Samples,
    Table,
)

__all__ = ["EXPERIMENTS"]

#: How values are called in titles, and in the paper's order.
VALUES = {"score": "Score", "distance": "Distance"}
#: Figures of training curves by row of Table 7, by data set: first one, values, appendix.
CURVES = {
    "cifar10": (26, ("score", "distance"), "appendix P.3"),  # figure 26 would be figure 9
    "stl10": (41, ("score", "distance"), "appendix Q.3"),
    "celeba": (56, ("distance",), "appendix R.3"),
}
#: Sheets of samples by data set: the first figure, what the best run is chosen by, appendix.
SHEETS = {
    "cifar10": (36, "score", "appendix P.4"),
    "stl10": (51, "score", "appendix Q.4"),
    "celeba": (61, "distance", "appendix R.4"),
}
#: Rows that sheets are chosen from at reduced scales: one, which other figures run as well.
REDUCED = "h2"


def _bars() -> Iterator[Experiment]:
    for number, data, value, source in (
        (24, "cifar10", "score", "appendix N"),
        (25, "stl10", "score", "appendix N"),
        (26, "cifar10", "distance", "appendix P.2"),
        (40, "stl10", "distance", "appendix Q.2"),
        (55, "celeba", "distance", "appendix R.2"),
    ):
        yield Experiment(
            f"fig{number}",
            f"{VALUES[value]} of SN, BSN and their variants with γ, by lr_g, lr_d and n_dis",
            f"{source}, Figure {number}",
            data,
            grid(data),
            Bars(value),
        )


def _curves() -> Iterator[Experiment]:
    for data, (first, values, source) in CURVES.items():
        number = first
        for row, settings in ROWS.items():
            for value in values:
                moved = (9, "section 5.3") if number == 26 else (number, source)
                yield Experiment(
                    f"fig{moved[0]}",
                    f"{VALUES[value]} of SN and BSN with lr_g, lr_d, n_dis = {settings}",
                    f"{moved[1]}, Figure {moved[0]}",
                    data,
                    tuple(method(data, name, VARIANTS[name], row=row) for name in ("sn", "bsn")),
                    Curves(value),
                )
                number += 1


def _imagenet_arms() -> tuple[Arm, ...]:
    return tuple(
        scaled("imagenet", scale, bidirectional=both, sizes=sizes)
        for both in (False, True)
        for scale, sizes in over(IMAGENET, IMAGENET, (1.0, 1.4))
    )


def _imagenet_curves() -> Iterator[Experiment]:
    for number, value in ((65, "score"), (66, "distance")):
        yield Experiment(
            f"fig{number}",
            f"{VALUES[value]} of SN and BSN by scale",
            f"appendix S.2, Figure {number}",
            "imagenet",
            _imagenet_arms(),
            Curves(value),
        )


def _sheets() -> Iterator[Experiment]:
    for data, (first, value, source) in SHEETS.items():
        for number, name in enumerate(("same_gamma", "diff_gamma", "sn", "bsn"), start=first):
            yield Experiment(
                f"fig{number}",
                f"Samples of the best run of {VARIANTS[name]}",
                f"{source}, Figure {number}",
                data,
                tuple(
                    replace(
                        method(data, name, f"lr_g, lr_d, n_dis = {settings}", row=row),
                        sizes=("full", "small", "smoke") if row == REDUCED else ("full",),
                    )
                    for row, settings in ROWS.items()
                ),
                Samples(value),
            )
    for number, (both, scale) in enumerate(
        ((both, scale) for both in (False, True) for scale in IMAGENET), start=67
    ):
        arm = scaled("imagenet", scale, bidirectional=both)
        yield Experiment(
            f"fig{number}",
            f"Samples of the best run of {arm.label}",
            f"appendix S.3, Figure {number}",
            "imagenet",
            (arm,),
            Samples("score"),
        )


def _table1() -> Experiment:
    """Section 5.3.

    Appendices P to R say that it shows Table 7's first row. It must be the second, that of figures
    4 to 9: with the first, appendix Q has BSN fail on STL10, where Table 1 has its best results of
    all rows (Table 6). That row is the data sets' own preset.
    """
    arms: list[Arm] = []
    for data, ssn, bssn in (
        ("cifar10", CIFAR10_SSN, CIFAR10_BSSN),
        ("stl10", STL10_CELEBA, STL10_CELEBA),
        ("celeba", STL10_CELEBA, STL10_CELEBA),
        ("imagenet", IMAGENET, IMAGENET),
    ):
        # At the small scale all data sets are the same images: one column is enough.
        small = (1.0, 1.4) if data == "cifar10" else ()
        for both, listed in ((False, ssn), (True, bssn)):
            plain, with_scale = ("BSN", "BSSN") if both else ("SN", "SSN")
            found = [
                scaled(data, s, bidirectional=both, label=with_scale, series=NAMES[data], sizes=n)
                for s, n in over(listed, small, (1.0, 1.4))
            ]
            arms += [replace(arm, label=plain) for arm in found if arm.x == 1]
            arms += found
    return Experiment(
        "table1",
        "Score and distance of SN, SSN, BSN and BSSN, each with its best scale",
        "section 5.3, Table 1",
        "cifar10",
        tuple(arms),
        Table(1),
    )


def _table6() -> Experiment:
    return Experiment(
        "table6",
        "Score and distance of SN, BSN and their variants with γ, each with its best row of "
        "Table 7",
        "appendix N, Table 6",
        "cifar10",
        tuple(
            replace(
                arm,
                series=NAMES[data],
                sizes=("full", "small", "smoke") if data == "cifar10" else ("full", "smoke"),
            )
            for data in SHEETS
            for arm in grid(data)
        ),
        Table(6),
    )


def _table7() -> Experiment:
    return Experiment(
        "table7",
        "The hyper-parameters of figures 24 to 64",
        "appendix O, Table 7",
        "cifar10",
        tuple(replace(method("cifar10", "sn", row, row=row), seeds=0) for row in sorted(ROWS)),
        Options(("optim.lr_g", "optim.lr_d", "optim.beta1", "optim.beta2", "optim.n_dis")),
    )


EXPERIMENTS = (
    *_bars(),
    *_curves(),
    *_imagenet_curves(),
    *_sheets(),
    _table1(),
    _table6(),
    _table7(),
)
