import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Outcome, refused
from hydra import compose, initialize_config_dir

from sepconv.benchmark.loop import BareLoop, Turns, train
from sepconv.classifier import ImageClassifier
from sepconv.config import BenchmarkConfig, read
from sepconv.datasets import load
from sepconv.training import describe_images

ARGUMENTS = ["trainer=cpu", "recipe.batch_size=64", "steps=15", "rounds=2"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["baseline", "separable"])
def test_both_loops_train_to_the_same_weights(model: str, precision: str) -> None:
    """The comparison is of the same computation: one round of each ends at the same weights, bit for bit."""
    several = ["recipe.batch_size=16", "steps=45"]  # to a group
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = read(BenchmarkConfig, compose("benchmark", [*ARGUMENTS, *several, f"model={model}"]))
    dataset = load(config.data)
    torch.manual_seed(0)
    ours = ImageClassifier(config.model, asdict(config.recipe), describe_images(dataset))
    theirs = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    turns = Turns(BareLoop(theirs, dataset, precision, config.recipe, config.steps, config.seed))
    train(ours, dataset, precision, config, turns)
    assert len(turns.rates["ours"]) == len(turns.rates["bare"]) == 11  # of 15 groups, the first 10 steps left out
    one, other = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(one[key], before[key]) for key in one)


def test_record(command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = command("benchmark", *ARGUMENTS, f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "loop-digits-baseline-64-cpu.json").read_text())
    assert len(record["ratio"]["turns"]) == len(record["images_per_second"]["ours"]) == 2 * 5
    assert record["ratio"]["turns"][0] == pytest.approx(
        record["images_per_second"]["ours"][0] / record["images_per_second"]["bare"][0]
    )
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]["kind"] == "cpu"
    assert f"median {record['ratio']['median']:.3f} of 10 turns" in outcome.out


def test_networks_against_their_dense_twins(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepconv.benchmark.networks.TURN", 0.02)
    arguments = ["suite=networks", "networks=[tiny,separable]", "batch_sizes=[8,16]", "rounds=2", "trainer=cpu"]
    outcome = command("benchmark", *arguments, f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "networks-digits-cpu.json").read_text())
    places = [("tiny", 8), ("tiny", 16), ("separable", 8), ("separable", 16)]
    assert [(row["network"], row["batch_size"]) for row in record["networks"]] == places
    for row in record["networks"]:
        assert row["macs"]["dense"] > row["macs"]["separable"]
        for part in ("training", "evaluation"):
            rates = row[part]["images_per_second"]
            assert len(rates["separable"]) == len(rates["dense"]) == 2
            low, high = row[part]["quartiles"]
            assert 0 < low <= row[part]["median"] <= high
    refused(command("benchmark", "suite=networks", "networks=[nonsense]"), "unknown model=nonsense", "separable")
    refused(command("benchmark", "suite=networks", "batch_sizes=[0]"), "batch_sizes=[0]")
    refused(command("benchmark", "suite=networks", "batch_sizes=[5000]"), "batch_sizes has 5000")


def test_bad_input(command: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(command("benchmark", "suite=nonsense"), "unknown suite=nonsense", "loop")
    refused(command("benchmark", "steps=5"), "steps=5", "out of range")
    refused(command("benchmark", *ARGUMENTS, "output=/dev/null/x"), "cannot write", "output=")
