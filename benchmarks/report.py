"""The README's benchmark tables and plots, from benchmarks/results/*.json.

``python -m benchmarks.report`` writes the tables between two markers, and the plots in docs/images.
``--check`` only compares the tables, and exits 1 where the README differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.peers import CONTENDERS, MODES
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

#: What each method's ratio in brackets is taken against.
BASELINES = {"sn": "torch", "bsn": "plain-bsn"}
METHODS = {"sn": "SN", "bsn": "BSN", "copy": ""}

EXPLANATION = (
    f"Median times of normalizing all weights once. In brackets: how many times faster than "
    f"{CONTENDERS['torch'].title} (SN) or {CONTENDERS['plain-bsn'].title} (BSN), both taken in "
    "turns in one process."
)


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Benchmark results by the name of their file; other files hold training steps."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: result for name, result in found.items() if "benchmarks" in result}


def drawn(results: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, str, Path]]:
    """(result file, plot, image) of every plot that the results have numbers for."""
    for name, result in results.items():
        for kind, plot in plots.PLOTS.items():
            if plots.bars(result, plot):
                yield name, kind, IMAGES / f"bench-{name}-{kind}.svg"


def tables(results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of all results."""
    if not results:
        return "No results are recorded yet."
    blocks = [EXPLANATION]
    for name, result in results.items():
        pictures = [
            f"![{plots.PLOTS[kind].title}]({path.relative_to(ROOT).as_posix()})"
            for _, kind, path in drawn({name: result})
        ]
        blocks += _result(result, pictures)
    return "\n\n".join(blocks)


def _result(result: dict[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    machine, commit = result["machine_info"], result["commit_info"]
    version = str(commit.get("id", "unknown"))[:12] + (" + changes" if commit.get("dirty") else "")
    others = result.get("others_cpu_share")
    yield f"### {plots.device_name(result)}"
    yield (
        f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}, fastsn "
        f"{machine['fastsn']}, commit {version}, {result['datetime'][:10]}."
        + (f" Other processes used {others:.0%} of the CPU time." if others else "")
    )
    yield from pictures
    for workload in WORKLOADS:
        entries = [b for b in result["benchmarks"] if b["extra_info"]["workload"] == workload]
        if entries:
            yield from _workload(workload, entries)
    if norms := [b for b in result["benchmarks"] if b["extra_info"]["mode"] == "norm"]:
        yield from _conv_norms(norms)
    if gates := result.get("gates"):
        yield "**Promises** (tests in `benchmarks/test_gates.py`)"
        rows = [
            [
                gate["text"],
                gate["bound"],
                f"{gate['measured']:.2f}{'' if gate['kept'] else ' (not kept)'}",
                f"{gate['limit']:.1f}" if "limit" in gate else "",
            ]
            for gate in gates
        ]
        yield _markdown(["", "promised", "measured", "this machine's memory allows"], rows)


def _workload(workload: str, entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    info = entries[0]["extra_info"]
    yield (
        f"**{WORKLOADS[workload].title}**: {info['weights']} weights, "
        f"{info['parameters'] / 1e6:.2f} M parameters, float32"
    )
    by_key = {(e["extra_info"]["contender"], e["extra_info"]["mode"]): e for e in entries}
    rows = []
    for name, contender in CONTENDERS.items():
        cells = [_cell(by_key.get((name, mode)), contender.method) for mode in MODES]
        if any(cells):
            rows.append([METHODS[contender.method], contender.title, *cells])
    yield _markdown(["", "", *(mode.title for mode in MODES.values())], rows)


CONV_METHODS = {
    "sn": "fastsn, SN (of the reshaped kernel)",
    "sn_conv": "fastsn, SN_Conv, one iteration",
    "fourier": "FFT and SVD, circular",
    "gram": "Gram iteration, circular, upper bound",
}


def _conv_norms(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "**Norm of a 3x3 convolution** for inputs of one size: median time, relative error"
    by_key = {(e["extra_info"]["contender"], e["extra_info"]["workload"]): e for e in entries}
    columns = list(dict.fromkeys(workload for _, workload in by_key))
    rows = []
    for method, title in CONV_METHODS.items():
        found = [by_key.get((method, column)) for column in columns]
        cells = [
            f"{_cell(entry, '')}, {entry['extra_info']['max_error']:.0e}" if entry else ""
            for entry in found
        ]
        rows.append([title, *cells])
    yield _markdown(["", *columns], rows)


def _cell(entry: dict[str, Any] | None, method: str) -> str:
    if entry is None:
        return ""
    info = entry["extra_info"]
    text = f"{_three_digits(entry['stats']['median'] * 1e3)} ms"
    if ratio := info.get("times_faster_than", {}).get(BASELINES.get(method, "")):
        text += f" ({ratio:.{int(ratio < 10)}f}x)"
    if "device_us" in info:
        text += f"; GPU {_three_digits(info['device_us'])} us, launches: {info['launches']}"
    return text


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 10 else int(number < 100)}f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns after the names are numbers, and stand at the right."""
    names = sum(not title for title in head)
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def updated(readme: str, block: str) -> str:
    """The README with ``block`` between the markers.

    Raises:
        ValueError: it does not have each marker once, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected the README to have {BEGIN} and then {END} once, got neither")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 on a difference"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    results = read_results()
    if not options.readme.exists():
        parser.error(f"expected a README at {options.readme}, got none")
    old = options.readme.read_text(encoding="utf-8")
    try:
        new = updated(old, tables(results))
    except ValueError as error:
        parser.error(f"{options.readme}: {error}")
    if options.check:
        if old != new:
            print(f"{options.readme} differs from its results: python -m benchmarks.report")
        return int(old != new)
    if old != new:
        options.readme.write_text(new, encoding="utf-8")
    for name, kind, path in drawn(results):
        plots.draw(results[name], kind, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
