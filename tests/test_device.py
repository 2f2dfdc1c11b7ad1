"""The step on a GPU, as far as it shows where there is none: tensors that have a shape and a device, but no values."""

import time
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sepconv import networks
from sepconv.config.keys import TrainConfig
from sepconv.config.read import read
from sepconv.data import datasets
from sepconv.data.datasets import Dataset
from sepconv.data.module import ImageData, evaluation_batch
from sepconv.training.callbacks import Monitor, Stopwatch
from sepconv.training.capture import CapturedStep, CudaGraph
from sepconv.training.classifier import ImageClassifier
from sepconv.training.recipe import assemble_optimizer
from sepconv.training.step import TrainingStep

COUNT = 60_000  # images


class OnDevice(TorchDispatchMode):
    """Refuses an operation that has a tensor elsewhere: in a CUDA graph it would wait, or its value stay for ever."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, Tensor) or value.device.type == "cuda", f"{function} on {value.device}"
        return result


class Queue(CudaGraph):
    """In place of a CUDA graph, which is not recorded."""

    def __init__(self) -> None:
        pass

    def warm_up(self, function: Any) -> Any:
        return function()


def fill_gradients(loss: Tensor, net: nn.Module) -> None:
    """In place of the backward pass, whose engine needs a real device."""
    assert loss.requires_grad
    for weight in net.parameters():
        if weight.requires_grad:
            weight.grad = torch.empty_like(weight)


def fake_data(config: TrainConfig) -> ImageData:
    """The data module as it is on the device, but for its images."""
    (channels, height, width), classes = datasets.SHAPES[config.data.name]
    labels = torch.empty(COUNT, dtype=torch.int64)
    pixels = torch.empty(COUNT, height, width, channels, dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    dataset = Dataset(config.data.name, names, pixels, labels, labels, labels, labels)
    data = ImageData(dataset, config.recipe, torch.device("cpu"))  # whose generator is a real one
    if data.augment.alternation is not None:
        data.augment.alternation.mirrored = data.augment.alternation.mirrored.to(labels.device)
    return data


@pytest.mark.parametrize(
    "options",
    [
        ["data=mnist", "model=baseline", "recipe=keras"],
        ["data=mnist", "experiment=sprint_mnist"],
        ["data=mnist", "experiment=smallest_mnist"],
        ["data=cifar10", "model=mobilenet_v3_small", "recipe.augment.crop=4", "recipe.augment.flip=true"],
        ["experiment=sprint_separable_cifar10", "recipe.augment.cutout=8"],
    ],
)
def test_a_step_and_a_test_stay_on_the_device(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation asks for a value, or has a tensor on the host: what a CUDA graph cannot hold."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = read(TrainConfig, compose("train", options))
    for part in (config.recipe.optimizer, config.recipe.optimizer.get("others", {})):
        part.pop("fused", None)  # that kernel has no form without values
    monkeypatch.setattr(Dataset, "to", lambda dataset, device: dataset)
    monkeypatch.setattr(networks, "check_size", lambda name, factory: None)  # before a training, with values
    fake = FakeTensorMode()
    with fake, torch.device("cuda"):
        data = fake_data(config)
        channels = data.dataset.shape[0]
        images = {
            "shape": list(data.dataset.shape),
            "classes": list(data.dataset.classes),
            "mean": [0.5] * channels,
            "deviation": [0.2] * channels,
        }
        classifier = ImageClassifier(config.model, asdict(config.recipe), images)
        optimizer = assemble_optimizer(classifier.net, config.recipe.optimizer)
        step = TrainingStep(
            classifier.net, classifier.normalize, classifier.fill, data, config.recipe, optimizer, "eager", "32-true"
        )
        captured = CapturedStep(step, optimizer, Queue(), config.recipe.batch_size)
        rows = torch.empty(config.recipe.batch_size, dtype=torch.int64)
    monkeypatch.setattr(ImageClassifier, "data", data)
    monkeypatch.setattr(ImageClassifier, "trainer", SimpleNamespace(testing=True))
    monkeypatch.setattr(Tensor, "backward", lambda loss: fill_gradients(loss, classifier))
    with fake, OnDevice():
        for _ in range(2):  # the second has the optimizer's state
            loss, hits = captured(rows)
        assert (loss.device.type, loss.shape, hits.device.type, hits.shape) == ("cuda", (), "cuda", ())
        classifier.eval().on_test_epoch_start()
        classifier.test_step(rows, 0)
    assert {state.device.type for values in optimizer.state.values() for state in values.values()} == {"cuda"}


def test_the_losses_of_an_epoch_that_is_resumed() -> None:
    """Those of before, from a checkpoint on the CPU, are looked at with those on the device, which is asked."""
    monitor, trainer = Monitor(), SimpleNamespace(num_training_batches=2, current_epoch=0)
    module: Any = SimpleNamespace(device=torch.device("cuda"), global_step=4)
    with FakeTensorMode():
        figures = {"loss": torch.ones(2), "hits": torch.ones(2), "rate": 0.1}
        monitor.load_state_dict({"outputs": [figures | {"images": 4, "step": 2}], "checked": 0})
        outputs, rows = {key: torch.as_tensor(value, device="cuda") for key, value in figures.items()}, torch.ones(4)
        with pytest.raises(DataDependentOutputException):
            monitor.on_train_batch_end(trainer, module, outputs, rows, 1)  # type: ignore[arg-type]


def test_times_on_apples_gpu_are_of_work_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(time.perf_counter()))
    stopwatch, mps = Stopwatch(0.0), torch.device("mps")
    stopwatch.mark(mps, 4)
    stopwatch.note_step(mps)
    stopwatch.mark(mps, 4)
    assert len(waits) == 3
    assert waits[0] <= stopwatch.moments[0] <= waits[1]
    assert waits[2] <= stopwatch.moments[1]


@pytest.mark.parametrize(
    ("device", "side", "count"),
    [("cuda", 28, 2000), ("cuda", 32, 2000), ("cuda", 224, 41), ("cpu", 32, 500), ("cpu", 224, 41), ("cpu", 2000, 1)],
)
def test_an_evaluations_batch_has_a_bounded_number_of_pixels(device: str, side: int, count: int) -> None:
    assert evaluation_batch(torch.device(device), (3, side, side)) == count
