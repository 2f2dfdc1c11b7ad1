import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sepconv.config.read import read

# in Python's place: notes its arguments, and leaves a result where a training would; that of mobilenet_v2 only begins,
# and ends when it is resumed
PYTHON = """\
#!/usr/bin/env bash
printf '%q ' "$@" >>"$LOG"; echo >>"$LOG"
for argument; do
  case $argument in
  runs=*) run=${argument#runs=}/cifar10/run && mkdir -p "$run/checkpoints" && touch "$run/checkpoints/last.ckpt" ;;
  resume=*) run=${argument#resume=} && echo {} >"$run/result.json" && exit ;;
  esac
done
[[ $run && $* != *mobilenet_v2* ]] && echo {} >"$run/result.json"
[[ $* != *model=separable* ]]
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "scripts" / "gpu.sh")
    clean = {key: value for key, value in os.environ.items() if key != "AIRBENCH"}
    return subprocess.run(
        ["bash", script, *map(str, arguments)], env=clean | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("arguments", [[], ["5", "data", "out"], ["1", "data"]])
def test_usage(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == "usage: bash scripts/gpu.sh 1|2|3|4|all DATA OUT\n"


def check_commands(commands: list[list[str]]) -> None:
    """Asserts that each is one that its script takes."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        for script, *overrides in commands:
            if script != "-m":  # pytest's
                config = compose(Path(script).stem, overrides)
                read(OmegaConf.get_type(config), config)


def test_programme(tmp_path: Path) -> None:
    """Every command is one that its script takes; what fails does not keep the rest from being measured."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    log, out = tmp_path / "log", tmp_path / "out"
    given = {"PYTHON": str(tmp_path / "python"), "LOG": str(log)}
    done = run("all", tmp_path, out, **given, AIRBENCH=str(tmp_path))
    assert done.returncode == 1  # as some have failed, here
    assert "status 1" in done.stderr
    assert {path.name for path in out.glob("train-*")} == {
        *(f"train-mnist-{model}.json" for model in ("baseline", "baseline_separable", "separable")),
        "train-cifar10-separable.json",
    }
    commands = [shlex.split(line) for line in log.read_text().splitlines()]
    assert len(commands) == 17
    check_commands(commands)
    log.unlink()
    done = run("2", tmp_path, out, **given)
    assert "AIRBENCH is not set" in done.stderr
    assert done.returncode == 0
    assert not log.exists()


def test_trainings_go_on_where_they_stopped(tmp_path: Path) -> None:
    """A run that an earlier call began is resumed, and a finished one is not made again."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    log, out = tmp_path / "log", tmp_path / "out"
    environment = {"PYTHON": str(tmp_path / "python"), "LOG": str(log)}
    trainings = []
    for _ in range(2):
        run("1", tmp_path, out, **environment)
        commands = [shlex.split(line) for line in log.read_text().splitlines()]
        trainings.append([command for command in commands if command[0] == "scripts/train.py"])
        log.unlink()
    assert [len(commands) for commands in trainings] == [5, 1]
    ((_, *options),) = trainings[1]
    assert any(option.startswith(f"resume={out}/runs/cifar10-mobilenet_v2") for option in options)
    assert not any(option.startswith(("model=", "runs=", "seed=")) for option in options)
    assert len(list(out.glob("train-*.json"))) == 5
