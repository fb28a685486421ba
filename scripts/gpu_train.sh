#!/usr/bin/env bash
# Training runs that need a GPU, recorded: the MNIST network at full width on all 60,000 images of
# Fashion-MNIST, with SN and with BSSN. Some minutes; run again, it goes on where it was.
#
# Usage: scripts/gpu_train.sh ROOT [OPTION...]
#   ROOT     folder with FashionMNIST/raw/train-images-idx3-ubyte in it
#   OPTION   of `fastsn train`, as --train.steps 100000
# Needs fastsn with its extra [gan].
#   PYTHON   default: .venv/bin/python if it is there, else python3
#   OUT      folder of the results (default paper/results/gpu): runs/ with their tables, and report/
#   RUNS     folder of the runs themselves (default runs/gpu)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || {
    echo "scripts/gpu_train.sh: expected the folder of Fashion-MNIST, got no argument" >&2
    exit 2
}
root=$1
shift
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
out=${OUT:-paper/results/gpu}
runs=${RUNS:-runs/gpu}
export PYTHONPATH=.

for method in sn bssn; do
    "$python" -m fastsn.gan.cli train --config "paper/mnist_$method" \
        --data.name fashion_mnist --data.root "$root" --loss.name hinge \
        --train.steps 20000 --train.ema 0.999 --train.device cuda --speed.cuda_graphs true \
        --log.samples_every 5000 --log.diagnostics_every 2000 --log.tensorboard false \
        --eval.every 5000 --eval.extractor classifier --eval.n_fake 10000 --eval.n_score 10000 \
        --out "$runs/$method" "$@"
    mkdir -p "$out/runs/$method"
    for file in config.yaml environment.json {events,log,metrics,diagnostics}.jsonl; do
        cp "$runs/$method/$file" "$out/runs/$method/"
    done
done
"$python" -m fastsn.gan.cli report "$runs/sn" "$runs/bssn" --out "$out/report"
