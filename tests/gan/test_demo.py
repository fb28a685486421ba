"""The demo, made short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gan as demo


@pytest.mark.endurance
def test_the_demo_stops_resumes_and_publishes(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks.gan", "--steps=150", "--seconds=0.1"]
    command += [f"--out={tmp_path / 'run'}", f"--images={tmp_path / 'images'}"]
    done = subprocess.run(
        [*command, f"--readme={readme}"],
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
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    for row in summary["step_time"]["rows"]:
        assert f"| {row['contender']} | {row['median_s'] * 1e3:.1f} ms |" in text


def test_the_demo_leaves_other_runs_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("train: {}\n")
    with pytest.raises(SystemExit) as raised:
        demo.main([f"--out={tmp_path}"])
    assert raised.value.code == 2
    assert list(tmp_path.iterdir()) == [config] and config.read_text() == "train: {}\n"
