"""One number of a run: its last value, or its best."""

from __future__ import annotations

import math

from paper.records import Record, values

__all__ = ["at_moment", "pick"]

#: Which end of a value is its good one.
BETTER = {"score": max, "distance": min}


def pick(record: Record, value: str, which: str) -> tuple[int, float] | None:
    """The step and the value, of the finite ones of a run; None if it has none.

    Args:
        which: ``"last"``; or ``"best"``, of the evaluations' ``score`` and ``distance``.
    """
    finite = [(step, number) for step, number in values(record, value) if math.isfinite(number)]
    if which == "last":
        return max(finite, default=None)
    if which != "best" or value not in BETTER:
        raise ValueError(
            f"expected the 'last' value or the 'best' of {' or '.join(BETTER)}, "
            f"got the {which!r} of {value}"
        )
    return BETTER[value](finite, key=lambda point: point[1], default=None)


def at_moment(points: list[tuple[int, float]], step: float) -> tuple[int, float] | None:
    """The finite point nearest to a step, the earlier of two."""
    finite = [point for point in points if math.isfinite(point[1])]
    return min(finite, key=lambda point: (abs(point[0] - step), point[0]), default=None)
