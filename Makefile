# `make test` and `make demo` set up all they need, from nothing. A new machine needs python3 (3.10
# or newer) with venv and headers, and a C++ compiler; scripts/preflight.sh says which is missing.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CPP := $(wildcard $(addprefix csrc/,*.h *.cpp *.cu *.cuh */*.h */*.cpp */*.cu */*.cuh))
VM := $(wildcard tests/ptx/vm/*)

# what rests on numbers, and takes minutes
QUICK := -n $(WORKERS) --dist loadfile -m "not endurance and not ptx and not slow and not sweep"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env test test-machines test-ptx gpu-arithmetic test-endurance test-sweep demo bench \
    docs docs-serve lint format wheel clean FORCE

help:
	@echo "make test     run the tests                     make lint    check style and types"
	@echo "make demo     what fastsn gains, and a GAN      make format  apply the style"
	@echo "make bench    run the benchmarks                make wheel   build dist/*.whl, *.tar.gz"
	@echo "make docs     build the site in build/site      make clean   remove all of that"
	@echo "make env      only set up .venv and build"
	@echo "make test-ptx   the compiled GPU kernels on tests/ptx, all dtypes, layouts and orders"
	@echo "make test-machines   the quick tests with 1, 2, 4 threads and on lesser processors"
	@echo "make test-endurance   the training runs that are killed and resumed many times"
	@echo "make test-sweep       sweeps over Ray, killed and restarted; installs Ray"

# Files of tests are shared out to WORKERS processes, whose threads sleep while they wait.
test: env
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not endurance and not ptx and not sweep"

# All of the compiled GPU kernels, CUDA's and Triton's, on the machine of tests/ptx; needs nvcc.
test-ptx: env
	$(PY) -m pytest -n $(WORKERS) --dist loadfile tests/ptx

# The tests as on other machines: other numbers of threads, lesser instruction sets of torch and us.
test-machines: env
	for threads in 1 2 4; do \
	    FASTSN_TEST_THREADS=$$threads $(PY) -m pytest -q $(QUICK) || exit 1; \
	done
	ATEN_CPU_CAPABILITY=default FASTSN_TEST_SIMD=baseline $(PY) -m pytest -q $(QUICK)

# docs/gpu-arithmetic.md, from counts of the compiled CUDA kernels; needs nvcc.
gpu-arithmetic: env
	PYTHONPATH=tests:. $(PY) -m ptx.report

# Training runs killed and resumed many times, on one rank and on two.
test-endurance: env
	$(PY) -m pytest -m endurance

# Sweeps over Ray, killed and restarted.
test-sweep: env $(VENV)/.sweep
	$(PY) -m pytest -m sweep

demo: env
	$(PY) -m benchmarks.demo

bench: env
	$(PY) -m pytest benchmarks

# The site; warnings fail the build, unless --quiet hides them from --strict. MkDocs reads the
# sources, and imports nothing of ours.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "build/site/index.html"

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --strict

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP) $(VM)
	$(PY) -m mypy
	$(PY) scripts/check_tree.py

format: env
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP) $(VM)

wheel: env
	$(PY) scripts/build_dist.py dist

clean:
	rm -rf $(VENV) build dist *.egg-info .benchmarks .mypy_cache .pytest_cache .ruff_cache
	rm -f fastsn/*.so fastsn/_build.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up, in three stamps: torch, all other packages, the compiled extensions.
env: $(VENV)/.built

# torch comes first, by itself: fastsn is built against it, without build isolation
$(VENV)/.torch: constraints.txt
	@sh scripts/preflight.sh "$(PYTHON)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "Installing torch and the build tools in $(VENV) (takes a minute)"
	$(PIP) install --quiet --constraint constraints.txt torch numpy ninja setuptools wheel
	@touch $@

# Ray is large, and nothing but sweeps on several processors or machines needs it
$(VENV)/.sweep: $(VENV)/.installed
	@echo "Installing Ray"
	FASTSN_BUILD_CPU=0 FASTSN_BUILD_CUDA=0 $(PIP) install --quiet --constraint constraints.txt \
	    --no-build-isolation --editable '.[sweep]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@echo "Installing the tools of the site"
	FASTSN_BUILD_CPU=0 FASTSN_BUILD_CUDA=0 $(PIP) install --quiet --constraint constraints.txt \
	    --no-build-isolation --editable '.[docs]'
	@touch $@

# pip builds an editable install in a new folder each time, so it only links the checkout here
$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "Installing the test tools"
	FASTSN_BUILD_CPU=0 FASTSN_BUILD_CUDA=0 $(PIP) install --quiet --constraint constraints.txt \
	    --no-build-isolation --editable '.[dev]'
	@touch $@

# written only when a flag changes, so that a build with other flags replaces the one that is there
FLAGS := $(FASTSN_BUILD_CPU),$(FASTSN_BUILD_CUDA),$(TORCH_CUDA_ARCH_LIST),$(CUDA_HOME),$(CXX)
$(VENV)/.flags: $(VENV)/.installed FORCE
	@test "$$(cat $@ 2>/dev/null)" = "$(FLAGS)" || echo "$(FLAGS)" > $@

# build/ is kept, and ninja compiles only what changed
$(VENV)/.built: $(VENV)/.installed $(VENV)/.flags setup.py $(CPP)
	@sh scripts/preflight.sh "$(PYTHON)"
	@echo "Compiling the extensions (takes a few minutes the first time)"
	rm -f fastsn/*.so fastsn/_build.json
	$(PY) setup.py build_ext --inplace
	@touch $@
