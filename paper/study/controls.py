"""The controls of ``paper/protocol.md``: what must come out near chance, and what must not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper.statistics import welch
from paper.study.claims import LEVEL
from paper.study.compare import shares_below
from paper.study.evidence import Evidence
from paper.study.plan import runs

__all__ = ["Control", "controls"]


@dataclass(frozen=True)
class Control:
    """What is tried, what it should show, and what it shows."""

    name: str
    wanted: str
    found: str


def controls(evidence: Evidence) -> list[Control]:
    """All that the whole seeds allow."""
    seeds = evidence.seeds
    found = []
    if len(seeds) >= 3:
        sn, bsn = (evidence.values("A", arm, "end", seeds) for arm in ("SN", "BSN"))
        share = shares_below(sn, bsn, LEVEL)
        text = "Labels of SN and BSN (A) shuffled in all ways: share with p < 0.05"
        found.append(Control(text, "about 0.05", f"{share:.3f}"))
    even, odd = [s for s in seeds if s % 2 == 0], [s for s in seeds if s % 2]
    if min(len(even), len(odd)) >= 2:
        arms = dict.fromkeys(run.arm for run in runs(1) if run.setting == "A")
        halves = [_halves(evidence, arm, even, odd) for arm in arms]
        text = "Every arm of A against itself, even seeds against odd: p < 0.05"
        wanted = f"about 1 of 20, of {len(halves)}"
        found.append(Control(text, wanted, f"{sum(p < LEVEL for p in halves)}"))
    if len(seeds) >= 2:
        first, end = (evidence.values("A", "SN", value, seeds) for value in ("first", "end"))
        text = "SN's first evaluation against its last: p"
        found.append(Control(text, "below 0.05", f"{welch(first, end).p:.2g}"))
    return found


def _halves(evidence: Evidence, arm: str, even: Sequence[int], odd: Sequence[int]) -> float:
    a, b = (evidence.values("A", arm, "end", seeds) for seeds in (even, odd))
    return welch(a, b).p
