"""Builds the extension modules; everything else is in pyproject.toml.

fastsn._C (csrc/cpu) and fastsn._C_cuda (csrc/cuda) are independent: either works without the other.

Environment variables:
    FASTSN_BUILD_CPU=1|0        0 leaves fastsn._C out (default 1)
    FASTSN_BUILD_CUDA=auto|1|0  auto builds fastsn._C_cuda where nvcc is found, 1 fails where it
                                cannot be built, 0 leaves it out (default auto); no GPU is needed
    TORCH_CUDA_ARCH_LIST        GPU architectures (default 8.0;9.0;10.0+PTX, as far as nvcc knows
                                them: sm_80 code serves 8.x, and newer GPUs compile the PTX. That
                                takes a minute of one core, 9.0 alone half of it)
    CUDA_HOME, CXX, MAX_JOBS    as in torch.utils.cpp_extension
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent
DEFINES = [  # one binary for CPython >= 3.10 and torch >= 2.10
    "-DPy_LIMITED_API=0x030A0000",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DTORCH_STABLE_ONLY",
]
FLAGS = {"cxx": ["-O3", *DEFINES], "nvcc": ["-O3"]}
OPT_OUT = {"fastsn._C": "FASTSN_BUILD_CPU=0", "fastsn._C_cuda": "FASTSN_BUILD_CUDA=0"}


def flag(name: str, *choices: str) -> str:
    value = os.environ.get(name) or choices[0]
    if value not in choices:
        raise SystemExit(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def first_line(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).strip().partition("\n")[0]


def find_cuda_home() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if nvcc is None:
        return None
    # nvcc itself says where it lives: the one on PATH may be a link or a script.
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    dry_run = subprocess.run(command, capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    return os.path.normpath(top[1].strip()) if top else str(Path(nvcc).resolve().parents[1])


def architectures(home: str) -> str:
    """As TORCH_CUDA_ARCH_LIST has them: those we tune for that this nvcc knows; newer by PTX."""
    known = subprocess.check_output([f"{home}/bin/nvcc", "--list-gpu-arch"], text=True).split()
    ours = ("8.0", "9.0", "10.0")
    return ";".join(a for a in ours if f"compute_{a.replace('.', '')}" in known) + "+PTX"


def extension(name: str, folder: str, **options: list[str]) -> Extension:
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "csrc" / folder).iterdir())
    files += sorted(path.relative_to(ROOT) for path in (ROOT / "csrc").iterdir() if path.is_file())
    headers = [str(path) for path in files]
    sources = [str(path) for path in files if path.suffix in (".cpp", ".cu")]
    return cpp_extension.CppExtension(
        name, sources, depends=headers, extra_compile_args=FLAGS, py_limited_api=True, **options
    )


def extensions() -> list[Extension]:
    found = []
    if flag("FASTSN_BUILD_CPU", "1", "0") == "1":
        found.append(extension("fastsn._C", "cpu"))
    wish = flag("FASTSN_BUILD_CUDA", "auto", "1", "0")
    home = find_cuda_home()
    if wish != "0" and home is None:
        reason = "no nvcc in CUDA_HOME or on PATH; install the CUDA toolkit or set CUDA_HOME"
        if wish == "1":
            raise SystemExit(f"fastsn._C_cuda cannot be built (FASTSN_BUILD_CUDA=1): {reason}")
        print(f"fastsn._C_cuda is not built: {reason}")
    elif wish != "0" and any((ROOT / "csrc/cuda").glob("*.cu")):
        # A CPU-only torch has no CUDA_HOME, yet it has all headers that are needed.
        cpp_extension.CUDA_HOME = home
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(home)
        lib = next((d for d in ("lib64", "lib") if (Path(home) / d).is_dir()), "lib64")
        # With a CUDA runtime of its own, hidden from torch's, the module loads on every machine,
        # and with torch built for CPU or for any CUDA: what is missing is a reason at run time.
        options = {
            "include_dirs": [str(Path(home) / "include")],
            "library_dirs": [str(Path(home) / lib)],
            "libraries": ["cudart_static", "rt", "pthread", "dl"],
            "extra_link_args": ["-Wl,--exclude-libs,libcudart_static.a"],
        }
        found.append(extension("fastsn._C_cuda", "cuda", **options))
    return found


def drop_stale_objects(ext: Extension, folder: Path) -> None:
    """With a CPU build of torch, ninja is not told which headers a .cu file includes."""
    headers = [path for path in ext.depends if path.endswith((".h", ".cuh"))]
    newest = max(os.path.getmtime(ROOT / path) for path in headers)
    for source in ext.sources:
        made = (folder / source).with_suffix(".o")
        if source.endswith(".cu") and made.exists() and made.stat().st_mtime < newest:
            made.unlink()


class Build(cpp_extension.BuildExtension):
    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:  # the compiler itself does not run
            flags = " ".join(OPT_OUT[ext.name] for ext in self.extensions)
            raise SystemExit(f"building failed: {error}\n({flags} leaves it out)") from error

    def build_extension(self, ext: Extension) -> None:
        drop_stale_objects(ext, Path(self.build_temp))
        try:
            super().build_extension(ext)
        except Exception as error:
            message = f"building {ext.name} failed: {error}\n({OPT_OUT[ext.name]} leaves it out)"
            raise SystemExit(message) from error

    def run(self) -> None:
        super().run()
        info = {
            "torch": torch.__version__,
            "compiler": first_line(os.environ.get("CXX", "c++"), "--version"),
        }
        info |= {ext.name: {"flags": ext.extra_compile_args} for ext in self.extensions}
        if "fastsn._C_cuda" in info:
            nvcc = str(Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc")
            info["fastsn._C_cuda"] |= {
                "architectures": os.environ["TORCH_CUDA_ARCH_LIST"],
                "nvcc": subprocess.check_output([nvcc, "--version"], text=True).split("\n")[-2],
            }
        folder = ROOT if self.inplace else Path(self.build_lib)
        (folder / "fastsn" / "_build.json").write_text(json.dumps(info, indent=2) + "\n")


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
