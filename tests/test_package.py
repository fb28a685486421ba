"""The package as others get it: sdist, wheel, lean import, one version, imports one way."""

from __future__ import annotations

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fastsn

ROOT = Path(__file__).resolve().parent.parent
GAN = ROOT / "fastsn" / "gan"

#: A module imports from layers above its own in this table, which it builds on, and no others:
#: neither at the top of a file, nor inside a function, nor for its types alone.
LAYERS = (
    {"memory", "conv_map"},
    {"plan"},
    {"backends.reference", "backends.native", "backends.triton.walk", "backends.verdicts"},
    {"backends.batched", "backends.selftest"},
    {"backends.triton.plan", "backends.triton.conclude", "backends.triton.gradients"},
    {"backends.triton.tables", "backends.triton.forward"},
    {"backends.triton.launch", "backends.triton", "backends.trust"},
    {"backends"},
    {"backends.call"},
    {"op"},
    {"node", "state.classes", "state.ranks", "state", "regions", "step"},
    {"functional", "forward", "checks"},
    {"frames", "state.layouts"},
    {"parametrization", "conv_norm"},
    {"group"},
    {"apply", "convert"},
    {"analysis"},
    {""},
    {"__main__"},
    {"gan"},
)

IMPORT = """
import sys, time, torch
before = set(sys.modules)
watched = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn")
def no_process(event, args):
    assert event not in watched, f"import fastsn started a process: {event} {args}"
sys.addaudithook(no_process)
start = time.process_time()
import fastsn
print(time.process_time() - start, *sorted(set(sys.modules) - before))
"""

USE = """
import copy, importlib.metadata, sys, torch, fastsn
assert importlib.metadata.version("fastsn") == fastsn.__version__
torch.manual_seed(0)
layer = fastsn.spectral_norm(torch.nn.Conv2d(3, 8, 3))
twin = copy.deepcopy(layer)
images = torch.randn(2, 3, 6, 6)
for model, backend in ((layer, sys.argv[1]), (twin, "reference")):
    with fastsn.use_backend(backend):
        model(images).square().sum().backward()
    model.eval()
torch.testing.assert_close(layer.weight, twin.weight)
weight = "parametrizations.weight.original"
torch.testing.assert_close(layer.get_parameter(weight).grad, twin.get_parameter(weight).grad)
assert 0.9 < torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) < 1.1
print(fastsn.__file__)
"""

UNAVAILABLE = """
import torch, fastsn
layer = fastsn.spectral_norm(torch.nn.Linear(3, 4))
try:
    with fastsn.use_backend("cpu"):
        layer(torch.ones(1, 3))
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("expected a RuntimeError from a backend that was not built")
"""


