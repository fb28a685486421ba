"""What difference a number of seeds can show, from the variance between seeds of a pilot.

The pilot is the recorded runs of size small: the same networks and images, a tenth of the length.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from statistics import fmean, variance

from fastsn.gan.report import markdown_table
from paper.records import Record, values
from paper.statistics import welch

__all__ = ["detectable", "pilot", "power_page"]

DRAWS = 2000
#: Presets of the pilot, by the name they have in the table.
ARMS = {"SN": ("sn", 1.0), "BSN": ("bsn", 1.0), "BSSN 1.4": ("bssn", 1.4), "SSN 1.4": ("ssn", 1.4)}


def pilot(records: Mapping[str, Record]) -> dict[str, list[float]]:
    """Logarithms of the last distance of each seed, by arm."""
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for record in records.values():
        config = record.config
        for name, (method, scale) in ARMS.items():
            if (config.norm.method, config.norm.scale, config.loss.name) == (
                method,
                scale,
                "hinge",
            ):
                found[name].append(math.log(values(record, "distance")[-1][1]))
    return found


def power(n: int, effect: float, level: float) -> float:
    """Of Welch's test of two normal groups of ``n``, ``effect`` standard deviations apart."""
    draw = random.Random(f"{n} {effect}")
    found = 0
    for _ in range(DRAWS):
        a = [draw.gauss(0.0, 1.0) for _ in range(n)]
        b = [draw.gauss(effect, 1.0) for _ in range(n)]
        found += welch(a, b).p < level
    return found / DRAWS


def detectable(n: int, level: float, wanted: float = 0.8) -> float:
    """The smallest effect in steps of a tenth standard deviation that has the wanted power."""
    return next(e / 10 for e in range(5, 100) if power(n, e / 10, level) >= wanted)


def power_page(records: Mapping[str, Record], family: int) -> str:
    """Tables in Markdown: the pilot's deviations, and the differences that can be shown."""
    spreads = {name: math.sqrt(variance(logs)) for name, logs in pilot(records).items()}
    rows = [
        {"pilot": name, "runs": len(logs), "deviation of the log of the distance": f"{spread:.2f}"}
        for (name, logs), spread in zip(pilot(records).items(), spreads.values(), strict=True)
    ]
    least, typical = min(spreads.values()), math.sqrt(fmean(s * s for s in spreads.values()))
    shown = []
    for n in (5, 6, 10):
        for level, words in ((0.05, "0.05"), (0.05 / family, f"0.05 / {family}")):
            effect = detectable(n, level)
            shown.append(
                {
                    "seeds": n,
                    "level": words,
                    "deviations": f"{effect:.1f}",
                    f"with {least:.2f}": _percent(effect * least),
                    f"with {typical:.2f}": _percent(effect * typical),
                }
            )
    return f"{markdown_table(rows)}\n\n{markdown_table(shown)}"


def _percent(log: float) -> str:
    return f"{100 * (1 - math.exp(-log)):.0f} % lower"
