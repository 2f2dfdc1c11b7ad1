#!/usr/bin/env bash
# What there is to measure on one GPU, in five parts (not yet tried on one: how long they take there is a guess):
#
#   bash scripts/gpu.sh PART DATA OUT   # a part, in at most 9 minutes
#   bash scripts/gpu.sh all DATA OUT    # one part after another, in at most 25
#
# PART is 1 (tests, trainings, our loop against a bare one), 2 (94 % on CIFAR-10 against airbench), 3 and 4 (time to
# accuracy; networks against their dense twins; claims C8 and C12) or 5 (96 % against airbench; accuracy by size).
# DATA holds MNIST and CIFAR-10 in torchvision's layout; OUT takes each record, as JSON with hardware and versions, as
# soon as it is there. AIRBENCH names a checkout of https://github.com/KellerJordan/cifar10-airbench; without it the
# comparisons with airbench are left out. It needs no installation, only the dependencies.
#
# A command has what those before it left of its part's time, and is then ended. The last of part 5 take longest and are
# the ones to be cut; each can be run alone: python scripts/train.py experiment=size_022_cifar10 data.root=DATA
set -euo pipefail
[[ $# == 3 && $1 =~ ^([1-5]|all)$ ]] || { echo "usage: bash scripts/gpu.sh 1|2|3|4|5|all DATA OUT" >&2; exit 2; }
parts=$1 data=$(realpath -m "$2") out=$(realpath -m "$3") airbench=${AIRBENCH:+$(realpath -m "$AIRBENCH")}
[[ $parts == all ]] && parts="1 2 3 4 5"
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
mkdir -p "$out"
part_seconds=525 all_seconds=1485 # the rest is for what does not end at once
status=0

limited() { # limited COMMAND...: for as long as the part has left
  local left=$((end - SECONDS))
  if ((left <= 0)); then
    echo "no time left for: $*" >&2
  elif timeout --kill-after=10 "$left" "$@"; then
    return
  else
    echo "status $? (124: its time was over) of: $*" >&2
  fi
  status=1 # the rest is measured all the same
}

train() { # train NAME OPTION...: a run, its result kept under that name
  local name=$1 runs
  shift
  runs=$(mktemp -d)
  limited "$python" scripts/train.py data.root="$data" trainer=gpu runs="$runs" "$@"
  find "$runs" -name result.json -exec cp {} "$out/train-$name.json" \;
  rm -r "$runs"
}

benchmark() { # benchmark OPTION...: a suite's record
  limited "$python" scripts/benchmark.py data.root="$data" trainer=gpu output="$out" "$@"
}

against_airbench() { # against_airbench SCRIPT EXPERIMENT OPTION...: a record, in a folder of the script's name
  local script=$1 experiment=$2 out=$out/${1%.py}
  shift 2
  if [[ -z $airbench ]]; then
    echo "AIRBENCH is not set: $experiment is not compared with $script" >&2
    return
  fi
  local seconds=$((end - SECONDS - 90)) # for turns; 90 to start, and for a turn that has begun
  benchmark suite=peers 'peers=[airbench,ours]' airbench="$airbench" airbench_script="$script" \
    experiment="$experiment" "experiments=[$experiment]" seconds=$((seconds > 1 ? seconds : 1)) "$@"
}

measure() { # measure PART
  case $1 in
  1)
    limited "$python" -m pytest -m gpu tests/test_training.py tests/test_capture.py tests/test_roofline.py \
      >"$out/tests.txt"
    cat "$out/tests.txt"
    for model in baseline baseline_separable separable; do
      train "mnist-$model" data=mnist model="$model"
    done
    train cifar10-separable data=cifar10 model=separable
    train cifar10-mobilenet_v2 data=cifar10 model=mobilenet_v2
    benchmark suite=loop data=mnist model=baseline
    benchmark suite=loop data=cifar10 model=separable steps=300
    benchmark suite=loop experiment=sprint_cifar10 steps=150 rounds=3
    ;;
  2)
    against_airbench airbench94_muon.py sprint_cifar10 rounds=50 target=0.94
    ;;
  3)
    benchmark suite=time_to_accuracy experiment=sprint_separable_cifar10 rounds=20 cold_rounds=1 target=0.94
    benchmark suite=time_to_accuracy experiment=sprint_mnist rounds=100 cold_rounds=1 target=0.99
    ;;
  4)
    benchmark suite=time_to_accuracy experiment=sprint_long_mnist rounds=20 cold_rounds=1 target=0.994
    benchmark suite=time_to_accuracy experiment=sprint_cifar10 rounds=2 cold_rounds=3 target=0.94
    benchmark suite=time_to_accuracy experiment=sprint_cifar10 rounds=10 cold_rounds=1 target=0.94 \
      trainer.step=compiled_graph output="$out/compiled_graph"
    benchmark suite=networks data=mnist 'batch_sizes=[128,1024]' rounds=3
    benchmark suite=networks data=cifar10 'batch_sizes=[128,1024]' rounds=3
    limited "$python" scripts/claims.py scale=full data.root="$data" trainer=gpu output="$out" 'only=[C8,C12]'
    ;;
  5)
    against_airbench airbench96_faster.py sprint96_cifar10 rounds=3 target=0.96
    for size in 022 040 079 170; do
      train "size_$size" experiment="size_${size}_cifar10"
    done
    ;;
  esac
}

for part in $parts; do
  end=$((SECONDS + part_seconds < all_seconds ? SECONDS + part_seconds : all_seconds))
  measure "$part"
done
exit "$status"
