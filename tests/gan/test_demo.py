"""The demo, made short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import demo
from benchmarks.report import demo as demo_block


@pytest.mark.endurance
def test_the_demo_stops_resumes_and_publishes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.demo", "--steps=150", "--seconds=0.1"]
    command += [f"--out={tmp_path / 'run'}", f"--publish={tmp_path / 'images'}"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout and "goes on at step" in done.stderr
    summary = json.loads((tmp_path / "images" / "demo.json").read_text())
    assert summary["steps"] == 150 and summary["resumed"] == 1
    assert (tmp_path / "run" / "report" / "report.md").is_file()
    for path in (tmp_path / "images").glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    text = demo_block(summary)
    for row in summary["step_time"]["rows"]:
        assert f"| {row['contender']} | {row['median_s'] * 1e3:.1f} ms |" in text


def test_the_demo_leaves_other_runs_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("train: {}\n")
    with pytest.raises(SystemExit) as raised:
        demo.main([f"--out={tmp_path}"])
    assert raised.value.code == 2
    assert list(tmp_path.iterdir()) == [config] and config.read_text() == "train: {}\n"
