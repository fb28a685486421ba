"""What results/ and the README show is what the records in results/ hold."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from fastsn.gan import cli

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "results"
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
#: Names that matplotlib makes of the numbers drawn.
HASH = re.compile(r"\b[mp][0-9a-f]{10}\b")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything drawn anew from the records, by the command that the README gives."""
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    shutil.copytree(RESULTS / "small/runs", folder / "results/small/runs")
    shutil.copytree(RESULTS / "small/theory", folder / "results/small/theory")
    words = ["draw", "--scale=small", f"--out={folder}/results", f"--readme={folder}/README.md"]
    assert cli.main(["experiment", *words]) == 0
    return folder


def files(folder: Path, suffix: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob(f"*{suffix}"))
    }


def test_numbers_drawn(drawn: Path) -> None:
    mine, new = (files(root / "small/figures", ".jsonl") for root in (RESULTS, drawn / "results"))
    assert mine.keys() == new.keys() and mine
    for name, text in mine.items():
        rows = [json.loads(line) for line in text.splitlines()]
        again = [json.loads(line) for line in new[name].splitlines()]
        assert len(rows) == len(again), name
        for row, other in zip(rows, again, strict=True):
            assert row.keys() == other.keys(), name
            for column, value in row.items():
                expected = other[column]
                if isinstance(value, float):
                    expected = pytest.approx(expected, rel=1e-9, nan_ok=True)
                assert value == expected, (name, column)


PINNED = re.findall(r"^matplotlib==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.skipif(
    version("matplotlib") != PINNED[0],
    reason=f"expected matplotlib {PINNED[0]}, which drew the figures: others place text elsewhere",
)
def test_figures(drawn: Path) -> None:
    mine, new = (files(root / "small/figures", ".svg") for root in (RESULTS, drawn / "results"))
    assert mine.keys() == new.keys() and mine
    for name, text in mine.items():
        assert NUMBER.sub("", HASH.sub("", text)) == NUMBER.sub("", HASH.sub("", new[name])), name
        places = [float(number) for number in NUMBER.findall(HASH.sub("", text))]
        again = [float(number) for number in NUMBER.findall(HASH.sub("", new[name]))]
        assert places == pytest.approx(again, abs=0.05), name
    assert {Path(name).stem for name in mine} == {
        path.stem for path in (RESULTS / "small/figures").glob("*.png")
    }


def test_tables_and_claims(drawn: Path) -> None:
    mine, new = (files(root / "small/tables", ".md") for root in (RESULTS, drawn / "results"))
    assert mine == new and "claims.md" in mine


def test_readme(drawn: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == (drawn / "README.md").read_text(encoding="utf-8")
    claims = (RESULTS / "small/tables/claims.md").read_text(encoding="utf-8").strip()
    assert claims in text
