"""The package as `pip install .` leaves it: without its repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with this one in it, made from a copy of the repository, which builds there."""
    folder = tmp_path_factory.mktemp("installed")
    copy = folder / "repository"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("src", "configs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    done = subprocess.run([*pip, "--no-build-isolation", "--target", folder / "packages", copy], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    shutil.rmtree(copy)
    return folder / "packages"


@pytest.mark.slow
def test_an_installed_package_needs_no_repository(installed: Path, tmp_path: Path) -> None:
    """It has its configurations, and reads and writes under the working directory; a run knows no commit."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")

    def run(*arguments: str) -> str:
        # -P: not the script's own folder; the editable package's finder comes after PYTHONPATH
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import sepconv; print(sepconv.__file__)").startswith(str(installed))
    helped = run("scripts/train.py", "--help")
    assert "experiment: keras_mnist, " in helped
    run("scripts/train.py", "trainer=cpu", "recipe.epochs=1", "trainer.limit_batches=1")
    (run_directory,) = (tmp_path / "runs/digits/separable").iterdir()
    assert json.loads((run_directory / "result.json").read_text())["git"] == {"sha": None, "dirty": None}
    assert f"root: {tmp_path}/data" in (run_directory / "config.yaml").read_text()
    assert "separable" in run("scripts/cost.py", "model=separable", "data=mnist")
    shipped = {path.relative_to(installed / "sepconv") for path in (installed / "sepconv/configs").rglob("*.yaml")}
    assert shipped == {path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert (installed / "sepconv/study/report.html").is_file()
    assert not [path for path in installed.iterdir() if path.name in ("runs", "data", "configs")]
