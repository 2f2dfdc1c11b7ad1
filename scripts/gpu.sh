#!/usr/bin/env bash
# What there is to measure on one GPU, in three parts, each meant to take under nine minutes (not yet tried on one):
#
#   bash scripts/gpu.sh PART DATA OUT
#
# PART is 1 (tests and trainings), 2 (speed) or 3 (claims C8 and C12); DATA holds MNIST and CIFAR-10 in torchvision's
# layout; records, as JSON with hardware and versions, go to OUT. It needs no installation, only the dependencies.
set -euo pipefail
[[ $# == 3 && $1 =~ ^[123]$ ]] || { echo "usage: bash scripts/gpu.sh 1|2|3 DATA OUT" >&2; exit 2; }
cd "$(dirname "$0")/.."
part=$1 data=$2 out=$3
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
mkdir -p "$out"

train() { # train DATA MODEL OPTION...: a run, its result kept under the data's and the model's name
  local set=$1 model=$2 runs
  shift 2
  runs=$(mktemp -d)
  "$python" scripts/train.py data="$set" model="$model" data.root="$data" trainer=gpu runs="$runs" "$@"
  cp "$runs/$set/$model"/*/result.json "$out/train-$set-$model.json"
}

benchmark() { # benchmark OPTION...: a suite's record
  "$python" scripts/benchmark.py data.root="$data" trainer=gpu output="$out" "$@"
}

case $part in
1)
  # a failing test is to be read, and does not keep the rest from being measured
  "$python" -m pytest -m gpu tests/test_training.py tests/test_capture.py tests/test_roofline.py |
    tee "$out/tests.txt" || true
  train mnist baseline
  train mnist baseline_separable
  train mnist separable
  train cifar10 separable
  train cifar10 mobilenet_v2
  ;;
2)
  benchmark suite=loop data=mnist model=baseline
  benchmark suite=loop data=cifar10 model=separable steps=300
  benchmark suite=networks data=mnist 'batch_sizes=[128,1024]' rounds=3
  benchmark suite=networks data=cifar10 'batch_sizes=[128,1024]' rounds=3
  benchmark suite=time_to_accuracy experiment=sprint_mnist rounds=20
  ;;
3)
  "$python" scripts/claims.py scale=full data.root="$data" trainer=gpu output="$out" 'only=[C8,C12]'
  ;;
esac
