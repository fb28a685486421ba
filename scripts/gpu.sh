#!/usr/bin/env bash
# Everything that only a GPU can show, in under 8 minutes: builds the kernels for the GPU that is
# there, runs the tests marked gpu, the benchmarks and compute-sanitizer, and writes JSON.
#
# Usage: scripts/gpu.sh [WHEEL]
#   WHEEL   a wheel of this very version: its compiled modules are taken and nothing is built
# Needs an NVIDIA GPU and, in one Python, a CUDA build of torch, Triton, numpy, pytest, pytest-benchmark;
# without a WHEEL also nvcc, a C++ compiler, setuptools and ninja.
#   PYTHON   that Python (default: .venv/bin/python if it is there, else python3)
#   OUT      folder of the results (default benchmarks/results)
#   SECONDS_AT_MOST   for all of it (default 470)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheel=${1:-}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-benchmarks/results}
limit=${SECONDS_AT_MOST:-470}
unset FASTSN_BACKEND
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"

step() { printf '\n==> [%3ds] %s\n' "$SECONDS" "$*"; }
stop() {
    printf 'scripts/gpu.sh: %s\n' "$*" >&2
    exit 1
}
# within MOST COMMAND...: at most that many seconds, and at most what is left of all
within() {
    local most=$1 left=$((limit - SECONDS))
    shift
    [ "$left" -ge 15 ] || {
        echo "left out, for want of time: $*"
        return 0
    }
    timeout --kill-after=5 "$((most < left ? most : left))" "$@"
}

step "what this machine has"
nvidia-smi -L || stop "expected an NVIDIA GPU and its driver, got no nvidia-smi"
capability=$("$python" - <<'PY'
import sys
import numpy, pytest, pytest_benchmark, torch
if not torch.cuda.is_available():
    sys.exit(f"expected torch to see a GPU, got torch {torch.__version__} without one")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", file=sys.stderr)
print(".".join(map(str, torch.cuda.get_device_capability())))
PY
) || stop "$python cannot run the tests (see above): set PYTHON"

if [ -n "$wheel" ]; then
    step "compiled modules of $wheel"
    [ -f "$wheel" ] || stop "expected a wheel, got no file $wheel"
    "$python" -m zipfile -e "$wheel" "$scratch/wheel"
    find fastsn -name "*.py" | while read -r file; do
        cmp -s "$file" "$scratch/wheel/$file" || stop "expected a wheel of this version, got another $file"
    done
    cp "$scratch"/wheel/fastsn/*.so "$scratch"/wheel/fastsn/_build.json fastsn/
else
    step "build for compute capability $capability"
    FASTSN_BUILD_CPU=${FASTSN_BUILD_CPU:-0} FASTSN_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability \
        "$python" setup.py build_ext --inplace >"$scratch/build" 2>&1 ||
        { tail -n 40 "$scratch/build" >&2 && stop "the build failed"; }
fi
"$python" -m fastsn
step "the self-test by which auto trusts a backend"
within 120 "$python" -m fastsn selftest || echo "not passed: auto does without"

status=0
# tests BACKEND MOST MARKS: the tests of one backend, for at most MOST seconds
tests() {
    step "tests of $1 ($3)"
    FASTSN_REQUIRE_BACKENDS=$1 within "$2" "$python" -m pytest tests/test_gpu.py -q \
        -k "$1" -m "$3" --junitxml="$scratch/$1-$3.xml" -p no:cacheprovider || true
    [ -f "$scratch/$1-$3.xml" ] || {
        echo "not done in time"
        status=1
    }
}
record() {
    PYTHONPATH=. "$python" scripts/gpu_record.py "$out/gpu-tests" "$scratch"/*.xml || status=1
}
tests cuda 150 "not slow"
tests triton 120 "not slow"
compgen -G "$scratch/*.xml" >/dev/null || stop "no tests were done in time: no record is written"
record
tests cuda 60 soak
tests triton 60 soak
record

gpu=$(basename "$(ls -t "$out"/gpu-tests/*.json | head -n 1)" .json)
for workload in cnn resnet; do
    for backend in cuda triton; do
        # torch and plain PyTorch are timed beside the first backend
        names=$workload
        [ "$backend" = cuda ] || names="$workload and fastsn"
        FASTSN_BACKEND=$backend "$python" -m fastsn >"$scratch/backends" || {
            echo "no benchmarks of $backend: it cannot be used here"
            continue
        }
        step "benchmarks of $backend, $workload"
        FASTSN_BACKEND=$backend within 90 "$python" -m pytest benchmarks/test_speed.py -q \
            --device cuda -k "$names" -m "not slow" -p no:cacheprovider \
            --benchmark-json="$out/$gpu-$backend-$workload.json" || status=1
    done
done

# the other sizes: many weights, one that no GPU keeps on chip, and norms of convolutions
step "benchmarks of cuda, other sizes"
FASTSN_BACKEND=cuda within 80 "$python" -m pytest benchmarks/test_speed.py \
    benchmarks/test_conv_speed.py -q --device cuda -k "deep or one-4096x9216 or conv_norm" \
    -m "not slow" -p no:cacheprovider --benchmark-json="$out/$gpu-cuda-others.json" || status=1

# what torch.compile makes of torch's SN: minutes of compiling, so few of them; and the promises,
# some of which are about it
step "benchmarks of torch.compile, promises"
FASTSN_BACKEND=cuda within 120 "$python" -m pytest benchmarks/test_speed.py \
    benchmarks/test_gpu_gates.py -q --device cuda -m slow -p no:cacheprovider \
    -k "promises or (cnn-forward-torch-graphs) or (resnet-forward_backward-torch-graphs)" \
    --benchmark-json="$out/$gpu-compiled.json" || status=1

# a training step without a norm, with torch's SN and with fastsn's, eager and as one CUDA graph
if "$python" -c 'import jsonargparse, torchvision, tqdm, yaml' 2>/dev/null; then
    for graphs in false true; do
        step "training step of the CIFAR10 network, CUDA graphs: $graphs"
        within 40 "$python" -m benchmarks.step --model cnn32 --batch 64 --device cuda \
            --seconds 3 --cuda_graphs "$graphs" --out "$out/$gpu-step-graphs-$graphs.json" || status=1
    done
else
    echo "left out: a training step needs the packages of fastsn[gan]"
fi

tests cuda 90 "slow and not soak"
tests triton 60 "slow and not soak"
record

if command -v compute-sanitizer >/dev/null 2>&1; then
    for tool in memcheck racecheck synccheck initcheck; do
        step "compute-sanitizer --tool $tool"
        within 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q \
            tests/test_gpu.py -k "cuda and (degenerate or launches)" -p no:cacheprovider || status=1
    done
else
    echo "left out: compute-sanitizer is not on PATH"
fi

step "done; results are in $out"
exit "$status"
