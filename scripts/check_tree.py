"""Checks of the source tree that no linter makes: ``python scripts/check_tree.py``.

* no file names a folder of the machine it was written on;
* nothing builds with fast math or for the builder's own processor;
* no line of C++ or CUDA is longer than 100 characters (clang-format leaves comments alone).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {"build", "dist", "runs", "__pycache__", "venv"}
CPP = {".h", ".cpp", ".cu", ".cuh"}

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/")
UNSAFE_FLAG = re.compile(r"-?-use_fast_math|-ffast-math|-Ofast|-march=native")


def source_files() -> Iterator[Path]:
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            hidden = path.name.startswith(".") and path.name not in {".ci"}
            if path.is_symlink() or path.name in GENERATED or path.name.endswith(".egg-info"):
                continue
            if path.is_dir() and not hidden:
                folders.append(path)
            elif path.is_file():
                yield path


def problems(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # an image or a compiled file
    where = path.relative_to(ROOT)
    for number, line in enumerate(text.splitlines(), start=1):
        if match := MACHINE_PATH.search(line):
            yield f"{where}:{number}: expected no path of one machine, got {match.group()}"
        if path != Path(__file__).resolve() and (match := UNSAFE_FLAG.search(line)):
            yield f"{where}:{number}: expected portable, exact arithmetic, got {match.group()}"
        if path.suffix in CPP and len(line) > 100:
            yield f"{where}:{number}: expected at most 100 characters, got {len(line)}"


if __name__ == "__main__":
    found = [problem for path in source_files() for problem in problems(path)]
    print("\n".join(found) or "the source tree is clean")
    sys.exit(bool(found))
