#!/usr/bin/env bash
# What there is to measure on one GPU, in four parts (not yet tried on one: how long they take there is a guess):
#
#   bash scripts/gpu.sh PART DATA OUT   # a part, in at most 9 minutes
#   bash scripts/gpu.sh all DATA OUT    # the parts one after another, with less time each, in at most 25
#
# PART is 1 (tests, trainings, our loop against a bare one), 2 (94 % on CIFAR-10 against airbench), 3 or 4 (time to
# accuracy; networks against their dense twins; claims C8 and C12).
# DATA holds MNIST and CIFAR-10 in torchvision's layout; OUT takes each record, as JSON with hardware and versions, as
# soon as it is there, and under runs/ the runs of the trainings. AIRBENCH names a checkout of
# https://github.com/KellerJordan/cifar10-airbench; without it part 2 is left out. It needs no
# installation, only the dependencies.
#
# A command has what those before it left of its part's time, and is then ended; those that make many turns make fewer.
set -euo pipefail
[[ $# == 3 && $1 =~ ^([1-4]|all)$ ]] || { echo "usage: bash scripts/gpu.sh 1|2|3|4|all DATA OUT" >&2; exit 2; }
data=$(realpath -m "$2") out=$(realpath -m "$3") airbench=${AIRBENCH:+$(realpath -m "$AIRBENCH")}
# seconds of each part; what is left of the minutes is for what does not end at once
parts=("$1") seconds=([1]=525 525 525 525)
[[ $1 == all ]] && parts=(1 2 3 4) seconds=([1]=390 330 330 285)
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
mkdir -p "$out"
status=0

left() { # left [SHARE]: a share of the seconds that the part has left, in per cent
  local share=$(((end - SECONDS) * ${1:-100} / 100))
  echo $((share > 1 ? share : 1))
}

limited() { # limited COMMAND...: for as long as the part has left
  if ((SECONDS >= end)); then
    echo "no time left for: $*" >&2
  elif timeout --kill-after=10 "$(left)" "$@"; then
    return
  else
    echo "status $? (124: its time was over) of: $*" >&2
  fi
  status=1 # the rest is measured all the same
}

train() { # train NAME OPTION...: a run, its result kept under that name; one that an earlier call began goes on
  local runs=$out/runs/$1 result=$out/train-$1.json last
  shift
  [[ -e $result ]] && return
  last=$(find "$runs" -name last.ckpt 2>/dev/null | head -n 1) || true
  if [[ $last ]]; then
    limited "$python" scripts/train.py resume="${last%/checkpoints/*}" data.root="$data" trainer=gpu
  else
    limited "$python" scripts/train.py data.root="$data" trainer=gpu runs="$runs" "$@"
  fi
  if [[ -d $runs ]]; then
    find "$runs" -name result.json -exec cp {} "$result" \;
  fi
}

benchmark() { # benchmark OPTION...: a suite's record
  limited "$python" scripts/benchmark.py data.root="$data" trainer=gpu output="$out" "$@"
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
    benchmark suite=loop experiment=sprint_cifar10 steps=150 rounds=3
    benchmark suite=loop experiment=sprint_cifar10 steps=150 rounds=3 trainer.step=compiled_graph \
      output="$out/compiled_graph"
    benchmark suite=loop data=mnist model=baseline
    benchmark suite=loop data=cifar10 model=separable steps=300
    ;;
  2)
    if [[ -z $airbench ]]; then
      echo "AIRBENCH is not set: ours is not compared with airbench" >&2
      return
    fi
    # both compiled; the rest of the time is to start, and for a turn that has begun
    benchmark suite=peers 'peers=[airbench,ours]' airbench="$airbench" experiment=sprint_cifar10 \
      'experiments=[sprint_cifar10]' rounds=50 target=0.94 trainer.step=compiled_graph seconds="$(left 80)"
    ;;
  3)
    benchmark suite=time_to_accuracy experiment=sprint_separable_cifar10 rounds=20 cold_rounds=1 target=0.94 \
      seconds="$(left 60)"
    benchmark suite=time_to_accuracy experiment=sprint_mnist rounds=100 cold_rounds=1 target=0.99 seconds="$(left 80)"
    ;;
  4)
    benchmark suite=time_to_accuracy experiment=sprint_cifar10 rounds=2 cold_rounds=3 target=0.94
    benchmark suite=networks data=cifar10 'batch_sizes=[128,1024]' rounds=3
    limited "$python" scripts/claims.py scale=full data.root="$data" trainer=gpu output="$out" 'only=[C8,C12]'
    benchmark suite=networks data=mnist 'batch_sizes=[128,1024]' rounds=3
    ;;
  esac
}

for part in "${parts[@]}"; do
  end=$((SECONDS + seconds[part]))
  measure "$part"
done
exit "$status"
