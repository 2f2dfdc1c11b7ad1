"""The runs that come with the repository are as their records say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REAL_DATA, REPOSITORY, Outcome

from sepconv.training import runs
from sepconv.training.recorded import load_classifier

PRETRAINED = sorted(path.parent for path in (REPOSITORY / "pretrained").glob("*/config.yaml"))


def test_they_are_small() -> None:
    assert {path.name for path in PRETRAINED} >= {"separable_mnist", "dense_mnist", "small_mnist", "tiny_cifar10"}
    assert sum(path.stat().st_size for path in (REPOSITORY / "pretrained").rglob("*") if path.is_file()) < 2e6


@pytest.mark.parametrize("run", PRETRAINED, ids=lambda path: path.name)
def test_they_say_what_they_are(run: Path) -> None:
    """Of committed code, with a configuration that their figures are of, and nothing of the machine that made them."""
    _, config, overrides = runs.read_config(run)
    result = runs.read_result(run)
    assert result.git["dirty"] is False
    assert result.configuration == runs.fingerprint(config)
    assert result.overrides == overrides
    assert (config.runs, config.data.root) == ("runs", "data")
    assert load_classifier(run, "best", config).recipe == config.recipe
    assert runs.read_predictions(run, result) is not None


@pytest.mark.parametrize("run", PRETRAINED, ids=lambda path: path.name)
def test_they_have_their_accuracy(command: Callable[..., Outcome], run: Path) -> None:
    """On the real test images; in another precision than the run's an image or two can change."""
    if not REAL_DATA.exists():
        pytest.skip(f"no real data in {REAL_DATA}")
    outcome = command("evaluate", f"run={run}", f"data.root={REAL_DATA}", "trainer=cpu")
    assert outcome.status == 0, outcome.err
    accuracy, recorded = (float(cell.rstrip("%")) for cell in outcome.out.splitlines()[-2].split()[:2])
    assert recorded == round(100 * runs.read_result(run).test_accuracy, 2)
    assert accuracy == pytest.approx(recorded, abs=0.05)
