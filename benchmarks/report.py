"""Benchmark tables and plots, from benchmarks/results/*.json: ``python -m benchmarks.report``.

A short table goes between two markers of README.md, all tables between those of docs/benchmarks.md,
the plots into docs/images; and the demo's numbers, from docs/images/demo.json, into
docs/training.md. ``--check`` only compares, and exits 1 on a difference.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.peers import CONTENDERS, MODES
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
TRAINING = ROOT / "docs" / "training.md"
DEMO = IMAGES / "demo.json"

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


#: Rows and columns of the short table; a contender without any number has no column.
SHORT_ROWS = tuple(
    (workload, method, mode)
    for workload in ("cnn", "resnet")
    for method, mode in (("sn", "forward"), ("sn", "forward_backward"), ("bsn", "forward_backward"))
)
SHORT_COLUMNS = {
    "torch": {"sn": "torch", "bsn": "plain-bsn"},
    "torch, compiled": {"sn": "torch-compiled", "bsn": "plain-bsn-compiled"},
    "fastsn": {"sn": "fastsn", "bsn": "fastsn-bsn"},
    "floor": {"sn": "traffic", "bsn": ""},
}
_PEAK = re.compile(r"(?:cnn|resnet|biggan): peak memory of fastsn\S*'s (forward|backward) / (.+)")


def short(results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of the newest results, those with the allocator as users have it if there are any:
    one table, and a line about memory; at most 12 lines.
    """
    if not results:
        return "No results are recorded yet."
    as_users = [r for r in results.values() if r["machine_info"].get("allocator") == "system"]
    result = max(as_users or results.values(), key=lambda result: str(result["datetime"]))
    entries = {
        tuple(entry["extra_info"].get(key) for key in ("workload", "mode", "contender")): entry
        for entry in result["benchmarks"]
    }
    columns = {
        title: names
        for title, names in SHORT_COLUMNS.items()
        if any((w, mode, names[method]) in entries for w, method, mode in SHORT_ROWS)
    }
    rows = []
    for workload, method, mode in SHORT_ROWS:
        cells = [
            _cell(entries.get((workload, mode, names[method])), method if title == "fastsn" else "")
            for title, names in columns.items()
        ]
        network = WORKLOADS[workload].title.partition(",")[0]
        rows.append([f"{network}, {METHODS[method]}, {MODES[mode].title}", *cells])
    version = result["machine_info"]["torch"]
    lines = [f"{plots.device_name(result)}, torch {version}{_allocator(result)}:", ""]
    lines += [_markdown(["", *columns], rows)]
    peaks: dict[str, list[float]] = {}
    for gate in result.get("gates") or ():
        if match := _PEAK.fullmatch(gate["text"]):
            peaks.setdefault(f"{match[1]} at most {{}} times its {match[2]}", []).append(
                gate["measured"]
            )
    if peaks:
        told = ", ".join(text.format(f"{max(found):.2f}") for text, found in peaks.items())
        lines += ["", f"Memory at the peak: {told}."]
    return "\n".join(lines)


#: What becomes of freed memory (``--allocator``), as it is told.
ALLOCATORS = {"system": "memory as the system gives it", "kept": "freed memory kept"}


def _allocator(result: dict[str, Any]) -> str:
    """What became of freed memory, where the result says it."""
    allocator = result["machine_info"].get("allocator")
    return f", {ALLOCATORS[allocator]}" if allocator else ""


def tables(results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of all results."""
    if not results:
        return "No results are recorded yet."
    blocks = [EXPLANATION]
    for name, result in results.items():
        pictures = [
            f"![{plots.PLOTS[kind].title}]({path.relative_to(PAGE.parent).as_posix()})"
            for _, kind, path in drawn({name: result})
        ]
        blocks += _result(result, pictures)
    return "\n\n".join(blocks)


def _result(result: dict[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    machine, commit = result["machine_info"], result["commit_info"]
    version = str(commit.get("id", "unknown"))[:12] + (" + changes" if commit.get("dirty") else "")
    others = result.get("others_cpu_share")
    yield f"## {plots.device_name(result)}{_allocator(result)}"
    yield (
        f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}, fastsn "
        f"{machine['fastsn']}{_allocator(result)}, commit {version}, {result['datetime'][:10]}."
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
        yield "### Promises\n\nTests in `benchmarks/test_gates.py`."
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
        f"### {WORKLOADS[workload].title}\n\n{info['weights']} weights, "
        f"{info['parameters'] / 1e6:.2f} M parameters, float32."
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
    yield "### Norm of a 3x3 convolution\n\nFor inputs of one size: median time, relative error."
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


def demo(summary: dict[str, Any]) -> str:
    """Markdown of the numbers of a demo (``benchmarks/demo.py``)."""
    last, name, times = summary["last"], summary["metric"], summary["step_time"]
    protocol, options = last["protocol"], times["options"]
    by_step = ", ".join(f"{value:.1f} at {step}" for step, value in summary["by_step"].items())
    rows = []
    for i, row in enumerate(times["rows"]):
        extra = f"{row['overhead_s'] * 1e3:.2f} ms" if i else ""
        rows.append([row["contender"], f"{row['median_s'] * 1e3:.1f} ms", extra])
    return "\n".join(
        [
            f"Frechet distance ({name}) by iteration: {by_step}; in the features of a small "
            f"{protocol['extractor']}, so not an FID.",
            "",
            f"Training step of that network (width {options['width']:g}, batch {options['batch']}, "
            f"{times['environment']['threads']} threads, torch {times['environment']['torch']}), "
            "medians in one process, in turns:",
            "",
            _markdown(["", "step", "more than without a norm"], rows),
        ]
    )


def updated(text: str, name: str, block: str) -> str:
    """A page with ``block`` between the markers ``name:begin`` and ``name:end``.

    Raises:
        ValueError: it does not have each marker once, in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in after:
        raise ValueError(f"expected the page to have {begin} and then {end} once, got neither")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def blocks(results: Mapping[str, dict[str, Any]]) -> Iterator[tuple[Path, str, str]]:
    """(page, name of its markers, what is between them) of all that is generated here."""
    yield README, "benchmarks", short(results)
    yield PAGE, "benchmarks", tables(results)
    yield TRAINING, "demo", demo(json.loads(DEMO.read_text(encoding="utf-8")))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 on a difference")
    options = parser.parse_args(argv)
    results = read_results()
    differs = False
    for page, name, block in blocks(results):
        old = page.read_text(encoding="utf-8")
        try:
            new = updated(old, name, block)
        except ValueError as error:
            parser.error(f"{page}: {error}")
        if old == new:
            continue
        differs = True
        if options.check:
            print(f"{page} differs from its results: python -m benchmarks.report")
        else:
            page.write_text(new, encoding="utf-8")
    if not options.check:
        for name, kind, path in drawn(results):
            plots.draw(results[name], kind, path)
    return int(options.check and differs)


if __name__ == "__main__":
    sys.exit(main())
