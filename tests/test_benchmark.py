import copy
import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Outcome, data_config, refused
from hydra import compose, initialize_config_dir

from sepconv import InputError, Stopped, networks
from sepconv.benchmark import networks as networks_suite
from sepconv.benchmark import peers, template, time_to_accuracy
from sepconv.benchmark.loop import BareLoop, Turns, train
from sepconv.config.keys import LoopConfig, TrainConfig
from sepconv.config.read import read
from sepconv.costs import counting, roofline
from sepconv.costs.roofline import Machine
from sepconv.data.datasets import Dataset, load
from sepconv.training.classifier import ImageClassifier, describe_images

ARGUMENTS = ["trainer=cpu", "recipe.batch_size=64", "steps=15", "rounds=2"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["baseline", "separable"])
def test_both_loops_train_to_the_same_weights(model: str, precision: str) -> None:
    """The comparison is of the same computation: one round of each ends at the same weights, bit for bit."""
    several = ["recipe.batch_size=16", "steps=45"]  # to a group
    if model == "separable":
        several += ["recipe.augment.flip=true", "recipe.augment.alternate=true"]
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = read(LoopConfig, compose("benchmark", [*ARGUMENTS, *several, f"model={model}"]))
    dataset = load(config.data)
    torch.manual_seed(0)
    ours = ImageClassifier(config.model, asdict(config.recipe), describe_images(dataset))
    bare = copy.deepcopy(ours)
    before = copy.deepcopy(ours.state_dict())
    turns = Turns(BareLoop(bare, dataset, precision, config.steps, config.seed, config.trainer))
    train(ours, dataset, precision, config, turns)
    assert len(turns.rates["ours"]) == len(turns.rates["bare"]) == 11  # of 15 groups, the first 10 steps left out
    one, other = ours.state_dict(), bare.state_dict()
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
    assert f"{record['ratio']['median']:.3f} (" in outcome.out


def test_trainings_may_be_longer_than_the_images_suffice(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """As those of the command without arguments are: an epoch then is several passes over them."""
    outcome = command("benchmark", "trainer=cpu", "data.train=128", "steps=40", "rounds=1", f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "loop-digits-baseline-128-cpu.json").read_text())
    assert (record["steps"], len(record["ratio"]["turns"])) == (40, 15)


@pytest.fixture
def _quick_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short turns and kernels' times, on a machine that is not measured."""
    machine = Machine({"kind": "cpu"}, {2**10: 1e12, 2**20: 1e11}, {"fp32": 1e13, "bf16": 1e13})
    monkeypatch.setattr(roofline, "measure_machine", lambda device: machine)
    for name, value in {"LEAST": 0, "STEPPED": 0, "REPEATS": 3}.items():
        monkeypatch.setattr(roofline, name, value)
    monkeypatch.setattr("sepconv.benchmark.networks.TURN", 0.02)


