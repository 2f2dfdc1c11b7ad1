import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir

from sepconv.config import BenchmarkConfig, ClaimsConfig, TrainConfig, read

SCHEMAS = {"train": TrainConfig, "benchmark": BenchmarkConfig, "claims": ClaimsConfig}

# in Python's place: notes its arguments, and leaves a result where a training would
PYTHON = """\
#!/usr/bin/env bash
printf '%q ' "$@" >>"$LOG"; echo >>"$LOG"
for argument; do
  case $argument in runs=*) mkdir "${argument#runs=}/run" && echo {} >"${argument#runs=}/run/result.json" ;; esac
done
[[ $* != *model=separable* ]]
"""


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "scripts" / "gpu.sh")
    clean = {key: value for key, value in os.environ.items() if key != "AIRBENCH"}
    return subprocess.run(
        ["bash", script, *map(str, arguments)], env=clean | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("arguments", [[], ["6", "data", "out"], ["1", "data"]])
def test_usage(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr == "usage: bash scripts/gpu.sh 1|2|3|4|5|all DATA OUT\n"


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
        *(f"train-cifar10-{model}.json" for model in ("separable", "mobilenet_v2")),
        *(f"train-size_{size}.json" for size in ("022", "040", "079", "170")),
    }
    commands = [shlex.split(line) for line in log.read_text().splitlines()]
    assert len(commands) == 23
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        for script, *overrides in commands:
            if script != "-m":  # pytest's
                name = Path(script).stem
                read(SCHEMAS[name], compose(name, overrides))
    log.unlink()
    done = run("2", tmp_path, out, **given)
    assert "AIRBENCH is not set" in done.stderr
    assert done.returncode == 0
    assert not log.exists()
