"""Runs from the command line to their records, on scikit-learn's digits."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SLIM, Outcome, data_config, real, refused
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sepconv.arguments import write_value
from sepconv.config.keys import TrainConfig
from sepconv.config.read import read
from sepconv.costs import counting
from sepconv.data.datasets import load
from sepconv.data.transforms import normalize_moments
from sepconv.networks import build, names
from sepconv.training import runs
from sepconv.training.callbacks import Stopwatch
from sepconv.training.classifier import ImageClassifier
from sepconv.training.step import TrainingStep

Train = Callable[..., Path]
SHORT = ["recipe.epochs=2", "trainer.limit_batches=4"]
LONG = ("airbench", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "xception")  # networks


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("data", ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("recipe", ["fast", "keras", "muon"])
def test_every_configuration_composes(command: Callable[..., Outcome], data: str, recipe: str) -> None:
    outcome = command("train", f"data={data}", f"recipe={recipe}", "data.root=/d", "--cfg", "job", "--resolve")
    assert outcome.status == 0
    config = OmegaConf.create(outcome.out)
    assert config.data.name == data
    assert config.recipe.augment.keys() == config.data.augment.keys()


def test_an_optimizer_of_another_recipe(command: Callable[..., Outcome]) -> None:
    def compose_recipe(*arguments: str) -> Any:
        return OmegaConf.create(command("train", *arguments, "--cfg", "job", "--resolve").out).recipe

    assert compose_recipe("recipe=muon") == compose_recipe("recipe/optimizer=muon")
    keras, changed = compose_recipe("recipe=keras"), compose_recipe("recipe=keras", "recipe/optimizer=adamw")
    assert changed.optimizer == compose_recipe().optimizer != keras.optimizer
    assert {**changed, "optimizer": None} == {**keras, "optimizer": None}


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (REPOSITORY / "configs/experiment").glob("*.yaml")))
def test_every_experiment_composes_and_says_how_to_run_it(command: Callable[..., Outcome], experiment: str) -> None:
    outcome = command("train", f"experiment={experiment}", "--cfg", "job", "--resolve")
    assert outcome.status == 0, outcome.err
    text = (REPOSITORY / f"configs/experiment/{experiment}.yaml").read_text()
    assert f"# python scripts/train.py experiment={experiment}" in text


@pytest.mark.parametrize(
    ("experiment", "shape", "parameters", "macs"),
    [
        ("small_mnist", (1, 28, 28), 5_000, 2_528_000),  # no more arithmetic than the baseline
        ("smallest_mnist", (1, 28, 28), 697, 2_528_000),
        ("mlperf_tiny_cifar10", (3, 32, 32), 78_186, 12_501_632),  # MLPerf Tiny's own network
    ],
)
def test_experiments_of_a_size_keep_to_it(
    command: Callable[..., Outcome], experiment: str, shape: tuple[int, int, int], parameters: int, macs: int
) -> None:
    outcome = command("train", f"experiment={experiment}", "--cfg", "job", "--resolve")
    model = OmegaConf.to_container(OmegaConf.create(outcome.out).model)
    assert isinstance(model, dict)
    net = build(shape=shape, classes=10, **model)
    assert counting.parameters(net) <= parameters
    assert counting.macs(net, shape) <= macs


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("separable", "muon"),
        *(pytest.param(model, "fast", marks=[pytest.mark.slow] * (model in LONG)) for model in names()),
        *(pytest.param(model, "keras", marks=[pytest.mark.slow] * (model != "baseline")) for model in names()),
    ],
)
def test_run_record(train: Train, model: str, recipe: str) -> None:
    slim = [f"model.{key}={write_value(value)}" for key, value in SLIM.get(model, {}).items()]
    run = train(f"model={model}", *slim, f"recipe={recipe}", "seed=7", *SHORT)
    assert run.name.endswith("-seed7")
    assert run.parts[-3:-1] == ("digits", model)
    record = result(run)
    expected = {
        "model", "data", "seed", "parameters", "macs", "val_accuracy", "test_accuracy", "epochs", "fit_seconds",
        "seconds_to_first_step", "train_images_per_second", "eval_images_per_second", "device", "precision",
        "overrides", "configuration", "git", "versions",
    }  # fmt: skip
    assert expected <= record.keys()
    assert (record["model"], record["data"], record["seed"], record["epochs"]) == (model, "digits", 7, 2)
    assert record["device"]["kind"] == "cpu"
    assert 0 < record["fit_seconds"] < 600
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert 0 < record["history"][0]["seconds"] < record["history"][1]["seconds"] <= record["fit_seconds"]
    assert max(epoch["val_accuracy"] for epoch in record["history"]) == pytest.approx(record["val_accuracy"], abs=1e-6)
    assert record["train_images_per_second"] > 0
    assert record["versions"]["torch"] == torch.__version__
    assert f"model={model}" in record["overrides"]
    assert record["overrides"][-1] == "trainer.limit_batches=4"
    assert OmegaConf.load(run / "config.yaml").recipe.epochs == 2
    assert "epoch 2: train loss" in (run / "train.log").read_text()
    assert not list(run.glob("*.part"))
    classifier = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True)
    built = build(model, (1, 16, 16), 10, **SLIM.get(model, {}))
    assert [(name, tensor.shape) for name, tensor in classifier.net.state_dict().items()] == [
        (name, tensor.shape) for name, tensor in built.state_dict().items()
    ]


def test_tensorboard(train: Train) -> None:
    run = train(*SHORT)
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    record = result(run)

    def last(tag: str) -> float:
        return events.Scalars(tag)[-1].value

    for tag in ("loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "learning_rate"):
        assert tag in tags
        assert events.Scalars(tag)[-1].step >= 7
    assert last("cost/parameters") == record["parameters"]
    assert last("cost/macs") == record["macs"]
    assert last("images_per_second/train") > 0
    assert last("accuracy/test") == pytest.approx(record["test_accuracy"], abs=1e-6)
    assert last("result/test_accuracy") == pytest.approx(record["test_accuracy"], abs=1e-6)
    assert len(events.Scalars("learning_rate")) == 8  # every step of so short an epoch
    hparams = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    for name in (b"test_accuracy", b"parameters", b"macs", b"images_per_second", b"options"):
        assert name in hparams
    assert b"separable" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_default_command_reaches_its_accuracy(train: Train) -> None:
    """One seed of what the README states, at the accuracy asked for, and evaluation gives it again."""
    run = train("recipe.epochs=20")
    assert result(run)["test_accuracy"] >= 0.975


def test_evaluation_gives_the_recorded_accuracy(train: Train, command: Callable[..., Outcome]) -> None:
    run = train("recipe.epochs=3", "model=baseline")
    outcome = command("evaluate", f"run={run}", "trainer=cpu")
    assert outcome.status == 0, outcome.err
    recorded = f"{result(run)['test_accuracy']:.2%}"
    assert outcome.out.count(recorded) == 2
    assert outcome.err == ""
    # and it is the accuracy of the checkpoint that validation chose, by hand
    dataset = load(data_config("digits"))
    classifier = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    images, labels = dataset[dataset.test]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=result(run)["precision"] == "bf16-mixed"):
        accuracy = (classifier(images).argmax(1) == labels).double().mean()
    assert f"{accuracy:.2%}" == recorded


def test_moments_are_part_of_the_classifier(train: Train) -> None:
    """It takes images as they are, in training, evaluation and from its checkpoint."""
    run = train("model=tiny", "recipe.normalize=moments", "recipe.epochs=3", "recipe.precision=fp32", "trainer=cpu")
    classifier = ImageClassifier.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    dataset = load(data_config("digits"))
    images, labels = dataset[dataset.test]
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in dataset.statistics())
    with torch.no_grad():
        logits = classifier.net((normalize_moments(images) / 255 - mean) / deviation)
        torch.testing.assert_close(classifier(images), logits, atol=1e-4, rtol=1e-4)
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(result(run)["test_accuracy"], abs=1e-6)


@pytest.mark.parametrize("model", ["baseline", "separable"])
def test_same_seed_same_weights(train: Train, model: str) -> None:
    one, again, other = (train(f"model={model}", f"seed={seed}", *SHORT) for seed in (3, 3, 4))
    assert identical(weights(one), weights(again))
    assert not identical(weights(one), weights(other))
    assert result(one)["test_accuracy"] == result(again)["test_accuracy"]


def test_several_views_of_a_test_image(train: Train) -> None:
    """Beside the plain accuracy, which stays what it is, that of the mean logits of an image and its mirror image."""
    plain, run = (train("model=baseline", "recipe.epochs=3", f"recipe.tta={tta}") for tta in ("none", "mirror"))
    classifier = ImageClassifier.load_from_checkpoint(
        run / "checkpoints/best.ckpt", map_location="cpu", weights_only=True
    ).eval()
    dataset = load(data_config("digits"))
    images, labels = dataset[dataset.test]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=result(run)["precision"] == "bf16-mixed"):
        hits = ((classifier(images) + classifier(images.flip(-1))).argmax(1) == labels).float().mean()
    assert result(run)["test_accuracy_tta"] == pytest.approx(float(hits), abs=0.006)  # two images
    assert result(run)["test_accuracy"] == result(plain)["test_accuracy"] != result(run)["test_accuracy_tta"]
    assert result(plain)["test_accuracy_tta"] is None


def test_resume_continues_a_stopped_run(
    train: Train, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped in its third epoch and resumed ends with the weights of one that never stopped."""
    flips = ["recipe.augment.flip=true", "recipe.augment.alternate=true"]  # which images come mirrored is kept too
    arguments = ["recipe.epochs=4", "trainer.limit_batches=5", "seed=2", *flips]
    whole = train(*arguments)
    steps = 0
    training_step = ImageClassifier.training_step

    def stopping(self: ImageClassifier, rows: torch.Tensor, batch_idx: int) -> Any:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise RuntimeError("the power went")
        return training_step(self, rows, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", stopping)
        with pytest.raises(RuntimeError, match="the power went"):
            train(*arguments)
    (stopped,) = {path.parent for path in whole.parent.glob("*/config.yaml")} - {whole}
    assert not (stopped / "result.json").exists()
    outcome = command("train", f"resume={stopped}")
    assert outcome.status == 0, outcome.err
    assert identical(weights(stopped), weights(whole))
    one, other = result(stopped), result(whole)
    assert one["test_accuracy"] == other["test_accuracy"]
    assert one["val_accuracy"] == other["val_accuracy"]
    accuracies = [[epoch["val_accuracy"] for epoch in record["history"]] for record in (one, other)]
    assert accuracies[0] == accuracies[1]
    assert [epoch["seconds"] for epoch in one["history"]] == sorted(epoch["seconds"] for epoch in one["history"])
    assert one["overrides"] == other["overrides"]
    assert "epoch 4:" in (stopped / "train.log").read_text()


def test_a_moved_run_is_resumed_where_it_is(
    train: Train, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best epoch stays the best, whether the run stopped in the middle or after its last epoch."""
    log_dict = ImageClassifier.log_dict

    def scripted(self: ImageClassifier, values: dict[str, float], **options: Any) -> None:
        if "accuracy/validation" in values:
            values = values | {"accuracy/validation": [0.9, 0.5, 0.4][self.current_epoch]}
        log_dict(self, values, **options)

    monkeypatch.setattr(ImageClassifier, "log_dict", scripted)

    def stopping(self: ImageClassifier) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("the power went")

    def ending(self: ImageClassifier) -> None:
        raise RuntimeError("the power went")

    for number, (hook, stop) in enumerate([("on_train_epoch_start", stopping), ("on_test_epoch_start", ending)]):
        with monkeypatch.context() as patch:
            patch.setattr(ImageClassifier, hook, stop)
            with pytest.raises(RuntimeError, match="the power went"):
                train("recipe.epochs=3", "trainer.limit_batches=4")
        (run,) = tmp_path.glob("runs/*/*/*")
        best = weights(run, "best")
        moved = run.rename(tmp_path / str(number))
        refused(command("train", f"resume={moved}", "trainer.limit_batches=2"), "drop trainer.limit_batches=2")
        outcome = command("train", f"resume={moved}", "trainer=cpu")  # and as many batches as before
        assert outcome.status == 0, outcome.err
        assert result(moved)["val_accuracy"] == pytest.approx(0.9)
        assert identical(weights(moved, "best"), best)
        assert not identical(weights(moved), best)
        assert torch.load(moved / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


def test_the_first_step_is_timed_at_its_end(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the end of the group of steps that Lightning's loop makes at a time."""
    ended: list[float] = []
    step = TrainingStep.__call__

    def noting(self: TrainingStep, rows: torch.Tensor) -> Any:
        figures = step(self, rows)
        ended.append(time.time())
        return figures

    monkeypatch.setattr(TrainingStep, "__call__", noting)
    noted: list[Stopwatch] = []
    on_train_start = Stopwatch.on_train_start

    def keeping(self: Stopwatch, *arguments: Any) -> None:
        noted.append(self)
        on_train_start(self, *arguments)

    monkeypatch.setattr(Stopwatch, "on_train_start", keeping)
    run = train("recipe.epochs=1", "recipe.batch_size=16")
    assert len(ended) == 80
    first = noted[0].started + result(run)["seconds_to_first_step"]
    assert first <= ended[0]


def test_checkpoints_of_the_best_and_the_last_epoch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best by validation accuracy, of equal ones the latest; the last of every epoch."""
    accuracies = iter([0.2, 0.5, 0.5, 0.4])
    log_dict = ImageClassifier.log_dict

    def scripted(self: ImageClassifier, values: dict[str, float], **options: Any) -> None:
        if "accuracy/validation" in values:
            values = values | {"accuracy/validation": next(accuracies)}
        log_dict(self, values, **options)

    monkeypatch.setattr(ImageClassifier, "log_dict", scripted)
    run = train("recipe.epochs=4", "trainer.limit_batches=1")
    best, last = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (2, 3)
    assert result(run)["val_accuracy"] == 0.5
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_grid(command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = command("train", "-m", "model=baseline,separable", "seed=0,1", f"runs={tmp_path}", *SHORT)
    assert outcome.status == 0, outcome.err
    runs = sorted(tmp_path.glob("digits/*/*/result.json"))
    assert len(runs) == 4
    assert {(record["model"], record["seed"]) for record in map(json.loads, (run.read_text() for run in runs))} == {
        ("baseline", 0), ("baseline", 1), ("separable", 0), ("separable", 1),
    }  # fmt: skip


def test_debug_trainer(train: Train) -> None:
    assert result(train("trainer=debug", "recipe.epochs=1"))["epochs"] == 1


def test_runs_are_anchored_at_the_repository(tmp_path: Path) -> None:
    """From any directory, in a process of its own: help and the configuration at once, without torch."""
    script = REPOSITORY / "scripts/train.py"
    probe = "\n".join(
        (
            "import runpy, sys",
            "sys.argv = sys.argv[1:]",
            "try: runpy.run_path(sys.argv[0], run_name='__main__')",
            "finally: assert 'torch' not in sys.modules",
        )
    )
    for arguments in (["--help"], ["--cfg", "job", "--resolve"]):
        done = subprocess.run(
            [sys.executable, "-c", probe, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert f"runs: {REPOSITORY / 'runs'}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_interrupt_says_how_to_go_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    def interrupt(self: ImageClassifier) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_end", interrupt)
        outcome = command("train", f"runs={tmp_path}", "trainer.limit_batches=2")
    (run,) = tmp_path.glob("*/*/*")
    assert outcome.status == 130
    assert outcome.err.splitlines()[-1] == f"stopped: resume={run} continues"
    assert not (run / "result.json").exists()
    assert command("train", f"resume={run}").status == 0


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ("mnist", "separable"),
        pytest.param("mnist", "baseline", marks=pytest.mark.slow),
        pytest.param("cifar10", "separable", marks=pytest.mark.slow),
    ],
)
def test_real_data_for_some_steps(train: Train, data: str, model: str) -> None:
    config = real(data)
    run = train(
        f"data={data}", f"data.root={config.root}", f"model={model}", "recipe.epochs=1", "trainer.limit_batches=60"
    )
    record = result(run)
    assert record["images"] == {
        "train": 60 * 128,  # of an epoch
        "validation": 5_000,
        "test": 10_000,
    }
    assert record["val_accuracy"] > {"mnist": 0.3, "cifar10": 0.12}[data]


@pytest.mark.slow
def test_a_gpus_experiment_for_some_steps(train: Train) -> None:
    """The separable sprint on CIFAR-10, of 20 small batches: it learns, and is tested with its views."""
    config = real("cifar10")
    small = ["model.width=0.125", "recipe.batch_size=100", "trainer.limit_batches=20"]
    record = result(train("experiment=sprint_separable_cifar10", f"data.root={config.root}", *small))
    assert record["images"]["train"] == 2_000
    assert record["test_accuracy"] > 0.15
    assert record["test_accuracy_tta"] > 0.15
    assert record["test_accuracy_tta"] != record["test_accuracy"]


@pytest.mark.gpu
@pytest.mark.parametrize("model", names())
def test_gpu(command: Callable[..., Outcome], tmp_path: Path, model: str) -> None:
    outcome = command("train", "trainer=gpu", f"model={model}", f"runs={tmp_path}", "recipe.epochs=10")
    assert outcome.status == 0, outcome.err
    (run,) = tmp_path.glob("*/*/*")
    record = result(run)
    assert record["device"]["kind"] == "cuda"
    assert record["versions"]["cuda"]
    assert record["test_accuracy"] > 0.8


def test_a_run_records_the_code_of_its_start(
    train: Train, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed while a training runs is not credited to it, and a later one of the process is not clean."""
    states = iter([{"sha": "aaa", "dirty": False}] * 2)
    monkeypatch.setattr(runs, "git_state", lambda: next(states, {"sha": "bbb", "dirty": False}))
    runs.first_state.cache_clear()
    try:
        assert result(train(*SHORT))["git"] == {"sha": "aaa", "dirty": False}
        assert result(train(*SHORT))["git"] == {"sha": "aaa", "dirty": True}
    finally:
        runs.first_state.cache_clear()


def test_code_is_the_same_in_commits_of_other_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    def commit(name: str) -> dict[str, Any]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
        git("add", ".")
        git("commit", "-m", name)
        return runs.git_state(tmp_path)

    git("init")
    monkeypatch.setattr(runs, "CHECKOUT", tmp_path)
    for folder in ("src", "scripts"):
        commit(f"{folder}/a")
    first, second, third = (commit(name) for name in ("configs/a", "docs/a", "src/b"))
    assert first["sha"] != second["sha"]
    assert runs.hash_code(first) == runs.hash_code(second) is not None
    assert runs.hash_code(third) not in (None, runs.hash_code(first))
    unknown = [third | {"dirty": True}, {"sha": None, "dirty": None}, {"sha": "f" * 40, "dirty": False},
               {"sha": "--all", "dirty": False}]  # fmt: skip
    assert {runs.hash_code(code) for code in unknown} == {None}

    # so that a process whose checkout got another document goes on by the same code
    states = iter([first, second, third])
    monkeypatch.setattr(runs, "git_state", lambda: next(states))
    runs.first_state.cache_clear()
    try:
        assert runs.current_code() == first
        assert runs.current_code() == first | {"dirty": True}
    finally:
        runs.first_state.cache_clear()


def test_a_fingerprint_is_of_what_changes_the_training(tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            return runs.fingerprint(read(TrainConfig, compose("train", list(overrides))))

    same = {
        fingerprint(*options)
        for options in ([], ["seed=5"], ["data.root=/a"], [f"runs={tmp_path}"], ["trainer.checkpoint_seconds=0"],
                        ["model.width=1"], ["recipe.label_smoothing=0.05"])
    }  # fmt: skip
    assert len(same) == 1
    others = [["model.width=0.5"], ["recipe.epochs=3"], ["data.train=100"], ["trainer.limit_batches=4"],
              ["weights=/a/b"], ["weights=/a/c"], ["recipe.augment.flip=true"]]  # fmt: skip
    hashes = {fingerprint(*options) for options in others}
    assert len(hashes | same) == len(others) + 1
    assert fingerprint("weights=/elsewhere/b") in hashes