@pytest.mark.usefixtures("_quick_networks")
def test_networks_against_their_dense_twins(command: Callable[..., Outcome], tmp_path: Path) -> None:
    arguments = ["suite=networks", "networks=[tiny,separable]", "batch_sizes=[8,16]", "rounds=2", "trainer=cpu"]
    outcome = command("benchmark", *arguments, f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "networks-digits-cpu.json").read_text())
    places = [("tiny", 8), ("tiny", 16), ("separable", 8), ("separable", 16)]
    assert [(row["network"], row["batch_size"]) for row in record["networks"]] == places
    for row in record["networks"]:
        assert row["macs"]["dense"] > row["macs"]["separable"]
        for conv, macs in row["macs"].items():  # each gradient as much again; the images' is not computed
            assert 2 * macs < row["training_macs"][conv] < 3 * macs
        for part in ("training", "evaluation"):
            rates = row[part]["images_per_second"]
            assert len(rates["separable"]) == len(rates["dense"]) == 2
            low, high = row[part]["quartiles"]
            assert 0 < low <= row[part]["median"] <= high
        assert [(step["part"], step["conv"]) for step in row["steps"]] == [
            (part, conv) for part in ("training", "evaluation") for conv in ("separable", "dense")
        ]
        for step in row["steps"]:
            assert 0 < step["least_seconds"] < step["alone_seconds"]
            assert step["measured_seconds"] > step["least_seconds"]
    assert record["peaks"]["bandwidths"] == {str(2**10): 1e12, str(2**20): 1e11}
    page = networks_suite.table(record).filled()
    assert page.headings[-6:] == [
        f"{part} over {words}"
        for words in ("its kernels and what is between", "its kernels alone", "the peaks")
        for part in ("training", "evaluation")
    ]
    steps = record["networks"][0]["steps"][:2]
    for place, keys in ((-6, ["alone_seconds", "between_seconds"]), (-4, ["alone_seconds"])):
        separable, dense = (step["measured_seconds"] / sum(step[key] for key in keys) for step in steps)
        assert page.rows[0][place] == f"{separable:.2f} and {dense:.2f}"
    for step in steps:
        del step["between_seconds"]  # as earlier records have none
    assert networks_suite.table(record).filled().rows[0][-6] == ""
    for names in ("nonsense", "tiny,nonsense"):  # before anything is measured, of which a file would be left
        outcome = command("benchmark", "suite=networks", f"networks=[{names}]", "trainer=cpu", f"output={tmp_path}/bad")
        refused(outcome, "unknown model=nonsense", "separable")
        assert not list((tmp_path / "bad").iterdir())
    refused(command("benchmark", "suite=networks", "networks=[nonsense]"), "unknown model=nonsense", "separable")
    refused(command("benchmark", "suite=networks", "batch_sizes=[0]"), "batch_sizes=[0]")
    refused(command("benchmark", "suite=networks", "batch_sizes=[5000]"), "batch_sizes has 5000")
    refused(command("benchmark", "suite=networks", "batch_sizes=[]"), "batch_sizes=[]", "one or more")
    refused(command("benchmark", "suite=networks", "networks=[]"), "networks=[]", "one or more")


@pytest.mark.usefixtures("_quick_networks")
@pytest.mark.parametrize(
    ("suite", "work", "arguments"),
    [
        ("networks", "networks.measure_network", ["networks=[tiny,separable]", "batch_sizes=[8]", "rounds=1"]),
        ("loop", "loop.run_round", ARGUMENTS),
        ("peers", "peers.train_bare", ["peers=[bare]", "recipe.epochs=1", "rounds=2", "target=0.5"]),
    ],
)
def test_a_stopped_benchmark_goes_on(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str, work: str,
    arguments: list[str],
) -> None:  # fmt: skip
    """Each part is measured once, and the record is whole."""
    module, name = work.split(".")
    owner = importlib.import_module(f"sepconv.benchmark.{module}")
    real, calls = getattr(owner, name), []

    def counted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise Stopped(status=143)
        return real(*given)

    monkeypatch.setattr(owner, name, counted)
    monkeypatch.setitem(peers.PEERS, "bare", lambda *given: peers.train_bare(*given))
    command_line = ["benchmark", f"suite={suite}", *arguments, "trainer=cpu", f"output={tmp_path}"]
    outcome = command(*command_line)
    assert outcome.status == 143, outcome
    assert "the same command goes on" in outcome.err
    (kept,) = tmp_path.iterdir()
    assert len(json.loads(kept.read_text())["parts"].keys() - {"peaks"}) == 1
    outcome = command(*command_line)
    assert outcome.status == 0, outcome.err
    assert len(calls) == 3
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    if suite == "networks":
        assert [row["network"] for row in record["networks"]] == ["tiny", "separable"]
    elif suite == "loop":
        assert len(record["ratio"]["turns"]) == 2 * 5
    else:
        assert record["trainings"]["bare"]["test_accuracy"]["n"] == 2


