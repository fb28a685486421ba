"""The page of arithmetic says what was counted."""

from __future__ import annotations

import json

import pytest

from .cuda import CudaMachine
from .report import BEFORE, COUNTS, PAGE, measure_all, page


def test_page_is_made_from_the_counts() -> None:
    expected = page(json.loads(COUNTS.read_text()), json.loads(BEFORE.read_text()))
    assert PAGE.read_text() == expected, "write it anew: make gpu-arithmetic"


@pytest.mark.ptx
def test_counts_are_what_the_machine_counts(cuda: CudaMachine) -> None:
    """Within what another release of nvcc may change."""
    kept, counted = json.loads(COUNTS.read_text()), measure_all()
    assert kept.keys() == counted.keys()
    for part in kept:
        assert kept[part].keys() == counted[part].keys()
        for name in kept[part]:
            for direction, (elements, size, kernels) in counted[part][name].items():
                own = kept[part][name][direction]
                assert own[:2] == [elements, size] and len(own[2]) == len(kernels)
                for one, other in zip(own[2], kernels, strict=True):
                    assert one[0] == other[0]
                    assert one[1:] == pytest.approx(other[1:], rel=0.03, abs=0.02), (name, one[0])
