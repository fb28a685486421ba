"""scripts/gpu.sh and the record it writes, as far as a machine without a GPU can try them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")

CUDA = """<testsuites><testsuite>
  <testcase name="test_bits[cuda-torch.float32]"/>
  <testcase name="test_graph[cuda-step]">{}</testcase>
</testsuite></testsuites>"""
TRITON = """<testsuites><testsuite>
  <testcase name="test_bits[triton]"><skipped message="no triton"/></testcase>
  <testcase name="test_launches[triton-8]"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize("outcome", ["", '<failure message="wrong"/>', '<error message="late"/>'])
def test_record_tells_what_passed(outcome: str, tmp_path: Path) -> None:
    runs = [tmp_path / "cuda.xml", tmp_path / "triton.xml"]
    for run, text in zip(runs, (CUDA.format(outcome), TRITON), strict=True):
        run.write_text(text)
    command = [sys.executable, ROOT / "scripts" / "gpu_record.py", tmp_path, *runs]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == bool(outcome), result.stderr
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    failed = ["test_graph[cuda-step]"] if outcome else []
    assert record["backends"] == {
        "cuda": {"passed": 1 if outcome else 2, "failed": failed, "skipped": {}},
        "triton": {"passed": 1, "failed": [], "skipped": {"no triton": 1}},
    }
    assert {"gpu", "torch", "cuda", "fastsn", "commit", "date"} <= set(record)


@pytest.mark.skipif(BASH is None, reason="expected bash, found none")
def test_script_says_what_is_missing(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "gpu.sh")
    subprocess.run([str(BASH), "-n", script], check=True)
    if shutil.which("nvidia-smi"):
        pytest.skip("expected a machine without a GPU, found nvidia-smi")
    environment = os.environ | {"OUT": str(tmp_path / "results"), "PYTHON": sys.executable}
    result = subprocess.run([str(BASH), script], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "expected an NVIDIA GPU and its driver, got no nvidia-smi" in result.stderr
    assert not list((tmp_path / "results").iterdir())
