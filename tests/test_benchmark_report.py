"""What README and site show of the benchmarks is what benchmarks/results holds."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import plots, report

RESULTS = report.read_results()
DRAWN = list(report.drawn(RESULTS))
GROUP = "{http://www.w3.org/2000/svg}g"
PATH = "{http://www.w3.org/2000/svg}path"

Bars = dict[tuple[str, ...], float]


def numbers_in(svg: Path) -> Bars:
    """Lengths of the bars in a picture, in units of the dashed line's distance."""
    edges = {}
    for group in ElementTree.parse(svg).iter(GROUP):
        kind, *key = group.get("id", "").split(".")
        if kind in ("bar", "one"):
            path = group.find(PATH)
            assert path is not None
            xs = [float(x) for x in re.findall(r"[ML] (\S+) \S+", path.get("d", ""))]
            edges[(kind, *key)] = (min(xs), max(xs))
    lengths = {}
    for (kind, *key), (start, end) in edges.items():
        if kind == "bar":
            one, _ = edges["one", key[1]]
            lengths[tuple(key)] = (end - start) / (one - start)
    return lengths


@pytest.mark.parametrize("page, name, block", list(report.blocks(RESULTS)))
def test_pages_are_what_the_generator_writes(page: Path, name: str, block: str) -> None:
    text = page.read_text(encoding="utf-8")
    assert report.updated(text, name, block) == text, "python -m benchmarks.report"


def test_a_page_without_its_markers_is_refused() -> None:
    begin, end = "<!-- demo:begin -->", "<!-- demo:end -->"
    assert report.updated(f"a{begin}old{end}b", "demo", "new") == f"a{begin}\n\nnew\n\n{end}b"
    for text in ("", begin, f"{end}{begin}", f"{begin}{begin}{end}", f"{begin}{end}{end}"):
        with pytest.raises(ValueError, match="expected the page to have"):
            report.updated(text, "demo", "new")


def test_the_short_block_is_short_and_of_the_newest_results() -> None:
    assert len(report.short(RESULTS).splitlines()) <= 12
    name, newer = "newer", copy.deepcopy(next(iter(RESULTS.values())))
    newer["datetime"] = "9999-01-01"
    newer["machine_info"].update(cpu="a newer one", allocator="system")
    kept = copy.deepcopy(newer)
    kept["datetime"], kept["machine_info"]["allocator"] = "9999-01-02", "kept"
    for entry in newer["benchmarks"]:
        if entry["name"] == "test_speed[cnn-forward-torch]":
            compiled = copy.deepcopy(entry)
            compiled["extra_info"]["contender"] = "torch-compiled"
            compiled["stats"]["median"] = 0.0123
    newer["benchmarks"].append(compiled)
    newer["gates"] = [
        {"text": f"{w}: peak memory of fastsn's forward / normalized weights", "measured": m}
        for w, m in (("cnn", 1.01), ("biggan", 1.25), ("deep", 7.0))  # the last is all overhead
    ]
    text = report.short({**RESULTS, name: newer, "kept": kept})
    assert "a newer one" in text and "memory as the system gives it" in text
    assert "| torch, compiled |" in text and "| 12.3 ms |" in text
    assert "forward at most 1.25 times its normalized weights" in text and "7.0" not in text
    assert len(text.splitlines()) <= 12


def test_no_picture_is_missing_or_left_over() -> None:
    assert DRAWN, "expected results that can be drawn, got none"
    assert {path for _, _, path in DRAWN} == set(report.IMAGES.glob("bench-*.svg"))


@pytest.mark.parametrize(("name", "kind", "path"), DRAWN, ids=[f"{n}-{k}" for n, k, _ in DRAWN])
def test_pictures_show_the_results(name: str, kind: str, path: Path) -> None:
    plot = plots.PLOTS[kind]
    expected = {}
    for entry in RESULTS[name]["benchmarks"]:
        info = entry["extra_info"]
        if info["contender"] in plots.COLORS and info["mode"] in plots.MODES_DRAWN:
            key = (info["workload"], info["mode"], info["contender"])
            expected[key] = info.get("times_faster_than", {}).get(plot.against)
    expected = {key: ratio for key, ratio in expected.items() if ratio is not None}
    assert numbers_in(path) == pytest.approx(expected, rel=1e-4)
    text = path.read_text(encoding="utf-8")
    assert plots.device_name(RESULTS[name]) in text and "<dc:date>" not in text


def test_pictures_follow_the_results(tmp_path: Path) -> None:
    """Of other numbers, other bars; of the same ones, the same bytes."""
    result = copy.deepcopy(next(iter(RESULTS.values())))
    files = [tmp_path / f"{i}.svg" for i in range(3)]
    for file in files[:2]:
        plots.draw(result, "speed-up", file)
    assert files[0].read_bytes() == files[1].read_bytes()
    (entry,) = (
        entry for entry in result["benchmarks"] if entry["name"] == "test_speed[cnn-forward-fastsn]"
    )
    entry["extra_info"]["times_faster_than"]["torch"] = 23.5
    plots.draw(result, "speed-up", files[2])
    before, after = numbers_in(files[0]), numbers_in(files[2])
    assert after.pop(("cnn", "forward", "fastsn")) == pytest.approx(23.5, rel=1e-4)
    del before["cnn", "forward", "fastsn"]
    assert after == pytest.approx(before, rel=1e-4)


def test_a_result_without_comparisons_is_not_drawn(tmp_path: Path) -> None:
    result = copy.deepcopy(next(iter(RESULTS.values())))
    for entry in result["benchmarks"]:
        entry["extra_info"].pop("times_faster_than", None)
    assert list(report.drawn({"x": result})) == []
    with pytest.raises(ValueError, match="expected times against 'torch' in the results, got none"):
        plots.draw(result, "speed-up", tmp_path / "x.svg")