@pytest.mark.slow
def test_time_to_accuracy(command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold and warm, it is the training that the experiment and the arguments describe, to the same weights."""
    results: dict[str, list[Any]] = {"train_quietly": [], "train_afresh": []}
    for name, kept in results.items():
        make = getattr(time_to_accuracy, name)
        monkeypatch.setattr(time_to_accuracy, name, lambda *a, make=make, kept=kept: kept.append(make(*a)) or kept[-1])
    arguments = ["experiment=separable_cifar10", "data=digits", "data.train=400", "recipe.epochs=2", "trainer=cpu",
                 "recipe/optimizer=muon"]  # fmt: skip
    outcome = command(
        "benchmark", "suite=time_to_accuracy", *arguments, "target=0.1", "rounds=2", "cold_rounds=1",
        f"output={tmp_path}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "time_to_accuracy-digits-separable_cifar10-cpu.json").read_text())
    (warm_up, *warm), ((cold, _),) = results["train_quietly"], results["train_afresh"]
    assert warm_up.epochs == 1
    for key in ("test_loss", "parameters", "epochs", "images"):
        assert getattr(cold, key) == getattr(warm[0], key)
    assert record["model"]["width"] == 2.0
    accuracies = [result.test_accuracy for result in warm]
    judged = record["warm"]["test_accuracy"]
    assert judged["turns"] == accuracies
    assert judged["mean"] == pytest.approx(sum(accuracies) / 2)
    assert judged["share_at_target"] == sum(accuracy >= 0.1 for accuracy in accuracies) / 2
    assert record["warm"]["fit_seconds"]["turns"] == [result.fit_seconds for result in warm]
    start, seconds = record["start"], record["cold"]["seconds"]["turns"]
    assert seconds[0] > start["seconds_to_first_step"]["turns"][0] == cold.seconds_to_first_step
    ratio = cold.seconds_to_first_step / start["import_lightning_seconds"]["median"]
    assert start["ratio"]["turns"] == pytest.approx([ratio])
    assert f"{seconds[0]:.2f} (" in outcome.out


def test_a_mistake_in_a_cold_run_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^recipe.epochs=0 is out of range: 1 or more$"):
        time_to_accuracy.train_afresh(["recipe.epochs=0"])


def test_peers_take_turns(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """After one epoch of one recipe the bare loop and ours have the same accuracy; the template learns too."""
    arguments = [
        "peers=[template,template_fast,pytorch,bare,ours]",
        "recipe=keras",
        "recipe.epochs=1",
        "rounds=2",
        "model.trim=true",
        "peer_epochs.template=3",
        "peer_epochs.template_fast=6",
        "peer_epochs.pytorch=2",
    ]
    outcome = command("benchmark", "suite=peers", *arguments, "target=0.5", "trainer=cpu", f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    rows = json.loads((tmp_path / "peers-digits-cpu.json").read_text())["trainings"]
    assert list(rows) == ["template", "template_fast", "pytorch", "bare", "ours"]
    assert [row["test_accuracy"]["n"] for row in rows.values()] == [1, 1, 1, 2, 2]
    assert rows["bare"]["test_accuracy"] == rows["ours"]["test_accuracy"]
    for row in rows.values():
        assert row["test_accuracy"]["mean_reaches_target"], row
        turn = row["turns"][0]
        assert turn["images"] == 1294 * turn["epochs"]
    *ours_alone, pytorch = (rows[name]["turns"][0]["parameters"] for name in ("ours", "template", "bare", "pytorch"))
    assert len(set(ours_alone)) == 1
    assert pytorch == 320 + 18_496 + (64 * 6 * 6 + 1) * 128 + 1290
    assert rows["template_fast"]["turns"][0]["precision"] == "bf16-mixed"
    peers = [rows[name] for name in ("template", "template_fast", "pytorch")]
    fastest = min(row["fit_seconds"]["median"] for row in peers if row["val_accuracy"] >= 0.5)
    assert rows["ours"]["times_as_fast_as_peers"] == pytest.approx(fastest / rows["ours"]["fit_seconds"]["median"])
    bare, ours = (rows[name]["turns"][0] for name in ("bare", "ours"))
    assert (bare["model"], bare["macs"]) == (ours["model"], ours["macs"])  # the configuration's, trimmed
    for row in rows.values():
        turn = row["turns"][0]
        assert row["images_per_second"]["turns"][0] == pytest.approx(turn["images"] / turn["fit_seconds"])


def test_experiments_on_the_same_images(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is what train.py makes of that experiment, on this command's data and trainer, but not with its recipe."""
    trainings: list[TrainConfig] = []

    def train_quietly(training: TrainConfig, dataset: Any) -> SimpleNamespace:
        trainings.append(training)
        figures = dict.fromkeys(("parameters", "macs", "batch_size", "precision", "test_accuracy_tta"))
        figures |= {"epochs": training.recipe.epochs, "fit_seconds": 2.0 + training.seed, "test_seconds": 1.0}
        return SimpleNamespace(**figures, val_accuracy=0.8, test_accuracy=0.9)

    monkeypatch.setattr(time_to_accuracy, "train_quietly", train_quietly)
    monkeypatch.setattr(peers, "train_quietly", train_quietly)
    arguments = ["peers=[ours]", "experiments=[keras_mnist,separable_mnist]", "rounds=2", "recipe.epochs=9", "seed=3"]
    several = ["data=digits", "data.epochs=4", "data.train=200", "trainer=cpu", f"output={tmp_path}"]
    outcome = command("benchmark", "suite=peers", *arguments, *several)
    assert outcome.status == 0, outcome.err
    assert [(t.model["name"], t.recipe.batch_size, t.recipe.epochs, t.seed) for t in trainings[:2]] == [
        ("baseline", 32, 1, 0), ("separable", 128, 1, 0),
    ]  # fmt: skip
    assert [(t.model["name"], t.recipe.epochs, t.seed) for t in trainings[2:]] == [
        ("baseline", 5, 3), ("separable", 4, 3), ("baseline", 5, 4), ("separable", 4, 4),
    ]  # fmt: skip
    assert {(t.data.name, t.data.train, t.trainer.accelerator) for t in trainings} == {("digits", 200, "cpu")}
    rows = json.loads((tmp_path / "peers-digits-cpu.json").read_text())["trainings"]
    assert "test_accuracy_tta" not in rows["keras_mnist"]
    assert rows["keras_mnist"]["images_per_second"]["turns"] == [5 * 200 / 5, 5 * 200 / 6]
    assert rows["separable_mnist"]["images_per_second"]["turns"] == [4 * 128 / 5, 4 * 128 / 6]
    assert rows["separable_mnist"]["fit_seconds"]["median"] == 5.5
    assert rows["separable_mnist"]["val_accuracy"] == pytest.approx(0.8)


def test_experiments_on_other_images(command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an experiment changes of them is to be given for all."""
    monkeypatch.setattr(peers, "compose", lambda name, given: compose(name, ["data.validation=50", *given]))
    monkeypatch.setattr(peers, "warm_up", lambda training, dataset: pytest.fail(str(training.data.validation)))
    suite = ["suite=peers", "peers=[ours]", "experiments=[keras_mnist]", "data=digits", "trainer=cpu"]
    refused(command("benchmark", *suite), "keras_mnist", "changes the images", "give data.validation=50 to this")
    with pytest.raises(pytest.fail.Exception, match="50"):
        command("benchmark", *suite, "data.validation=50")


@pytest.mark.parametrize("channels", [1, 3])
def test_template_sees_the_same_images(channels: int) -> None:
    """Through PIL, or as tensors, each image as a training of ours standardizes it."""
    pixels = torch.randint(256, (6, 10, 12, channels), dtype=torch.uint8)
    rows = torch.arange(6)
    dataset = Dataset("", ("a", "b"), pixels, rows % 2, rows[:4], rows[4:5], rows[5:])
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in dataset.statistics())
    for pipeline in (template.Pipeline(dataset, batch_size=3), template.InMemory(dataset, batch_size=3)):
        image, label = pipeline.train[1]
        assert torch.allclose(image, (pixels[1].permute(2, 0, 1) / 255 - mean) / deviation, atol=1e-5)
        assert label == 1
        assert [len(images) for images, _ in pipeline.train_dataloader()] == [3, 1]
        assert len(pipeline.validation) == len(pipeline.test) == 1


def test_networks_that_are_not_trained(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They refuse no images. What the bare loop trains is trained before, as ours is, but not twice."""
    warm: list[TrainConfig] = []
    monkeypatch.setattr(peers, "warm_up", lambda training, dataset: warm.append(training))
    arguments = ["suite=peers", "model=tiny", "data.image_size=8", "data.train=128", "recipe.epochs=1", "rounds=1"]
    for names in ("bare", "bare,ours"):
        warm.clear()
        outcome = command("benchmark", *arguments, "trainer=cpu", f"peers=[{names}]", f"output={tmp_path}")
        assert outcome.status == 0, outcome.err
        assert [training.model["name"] for training in warm] == ["tiny"]


def test_slow_peers_are_spread_over_the_call() -> None:
    assert peers.order({"keras": 1, "ours": 4}) == ["ours", "ours", "keras", "ours", "ours"]
    assert peers.order({"ours": 3, "bare": 3, "keras": 2}) == [
        "ours", "bare", "keras", "ours", "bare", "keras", "ours", "bare",
    ]  # fmt: skip


def test_images_are_handed_over(tmp_path: Path) -> None:
    dataset = load(data_config("digits"))
    peers.hand_over(dataset, tmp_path / "images.npz")
    arrays = np.load(tmp_path / "images.npz")
    for part in ("train", "validation", "test"):
        pixels, labels = dataset[getattr(dataset, part)]
        assert np.array_equal(arrays[f"{part}_pixels"], pixels.permute(0, 2, 3, 1))
        assert np.array_equal(arrays[f"{part}_labels"], labels)


@pytest.mark.skipif(not (peers.KERAS / "ready").exists(), reason="Keras is not installed: make peers")
@pytest.mark.parametrize("name", ["keras", "keras_fast", "keras_torch"])
def test_keras_trains_the_same_network(name: str, command: Callable[..., Outcome], tmp_path: Path) -> None:
    if name == "keras_torch" and importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed beside torch: pip install 'keras>=3'")
    arguments = [f"peers=[{name}]", "data=digits", f"peer_epochs.{name}=3", "target=0.5", "trainer=cpu"]
    outcome = command("benchmark", "suite=peers", *arguments, f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    row = json.loads((tmp_path / "peers-digits-cpu.json").read_text())["trainings"][name]
    (turn,) = row["turns"]
    assert turn["parameters"] == counting.parameters(networks.build(shape=(1, 16, 16), classes=10, name="baseline"))
    assert len(turn["epoch_seconds"]) == 3
    assert sum(turn["epoch_seconds"]) < turn["fit_seconds"]
    assert row["test_accuracy"]["mean_reaches_target"]
    assert turn["val_accuracy"] > 0.5
    assert turn["precision"] == ("float32" if name == "keras" else "mixed_bfloat16")
    assert row.get("times_as_fast_as_keras", 1) == row["times_as_fast_as_peers"] == 1


def test_bad_peers(command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "KERAS", tmp_path)
    suite = ["suite=peers", "trainer=cpu"]
    refused(command("benchmark", *suite), "make peers", "peers=[template,bare,ours]")
    refused(
        command("benchmark", *suite, "peers=[caffe]"),
        "unknown peers=caffe",
        "keras, keras_fast, keras_torch, pytorch, airbench, template, template_fast, bare, ours",
    )
    refused(command("benchmark", *suite, "peers=[]"), "peers=[]", "one or more")
    refused(command("benchmark", *suite, "peer_epochs.keras=0"), "peer_epochs.keras=0", "1 or more")
    refused(command("benchmark", *suite, "peer_rates.keras_fast=0"), "peer_rates.keras_fast=0", "above 0")
    refused(command("benchmark", *suite, "peer_rounds.caffe=2"), "peer_rounds.caffe")
    refused(command("benchmark", *suite, "peers=[ours]", "experiments=[x]"), "unknown experiment=x", "keras_mnist")
    refused(command("benchmark", *suite, "peers=[ours]", "trainer.limit_batches=2"), "data.train=N")
    refused(command("benchmark", *suite, "peers=[bare]", "data.image_size=8"), "too small")
    refused(
        command("benchmark", *suite, "peers=[template]", "model=tiny", "data.image_size=8"), "template trains", "small"
    )
    refused(command("benchmark", *suite, "peers=[pytorch]", "model=tiny", "data.image_size=4"), "6 x 6 or more")
    (tmp_path / "ready").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text("#!/bin/sh\necho no module >&2\nexit 1\n")
    (tmp_path / "bin/python").chmod(0o755)
    refused(command("benchmark", *suite, "peers=[keras]"), "no module", "make peers")


def test_bad_input(command: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(command("benchmark", "suite=nonsense"), "unknown suite=nonsense", "loop")
    refused(command("benchmark", "steps=5", "trainer=cpu"), "steps=5", "out of range: 11 or more")
    refused(command("benchmark", "recipe.batch_size=5000", "trainer=cpu"), "recipe.batch_size=5000", "1294 images")
    refused(command("benchmark", "suite=peers", "target=99"), "target=99", "a share")
    refused(command("benchmark", "suite=time_to_accuracy", "cold_rounds=0"), "cold_rounds=0", "1 or more")
    refused(command("benchmark", "cold_rounds=3"), "unknown key cold_rounds", "suite=time_to_accuracy")
    refused(command("benchmark", "suite=networks", "steps=3"), "unknown key steps", "suite=loop")
    refused(command("benchmark", "suite=cpu_layers", "data=mnist"), "data is no choice of this command")
    refused(
        command("benchmark", "suite=networks", "experiment=keras_mnist"), "model is no choice", "experiment/keras_mnist"
    )
    refused(command("benchmark", *ARGUMENTS, "output=/dev/null/x"), "cannot write", "output=")
