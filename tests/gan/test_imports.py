"""The law of imports: one way between folders, and no circle, not even of types or deferred."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
#: What a folder, or module, of ``fastsn.gan`` may import of the others: those before it.
ORDER = [
    ("config", "rng"),
    ("run", "presets"),
    ("nets", "data"),
    ("measure",),
    ("plotting", "loop"),
    ("report", "sweep", "bench"),
    ("usage",),
    ("cli",),
]


def modules(folder: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: set[str]) -> Iterator[str]:
    """The modules that a file names in import statements, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: expected absolute imports"
            module = str(node.module)
            inside = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in known else module for name in inside]
        else:
            continue
        yield from (name for name in names if name in known)


def graph(*folders: str) -> dict[str, set[str]]:
    known = {name: path for folder in folders for name, path in modules(folder).items()}
    return {name: {*imported(path, {*known})} - {name} for name, path in known.items()}


def test_there_is_no_circle() -> None:
    # A package's own modules may name it, for what it says of itself.
    edges = graph("fastsn/gan", "paper", "benchmarks")
    edges = {
        name: {other for other in others if not name.startswith(f"{other}.")}
        for name, others in edges.items()
    }
    assert len([*TopologicalSorter(edges).static_order()]) > 80  # raises CycleError


def test_folders_import_one_way() -> None:
    level = {name: index for index, names in enumerate(ORDER) for name in names}
    for module, others in graph("fastsn/gan").items():
        mine = module.removeprefix("fastsn.gan").lstrip(".").partition(".")[0]
        for other in others:
            theirs = other.removeprefix("fastsn.gan").lstrip(".").partition(".")[0]
            if mine and theirs and mine != theirs:
                assert level[theirs] < level[mine], f"{module} imports {other}"


def test_the_package_knows_neither_the_paper_nor_the_benchmarks() -> None:
    edges = graph("fastsn", "paper", "benchmarks")
    for module, others in edges.items():
        if module.startswith("fastsn"):
            assert all(other.startswith("fastsn") for other in others), module
        if module.startswith("fastsn") and not module.startswith("fastsn.gan"):
            assert not [other for other in others if other.startswith("fastsn.gan")], module
        if module.startswith("paper"):
            assert not [other for other in others if other.startswith("benchmarks")], module
