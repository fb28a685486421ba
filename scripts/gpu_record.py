"""Write the record of runs of tests/test_gpu.py: ``gpu_record.py FOLDER RUN.xml [RUN.xml ...]``.

RUN.xml is pytest's ``--junitxml``. The record, FOLDER/<GPU>.json, says which tests of which backend
passed on which GPU.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import fastsn

ROOT = Path(__file__).resolve().parent.parent


def outcomes(cases: list[ElementTree.Element]) -> dict[str, dict[str, Any]]:
    """Per backend: the number of tests passed, names of those failed, reasons of those skipped."""
    backends: dict[str, dict[str, Any]] = {}
    for case in cases:
        name = case.get("name", "")
        backend = re.search(r"[\[-](cuda|triton)[\]-]", name)
        own = backends.setdefault(
            backend[1] if backend else "none", {"passed": 0, "failed": [], "skipped": {}}
        )
        if case.find("failure") is not None or case.find("error") is not None:
            own["failed"].append(name)
        elif (skipped := case.find("skipped")) is not None:
            reason = skipped.get("message", "")
            own["skipped"][reason] = own["skipped"].get(reason, 0) + 1
        else:
            own["passed"] += 1
    return backends


def commit() -> str:
    """The commit of the checkout, with a plus where it has changes; unknown without git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    result = subprocess.run(git, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def main(folder: Path, runs: list[Path]) -> int:
    """Writes the record; 1 where a test failed or none passed."""
    suites = [ElementTree.parse(run).getroot() for run in runs]
    backends = outcomes([case for suite in suites for case in suite.iter("testcase")])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    record = {
        "gpu": gpu,
        "capability": ".".join(map(str, torch.cuda.get_device_capability()))
        if torch.cuda.is_available()
        else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fastsn": fastsn.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "backends": backends,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    for name, own in sorted(backends.items()):
        skipped = sum(own["skipped"].values())
        print(f"{name}: {own['passed']} passed, {len(own['failed'])} failed, {skipped} skipped")
    passed = any(own["passed"] for own in backends.values())
    return int(not passed or any(own["failed"] for own in backends.values()))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"expected FOLDER and one RUN.xml or more, got {len(sys.argv) - 1} arguments")
    sys.exit(main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]))
