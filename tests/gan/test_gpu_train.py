"""scripts/gpu_train.sh, at a size and on a device that any machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import pytest

from fastsn.gan.report import read_run

ROOT = Path(__file__).resolve().parent.parent.parent
BASH = shutil.which("bash")

TINY = """--train.device cpu --speed.cuda_graphs false --model.width 0.05 --optim.batch_d 4
    --optim.batch_g 4 --train.steps 2 --eval.n_real 7 --eval.n_fake 7 --eval.n_score 8
    --eval.splits 2"""


@pytest.mark.endurance
@pytest.mark.skipif(BASH is None, reason="expected bash, found none")
def test_both_runs_are_trained_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.mnist("FashionMNIST")(tmp_path / "data", monkeypatch)
    places = {name: str(tmp_path / name.lower()) for name in ("OUT", "RUNS")}
    result = subprocess.run(
        [str(BASH), str(ROOT / "scripts/gpu_train.sh"), str(tmp_path / "data"), *TINY.split()],
        env={**os.environ, **places, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    runs = [read_run(path) for path in sorted((tmp_path / "out/runs").iterdir())]
    assert [run.config.norm.method for run in runs] == ["bssn", "sn"]
    assert all(run.metrics[-1]["step"] == 2 for run in runs)
    assert (tmp_path / "out/report/report.md").is_file()
    assert (tmp_path / "out/report/metrics.png").is_file()