def run(
    *command: object, cwd: Path = ROOT, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would: none of the developer's fastsn settings, no PYTHONPATH."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSN_", "PYTHON"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or result.returncode == 0, result.stdout
    return result


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, made the way `make wheel` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "scripts/build_dist.py", folder, FASTSN_BUILD_CUDA="0")
    return folder


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as the sdist carries them."""
    (sdist,) = dist.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    run("tar", "-xzf", sdist, "-C", folder)
    return next(folder.iterdir())


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel in it, and this environment's torch; its Python.

    torch is reached through a .pth file, which does not run the .pth files beside torch: the
    editable install of the checkout stays out of sight.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    run(*pip, "--target", site, wheel)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert re.fullmatch(rf"fastsn-{re.escape(fastsn.__version__)}-cp310-abi3-\w+\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastsn").rglob("*.py")}
    assert names >= modules | {"fastsn/_C.abi3.so", "fastsn/_build.json", "fastsn/py.typed"}
    extra = {"fastsn/_C.abi3.so", "fastsn/_build.json", "fastsn/py.typed"}
    assets = {path for kind in ("assets/*", "presets/*.yaml") for path in GAN.glob(kind)}
    assert {"fashion_mini.png", "classifier.pt", "NOTICE.txt"} <= {path.name for path in assets}
    extra |= {path.relative_to(ROOT).as_posix() for path in assets}
    assert names >= extra
    info = f"fastsn-{fastsn.__version__}.dist-info/"
    assert {name for name in names - modules - extra if not name.startswith(info)} == set()


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    assert names >= sources | {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"}
    assert not any(name.startswith(("tests", "benchmarks", "build")) for name in names)
    assert "fastsn/_build.json" not in names  # it tells of one build, not of the sources


@pytest.mark.slow
def test_installed_wheel_works_without_the_checkout(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    python = install(wheel, tmp_path / "venv")
    used = run(python, "-c", USE, "cpu", cwd=tmp_path)
    assert Path(used.stdout.strip()).is_relative_to(tmp_path / "venv")


@pytest.mark.slow
def test_build_without_kernels_falls_back_to_the_reference(unpacked: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    pip += ["--no-cache-dir", "--wheel-dir", tmp_path, unpacked]
    run(*pip, FASTSN_BUILD_CPU="0", FASTSN_BUILD_CUDA="0")
    (wheel,) = tmp_path.glob("*.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    python = install(wheel, tmp_path / "venv")
    run(python, "-c", USE, "auto", cwd=tmp_path)
    refused = run(python, "-c", UNAVAILABLE, cwd=tmp_path)
    assert "cpu" in refused.stdout


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["c++", "/bin/false"])
def test_failed_compile_fails_the_build_and_says_how_to_do_without(
    compiler: str, unpacked: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(unpacked, tmp_path / "fastsn"))
    source = min((broken / "csrc" / "cpu").glob("*.cpp"))
    source.write_text("#error broken on purpose\n")
    build = [sys.executable, "setup.py", "build_ext"]
    failed = run(*build, cwd=broken, check=False, CXX=compiler, FASTSN_BUILD_CUDA="0")
    assert failed.returncode != 0
    assert ("broken on purpose" if compiler == "c++" else compiler) in failed.stdout
    assert "FASTSN_BUILD_CPU=0" in failed.stdout


@pytest.mark.slow
def test_import_is_lean() -> None:
    runs = [run(sys.executable, "-c", IMPORT).stdout.split() for _ in range(5)]
    seconds = statistics.median(float(first) for first, *_ in runs)
    loaded = set(runs[0][1:])
    heavy = ("triton", "matplotlib", "numpy", "torch._dynamo", "torch._inductor")
    heavy += ("fastsn.gan", "fastsn._C", "fastsn._C_cuda", "torch.utils.cpp_extension")
    assert not {name for name in loaded if name.startswith(heavy)}
    assert seconds < 0.2, f"expected import fastsn under 0.2 s after torch, got {seconds:.3f} s"


def module_name(path: Path) -> str:
    """Dotted name within the package; empty for the package itself."""
    parts = path.relative_to(ROOT / "fastsn").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "fastsn").rglob("*.py"))}


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every module of fastsn that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: expected an absolute import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "fastsn":
                while rest not in MODULES:  # a name within a module
                    rest = rest.rpartition(".")[0]
                yield node.lineno, rest


def layer_of(name: str) -> int:
    """The layer of a module, which may be that of its package."""
    for depth, names in enumerate(LAYERS):
        if name in names:
            return depth
    package = name.rpartition(".")[0]
    assert package, f"add {name} to LAYERS, where it belongs"
    return layer_of(package)


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path in MODULES.items():
        room = name.partition(".")[0]
        for line, imported in imported_modules(path):
            within = room in ("analysis", "gan") and imported.partition(".")[0] == room
            if not within and layer_of(imported) >= layer_of(name):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports fastsn.{imported}")
    assert not wrong, "\n".join(wrong)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, directly or not."""
    reach = {name: set(targets) for name, targets in edges.items()}
    for middle in edges:
        for name in edges:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    rings = {
        tuple(sorted(other for other in reach[name] if name in reach.get(other, ()))): name
        for name in edges
        if name in reach[name]
    }
    return [list(ring) for ring in rings]


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = {
        name: {imported for _, imported in imported_modules(path)} for name, path in MODULES.items()
    }
    assert circles(edges) == []
    edges["plan"].add("group")  # the check can fail
    assert any("plan" in ring and "group" in ring for ring in circles(edges))


def test_version_has_one_source() -> None:
    version = re.compile(rf"(?<![\d.]){re.escape(fastsn.__version__)}(?![\d.])")
    files = [*(ROOT / "fastsn").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "setup.py"]
    assert [p.name for p in files if version.search(p.read_text())] == ["__init__.py"]
    assert f"## [{fastsn.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_preflight_names_what_is_missing_and_how_to_get_it() -> None:
    preflight = ["sh", "scripts/preflight.sh", "no-such-python"]
    result = run(*preflight, check=False, CXX="no-such-compiler")
    assert result.returncode == 1
    for word in ("no-such-python", "python3-venv", "no-such-compiler", "g++", "FASTSN_BUILD_CPU=0"):
        assert word in result.stdout


def test_missing_backend_skips_unless_it_is_required(
    require_backend: Callable[[str, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_backend("cpu", [])
    monkeypatch.setenv("FASTSN_REQUIRE_BACKENDS", "reference")
    with pytest.raises(pytest.skip.Exception, match="'cpu' is not available: no compiler"):
        require_backend("cpu", ["no compiler"])
    monkeypatch.setenv("FASTSN_REQUIRE_BACKENDS", "reference, cpu")
    with pytest.raises(pytest.fail.Exception, match="no compiler"):
        require_backend("cpu", ["no compiler"])
