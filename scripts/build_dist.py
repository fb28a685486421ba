"""Build the sdist, and from it the wheel, into a folder: ``python scripts/build_dist.py dist``.

Both are built in the running environment (torch, setuptools, wheel, ninja), without isolation,
which would download torch once more. The wheel is built from the sdist, never from the checkout: no
file can be in it that the sdist lacks, nor one left over from an earlier build.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("fastsn-*.tar.gz"), *folder.glob("fastsn-*.whl")):
        old.unlink()
    subprocess.run([sys.executable, "-c", BUILD_SDIST, str(folder.resolve())], cwd=ROOT, check=True)
    (sdist,) = folder.glob("fastsn-*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    # pip caches wheels by the sdist's path, and would answer a second build with the first one's
    pip += ["--no-cache-dir", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(sdist)], check=True)
    for made in sorted(folder.iterdir()):
        print(f"{made.stat().st_size:>10,} bytes  {made}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder)
