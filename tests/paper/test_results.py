"""What paper/results shows is what its records hold, and it is small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paper.__main__ import main
from paper.study.__main__ import main as study
from paper.study.report import RECORDS, REPEATED
from paper.theory import CHECKS

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "paper/results"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything drawn anew from the records."""
    folder = tmp_path_factory.mktemp("drawn")
    for name in ("runs", "theory"):
        shutil.copytree(RESULTS / "small" / name, folder / "small" / name)
    assert main(["draw", f"--out={folder}", f"--runs={folder / 'none'}"]) == 0
    return folder


@pytest.mark.slow
def test_numbers_drawn(drawn: Path) -> None:
    mine, new = (
        {path.name: path for path in (root / "small/figures").glob("*.jsonl")}
        for root in (RESULTS, drawn)
    )
    assert mine.keys() == new.keys() and len(mine) >= 30
    for name, path in mine.items():
        rows, again = (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for file in (path, new[name])
        )
        assert len(rows) == len(again) > 0, name
        for row, other in zip(rows, again, strict=True):
            assert row.keys() == other.keys(), name
            for column, value in row.items():
                expected = other[column]
                if isinstance(value, float):
                    expected = pytest.approx(expected, rel=1e-9)
                assert value == expected, (name, column)


@pytest.mark.slow
def test_page_and_claims(drawn: Path) -> None:
    mine, new = ((root / "small/README.md").read_text() for root in (RESULTS, drawn))
    assert mine == new
    assert mine.count("**supported**") + mine.count("**check holds**") > 5
    pictures = {path.name for path in (RESULTS / "small/figures").glob("*.png")}
    assert {name for name in pictures if f"](figures/{name})" in mine} == pictures


@pytest.mark.slow
def test_page_of_the_full_theory_checks(tmp_path: Path) -> None:
    """They are recorded at full size as well, without any run."""
    shutil.copytree(RESULTS / "full/theory", tmp_path / "full/theory")
    assert {path.name.split(".")[0] for path in (tmp_path / "full/theory").iterdir()} == {*CHECKS}
    where = [f"--out={tmp_path}", f"--runs={tmp_path / 'none'}"]
    assert main(["draw", *CHECKS, "--size=full", *where]) == 0
    mine, new = ((root / "full/README.md").read_text() for root in (RESULTS, tmp_path))
    assert mine == new and mine.count("**check holds**") > 5
    for name in CHECKS:
        assert (RESULTS / f"full/figures/{name}.png").is_file()


@pytest.mark.slow
def test_page_of_the_study(tmp_path: Path) -> None:
    for path in (RESULTS / "study").iterdir():
        if path.name in (RECORDS, REPEATED, "samples"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, tmp_path / path.name)
    assert study(["report", f"--out={tmp_path}"]) == 0
    mine, new = ((root / "README.md").read_text() for root in (RESULTS / "study", tmp_path))
    assert mine == new and "runs are recorded" in mine


def test_results_are_small_and_have_one_picture_format() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert {path.suffix for path in files} == {".png", ".jsonl", ".gz", ".md"}
