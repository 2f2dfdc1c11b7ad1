"""Each mistake of a user's, through the real command line: one line, an exit status, and nothing left behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome, refused
from PIL import Image
from torchvision.datasets import MNIST

Command = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("model=nonsense", ["unknown model=nonsense", "baseline", "separable"]),
        ("data=nonsense", ["unknown data=nonsense", "digits", "mnist"]),
        ("recipe=nonsense", ["unknown recipe=nonsense", "fast", "keras"]),
        ("experiment=nonsense", ["unknown experiment=nonsense", "keras_mnist"]),
        ("trainer=nonsense", ["unknown trainer=nonsense", "cpu"]),
        ("recipe.batchsize=3", ["recipe.batchsize", "did you mean recipe.batch_size"]),
        ("+recipe.batchsize=3", ["recipe.batchsize", "did you mean recipe.batch_size"]),
        ("nonsense=3", ["unknown key nonsense: choose from data, model"]),
        ("+nonsense=3", ["unknown key nonsense: choose from data, model"]),
        ("suite=loop", ["suite is no choice of this command", "--help"]),
        ("TrainConfig=x", ["unknown key TrainConfig"]),
        ("model=3", ["unknown model=3", "baseline"]),
        ("model=[tiny,resnet]", ["model"]),
        ("model.expansion=3", ["unknown key model.expansion", "width", "resolution"]),
        ("recipe.optimizer.speed=3", ["unknown key recipe.optimizer.speed", "betas", "+recipe.optimizer.speed=..."]),
        ("~recipe.batch_size", ["recipe.batch_size cannot be left out"]),
        ("~recipe.batchsize", ["recipe.batchsize", "does not exist"]),
        ("recipe.epochs=null", ["recipe.epochs", "not Optional"]),
        ("recipe.epochs=${data.epoch}", ["data.epoch"]),
        ("recipe.optimizer=3", ["recipe.optimizer"]),
        ("+model.expansion=3", ["unknown key model.expansion", "width", "resolution"]),
        ("model.width=wide", ["model.width", "wide", "Float"]),
        ("model.depth=0", ["model.depth=0", "1 to 64"]),
        ("model.stem=wide", ["unknown model.stem=wide", "standard, separable"]),
        ("model={name: staged, stages: [3]}", ["model.stages[0]", "int"]),
        ("model={name: staged, stages: [{channels: 8}, a]}", ["model.stages[1]", "str"]),
        ("model={name: staged, stages: {a: 1}}", ["model.stages", "list"]),
        ("model={name: staged, stages: 3}", ["model.stages takes a list"]),
        ("model.width=0", ["model.width=0", "above 0"]),
        ("model.width=-1", ["model.width=-1"]),
        ("model.resolution=0", ["model.resolution=0"]),
        ("model.conv=fast", ["unknown model.conv=fast", "separable, dense, spatial"]),
        ("~model.name", ["model={", "a network"]),
        ("model.name=[1]", ["model={", "a network"]),
        ("recipe.batch_size=1", ["recipe.batch_size=1", "2 or more"]),
        ("recipe.batch_size=abc", ["recipe.batch_size", "abc", "Integer"]),
        ("recipe.batch_size=0", ["recipe.batch_size=0", "1 or more"]),
        ("recipe.batch_size=-5", ["recipe.batch_size=-5"]),
        ("recipe.augment.alternate=true", ["augment.alternate=true", "augment.flip=true"]),
        ("recipe.tta=all", ["recipe.tta=all", "none, mirror, translate"]),
        ("recipe.whiten=-1", ["recipe.whiten=-1", "0 or more"]),
        ("recipe.epoch_images=100", ["recipe.epoch_images=100", "at least a batch, 128"]),
        ("recipe.batch_size=100000", ["recipe.batch_size=100000", "larger than the training set", "1294"]),
        ("recipe.epochs=0", ["recipe.epochs=0"]),
        ("recipe.epochs=1.5", ["recipe.epochs", "1.5"]),
        ("recipe.optimizer.lr=-1", ["recipe.optimizer.lr=-1"]),
        ("recipe.optimizer.lr=fast", ["recipe.optimizer.lr=fast"]),
        ("+recipe.optimizer.biases=3", ["recipe.optimizer.biases=3"]),
        ("+recipe.optimizer.biases={lr: -1}", ["recipe.optimizer.biases.lr=-1", "above 0"]),
        ("recipe.optimizer.name=Best", ["recipe.optimizer.name=Best", "torch.optim"]),
        ("+recipe.optimizer.speed=3", ["recipe.optimizer", "speed"]),
        ("recipe.schedule=sometimes", ["recipe.schedule=sometimes", "one_cycle"]),
        ("recipe.warmup=2", ["recipe.warmup=2"]),
        ("recipe.label_smoothing=1", ["recipe.label_smoothing=1"]),
        ("recipe.initialization=luck", ["recipe.initialization=luck", "glorot_uniform"]),
        ("recipe.precision=int3", ["recipe.precision=int3", "bf16"]),
        ("recipe.augment.crop=-1", ["recipe.augment.crop=-1", "0 or more"]),
        ("data.augment.crop=-1", ["data.augment.crop=-1", "0 or more"]),
        ("recipe.augment.crop=2.5", ["recipe.augment.crop", "2.5", "Integer"]),
        ("recipe.augment=3", ["recipe.augment"]),
        ("data.image_size=0", ["data.image_size=0"]),
        ("data.validation=0", ["data.validation=0"]),
        ("data.validation=5000", ["data.validation=5000", "leave some on both sides"]),
        ("data.test=1.5", ["data.test=1.5"]),
        ("data.train=1294", ["data.train=1294", "fewer than the 1294 images that there are to train on"]),
        ("trainer.limit_batches=0", ["trainer.limit_batches=0"]),
        ("trainer.accelerator=abacus", ["trainer.accelerator=abacus", "cpu"]),
        ("recipe/optimizer=x", ["recipe/optimizer=x", "adamw", "muon"]),
        ("seed=-1", ["seed=-1"]),
        ("seed=a", ["seed", "Integer"]),
        ("resume=/nowhere", ["/nowhere is no run"]),
        ("runs=/dev/null/runs", ["/dev/null/runs", "runs="]),
        ("model=null", ["unknown model=null", "baseline"]),
        ("model=[]", ["unknown model=[]", "baseline"]),
        ("experiment=1", ["unknown experiment=1", "keras_mnist"]),
        ("recipe=[[1]]", ["unknown recipe=[[1]]", "fast"]),
        ("data=", ["unknown data=", "digits"]),
        ("recipe/optimizer=null", ["unknown recipe/optimizer=null", "adamw"]),
        ("recipe.whiten=inf", ["recipe.whiten=inf", "a finite number"]),
        ("recipe.warmup=nan", ["recipe.warmup=nan", "a finite number"]),
        ("data.validation=inf", ["data.validation=inf", "a finite number"]),
        ("model.width=inf", ["model.width=inf", "a finite number"]),
        ("recipe.optimizer.weight_decay=inf", ["recipe.optimizer.weight_decay=inf", "a finite number"]),
        ("data.split_seed=9223372036854775808", ["data.split_seed=9223372036854775808", "64 bits"]),
        ("+recipe.optimizer.biases={lr: 1, eps: 99999999999999999999}", ["biases.eps=99999999999999999999", "64 bits"]),
        ("recipe.epoch_images=1000000000000", ["recipe.epoch_images=1000000000000 takes 22,888,184 MiB", "MiB free"]),
        ("recipe.augment.crop=1000000", ["recipe.augment.crop=1000000 takes 488,289,063 MiB", "MiB free"]),
        ("data.image_size=1000000", ["takes 8,568,763,733 MiB", "MiB free", "data.image_size"]),
        ("recipe.batch_size=1000000000", ["recipe.batch_size=1000000000", "1294 images"]),
        ("model={name: tiny, width: 1000000}", ["model=tiny", "takes 15,259,2", "MiB free"]),
        ("model={name: tiny, repeats: 1000000000}", ["model.repeats=1000000000", "1 to 64"]),
        ("model={name: resnet, depth: 6000000002}", ["model.depth=6000000002", "at most 1202"]),
        ("recipe.optimizer.betas=[0.9]", ["recipe.optimizer.betas=[0.9]", "a list of 2 numbers"]),
        ("recipe.optimizer.betas=[a,b]", ["recipe.optimizer.betas=a", "a number"]),
        ("+recipe.optimizer.foreach=true", ["recipe.optimizer cannot be made", "foreach", "torch.optim.AdamW"]),
        ("+recipe.optimizer.foreach=yes", ["recipe.optimizer.foreach=yes", "true or false"]),
        ("+recipe.optimizer.amsgrad=3", ["recipe.optimizer.amsgrad=3", "true or false"]),
        ("+recipe.optimizer.differentiable=true", ["recipe.optimizer cannot be made", "differentiable"]),
        ("+recipe.optimizer.capturable=true", ["recipe.optimizer.capturable=true", "leave it out"]),
        ("recipe.optimizer.name=LBFGS", ["recipe.optimizer cannot be made", "torch.optim.LBFGS"]),
        ("recipe.optimizer.name=SparseAdam", ["recipe.optimizer cannot be made", "dense gradients"]),
        ("recipe.optimizer={name: SGD, betas: [0.9,0.99]}", ["unknown recipe.optimizer.betas", "torch.optim.SGD"]),
        ("runs=${nowhere}", ["nowhere"]),
        ("seed=${oc.env:NO_SUCH_VARIABLE}", ["seed", "NO_SUCH_VARIABLE"]),
        ("seed=${seed}", ["seed", "Recursive"]),
        ("seed=${magic:1}", ["seed", "magic"]),
        ("seed=${", ["seed=${ cannot be read", "'seed=${key}'"]),
        ("seed=1,2", ["seed=1,2", "-m"]),
        ("recipe.optimizer={name: SGD", ["one argument", "'recipe.optimizer={"]),
        ("model.conv=(dense)", ["model.conv=(dense) cannot be read", "'model.conv=\"(dense)\"'"]),
        ("model.conv=a=b", ["model.conv=a=b cannot be read", "'model.conv=\"a=b\"'"]),
        ("recipe.tta=Käfer", ["recipe.tta=Käfer cannot be read", "'recipe.tta=\"Käfer\"'"]),
        ("recipe.tta=" + "[" * 3000, ["cannot be read"]),
        ("seed=" + "9" * 5000, ["seed"]),
        ("model=two\nlines", ["model=two\\nlines"]),
        ("runs", ["runs is no key=value", "--help"]),
        ("", ["an empty argument"]),
        ("=3", ["=3", "no name of a key"]),
        ("--nonsense", ["--nonsense", "--help"]),
        ("--resolve", ["--resolve", "--cfg"]),
        ("--cfg=nonsense", ["nonsense", "job"]),
        ("--config-dir=/nowhere", ["/nowhere"]),
        ("recipe.batch_size=", ["recipe.batch_size"]),
        ("recipe.batch_size", ["recipe.batch_size"]),
        ("data=folder", ["data.root is missing"]),
    ],
)
def test_arguments(command: Command, tmp_path: Path, argument: str, words: list[str]) -> None:
    runs = [] if argument.startswith(("runs=", "resume=")) else [f"runs={tmp_path}"]
    refused(
        command("train", *runs, "trainer=cpu" if "trainer" not in argument else "model=separable", argument), *words
    )
    assert not list(tmp_path.iterdir())


def test_too_small_images(command: Command, tmp_path: Path) -> None:
    outcome = command("train", f"runs={tmp_path}", "model=baseline", "data.image_size=8")
    refused(outcome, "8 x 8", "too small", "10 x 10")


def test_a_last_batch_of_one_image(command: Command, tmp_path: Path) -> None:
    """Which a batch norm cannot take; a network without norms can."""
    arguments = [f"runs={tmp_path}", "trainer=cpu", "recipe=keras", "data.train=33", "recipe.epochs=1"]
    refused(command("train", *arguments, "model=tiny"), "a batch of one image", "recipe.drop_last=true")
    assert not list(tmp_path.rglob("*seed*"))
    for more in (["model=tiny", "recipe.drop_last=true"], ["model=baseline"]):
        outcome = command("train", *arguments, *more)
        assert outcome.status == 0, outcome.err


def test_an_error_of_ours_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what Hydra cannot write before a run begins is a mistake of the user's."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("sepconv.training.train.train", fail)
    with pytest.raises(OSError, match="No space left"):
        command("train", "trainer=cpu")


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here")
def test_no_gpu(command: Command, tmp_path: Path) -> None:
    refused(command("train", "trainer=gpu", f"runs={tmp_path}"), "no GPU", "trainer=cpu")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_missing_data(command: Command, tmp_path: Path, name: str) -> None:
    outcome = command("train", f"runs={tmp_path}", f"data={name}", f"data.root={tmp_path}/none", "data.download=false")
    refused(outcome, f"{name} is not in {tmp_path}/none", "data=digits", "data.root")


def test_no_network(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens on the discard port
    outcome = command("train", f"runs={tmp_path}/runs", "data=mnist", f"data.root={tmp_path}/data")
    refused(outcome, f"mnist is not in {tmp_path}/data", "data=digits", "data.root")


def test_folder(command: Command, tmp_path: Path) -> None:
    def run() -> Outcome:
        return command("train", f"runs={tmp_path}/runs", "data=folder", f"data.root={tmp_path}/images")

    refused(run(), f"{tmp_path}/images is no directory")
    (tmp_path / "images/cat").mkdir(parents=True)
    refused(run(), f"{tmp_path}/images needs at least one image")
    Image.new("RGB", (40, 30)).save(tmp_path / "images/cat/1.png")
    refused(run(), "one class, cat", "two or more")
    (tmp_path / "images/dog").mkdir()
    refused(run(), f"{tmp_path}/images needs at least one image")
    (tmp_path / "images/dog/1.jpg").write_bytes(b"no image")
    refused(run(), f"{tmp_path}/images/dog/1.jpg cannot be read")


def test_no_run(command: Command, tmp_path: Path) -> None:
    refused(command("evaluate", f"run={tmp_path}/none"), f"{tmp_path}/none is no run")
    refused(command("evaluate", f"run={tmp_path}"), "is no run", "config.yaml")
    refused(command("evaluate"), "give run=")
    (tmp_path / "config.yaml").write_text("nonsense")
    refused(command("evaluate", f"run={tmp_path}"), "is not a run's configuration")


def test_checkpoint_of_another_network(command: Command, train: Callable[..., Path], tmp_path: Path) -> None:
    short = ["recipe.epochs=1", "trainer.limit_batches=1"]
    one, other = train("model=baseline", *short), train("model=separable", *short)
    shutil.copytree(other / "checkpoints", one / "checkpoints", dirs_exist_ok=True)
    refused(command("evaluate", f"run={one}"), "another network", "baseline", "separable")
    (one / "result.json").unlink()
    refused(command("train", f"resume={one}"), "another network", "baseline", "separable")
    (one / "checkpoints/best.ckpt").write_bytes(b"nonsense")
    refused(command("evaluate", f"run={one}"), "best.ckpt", "cannot be loaded")
    shutil.rmtree(one / "checkpoints")
    refused(command("evaluate", f"run={one}"), "no checkpoint best.ckpt")
    refused(command("train", f"resume={other}"), "complete")
    (other / "result.json").unlink()
    refused(command("train", f"resume={other}", "seed=3"), "drop seed=3")


def test_diverging_loss(command: Command, tmp_path: Path) -> None:
    outcome = command(
        "train", "trainer=cpu", f"runs={tmp_path}", "recipe.epochs=3", "recipe.optimizer.name=SGD",
        "~recipe.optimizer.betas", "recipe.optimizer.lr=1e30", "recipe.schedule=constant", "model=baseline",
    )  # fmt: skip
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert (
        "the loss became nan in epoch 1, step" in outcome.err or "the loss became inf in epoch 1, step" in outcome.err
    )
    (run,) = tmp_path.glob("*/*/*")
    assert not (run / "result.json").exists()
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "where", "kept"),
    [
        ("lr: 1e30", "the loss became nan in epoch 1, step 2", True),  # weights are finite after the first step
        ("lr: 1e38, weight_decay: 1e9", "the loss became nan in epoch 1, after step 1", False),
    ],
)
def test_no_checkpoint_within_an_epoch_has_diverged(
    command: Command, tmp_path: Path, options: str, where: str, kept: bool
) -> None:
    outcome = command("train", "trainer=cpu", f"runs={tmp_path}", "model=baseline", "recipe.schedule=constant",
                      f"recipe.optimizer={{name: SGD, {options}}}", "trainer.checkpoint_seconds=0")  # fmt: skip
    refused(outcome, where, "lower recipe.optimizer.lr")
    states = [torch.load(path, weights_only=True) for path in tmp_path.glob("*/*/*/checkpoints/last.ckpt")]
    assert [state["global_step"] for state in states] == [1] * kept
    assert all(value.isfinite().all() for state in states for value in state["state_dict"].values())


def test_a_loss_that_diverges_in_an_epochs_last_step(command: Command, tmp_path: Path) -> None:
    """Its own loss is that of before: it shows in validation."""
    outcome = command("train", "trainer=cpu", f"runs={tmp_path}", "model=baseline", "recipe.epochs=1",
                      "recipe.optimizer={name: SGD, lr: 1e30}", "trainer.limit_batches=1")  # fmt: skip
    refused(outcome, "the loss became nan in the validation of epoch 1", "lower recipe.optimizer.lr")
    (run,) = tmp_path.glob("*/*/*")
    assert not (run / "result.json").exists()
    assert not list(run.glob("checkpoints/*"))


def test_a_gradient_that_is_not_a_number(command: Command, tmp_path: Path) -> None:
    """Which trainer=debug looks for."""
    with pytest.warns(UserWarning, match=r"Error detected in LogSoftmaxBackward0(.|\n)*cross_entropy"):  # in the log
        outcome = command("train", "trainer=debug", f"runs={tmp_path}", "model=baseline", "recipe.schedule=constant",
                          "recipe.optimizer={name: SGD, lr: 1e30}")  # fmt: skip
    refused(outcome, "a gradient became nan in epoch 1: Function 'LogSoftmaxBackward0' returned nan", "train.log")


def test_experiment_file(command: Command, tmp_path: Path) -> None:
    """Of a mistake in a file of one's own the line names the file."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("7")
    refused(command("train", f"--config-dir={tmp_path}", "experiment=mine"), "Invalid loaded object type: int")
    for mistake, words in (
        ("recipe: {batchsize: 1}", ["unknown key recipe.batchsize", "did you mean recipe.batch_size?"]),
        ("recipe: {batch_size: many}", ["recipe.batch_size", "many", "Integer"]),
        ("recipe: {batch_size: .inf}", ["recipe.batch_size", "inf", "Integer"]),
        ("recipe: [1]", ["RecipeConfig"]),
        ("recipe: 3", ["RecipeConfig"]),
        ("defaults: [override /nonsense: x]", ["nonsense is no choice of this command"]),
        ("recipe: [", ["mine.yaml"]),
    ):
        (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{mistake}\n")
        refused(command("train", f"--config-dir={tmp_path}", "experiment=mine"), "experiment/mine", *words)
