"""The forms of the training step: to the same weights, whichever makes them."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SLIM, Outcome, refused
from test_training import identical, result, weights
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sepconv import InputError
from sepconv.config.keys import TrainerConfig
from sepconv.networks import build
from sepconv.training import classifier, step
from sepconv.training import train as training
from sepconv.training.capture import WARM_UP, CapturedStep, CudaGraph
from sepconv.training.classifier import ImageClassifier
from sepconv.training.step import TrainingStep, capturable, compile_network, resolve_step

Train = Callable[..., Path]
# 10 steps of 128 images and one of 14; rates that float32 holds exactly, as a tensor of the rate does
ODD = ["recipe.drop_last=false", "recipe.optimizer.lr=0.0078125"]


class Recorder(CudaGraph):
    """In place of a CUDA graph: recording does nothing but keep the function, a replay calls it."""

    def __init__(self, generator: torch.Generator) -> None:
        self.warm_ups = self.replays = 0

    def warm_up(self, function: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        self.warm_ups += 1
        return function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.replays += 1
            function()

        return replay


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Makes `trainer.step=graph` train on the CPU through a Recorder for each training: those made."""
    made: list[Recorder] = []

    def make(generator: torch.Generator) -> Recorder:
        made.append(Recorder(generator))
        return made[-1]

    monkeypatch.setattr(step, "CudaGraph", make)
    monkeypatch.setattr(training, "resolve_step", lambda config, device, optimizer: config.step)
    return made


@pytest.fixture
def _exact_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that changes at each step, by powers of two."""

    def build_schedule(optimizer: Optimizer, *_: object) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 2.0 ** -(step % 3))

    monkeypatch.setattr(classifier, "build_schedule", build_schedule)


@pytest.mark.usefixtures("_exact_rates")
@pytest.mark.parametrize(
    "options",
    [
        ["recipe=fast"],  # AdamW
        [
            "recipe=muon",
            "recipe.optimizer.others.lr=0.0078125",
            "recipe.augment.flip=true",
            "recipe.augment.alternate=true",
        ],
        pytest.param(["recipe=keras", "+recipe.optimizer.fused=true"], marks=pytest.mark.slow),  # Adam
        pytest.param(
            ["recipe.optimizer.name=SGD", "+recipe.optimizer.momentum=0.9", "~recipe.optimizer.betas"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_replayed_steps_train_to_the_weights_of_eager_ones(
    train: Train, recorders: list[Recorder], options: list[str]
) -> None:
    arguments = [*options, *ODD, "recipe.epochs=2", "recipe.batch_size=128", "recipe.augment.rotate=10"]
    eager, graph = (train(*arguments, f"trainer.step={form}") for form in ("eager", "graph"))
    assert identical(weights(eager), weights(graph))
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (eager, graph)]
    one, other = ({key: state[key] for key in ("optimizer_states", "lr_schedulers")} for state in states)
    assert str(one) == str(other)  # plain learning rates, and the same moments
    assert torch.equal(*(state["ImageData"]["generator"] for state in states))
    assert [(recorder.warm_ups, recorder.replays) for recorder in recorders] == [(WARM_UP, 2 * 10 - WARM_UP)]
    assert (result(eager)["step"], result(graph)["step"]) == ("eager", "graph")


@pytest.mark.usefixtures("_exact_rates")
def test_replayed_steps_after_a_resume(
    train: Train, recorders: list[Recorder], command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of replayed steps, stopped in its second epoch and resumed so, ends as an eager one that never stopped."""
    arguments = [*ODD, "recipe.epochs=3"]
    whole = train(*arguments, "trainer.step=eager")
    training_step = ImageClassifier.training_step

    def stopping(self: ImageClassifier, rows: Tensor, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (1, 7):
            raise RuntimeError("the power went")
        return training_step(self, rows, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", stopping)
        with pytest.raises(RuntimeError, match="the power went"):
            train(*arguments, "trainer.step=graph")
    (stopped,) = {path.parent for path in whole.parent.glob("*/config.yaml")} - {whole}
    outcome = command("train", f"resume={stopped}")
    assert outcome.status == 0, outcome.err
    assert [recorder.replays for recorder in recorders] == [10 + 7 - WARM_UP, 2 * 10 - WARM_UP]
    assert identical(weights(stopped), weights(whole))


def test_a_replay_has_its_inputs_in_place() -> None:
    """Rows, rates and results are the same tensors at every replay; the optimizer's groups keep plain numbers."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([{"params": [weight]}], lr=0.5)
    seen: list[tuple[int, int, float, list[int]]] = []

    def step(rows: Tensor) -> tuple[Tensor, Tensor]:
        rate = optimizer.param_groups[0]["lr"]
        seen.append((rows.data_ptr(), rate.data_ptr(), float(rate), rows.tolist()))
        return rows.float().mean(), rows.sum()

    graph = Recorder(torch.Generator())
    captured = CapturedStep(step, optimizer, graph, batch_size=2)
    results = []
    for i in range(WARM_UP + 3):
        optimizer.param_groups[0]["lr"] = 2.0**-i
        results.append(captured(torch.tensor([i, i + 1])))
        assert optimizer.param_groups[0]["lr"] == 2.0**-i
        assert optimizer.param_groups[0]["capturable"] is False
    assert [(float(loss), int(hits)) for loss, hits in results] == [(i + 0.5, 2 * i + 1) for i in range(WARM_UP + 3)]
    assert [(rate, rows) for _, _, rate, rows in seen] == [(2.0**-i, [i, i + 1]) for i in range(WARM_UP + 3)]
    assert len({rate for _, rate, _, _ in seen}) == 1
    assert len({rows for rows, _, _, _ in seen[WARM_UP:]}) == 1
    assert graph.replays == 3
    loss, hits = captured(torch.tensor([7]))  # of another size
    assert (float(loss), int(hits), graph.replays) == (7, 7, 3)


@pytest.mark.parametrize(
    ("name", "options", "right"),
    [
        ("AdamW", {"fused": True}, True),
        ("Adam", {}, True),
        ("RMSprop", {}, True),
        ("RMSprop", {"foreach": False}, False),
        ("SGD", {"fused": True}, True),
        ("SGD", {"momentum": 0.9}, False),
        ("Adafactor", {}, False),
        ("Muon", {}, False),
    ],
)
def test_what_a_graph_can_hold(name: str, options: dict[str, Any], right: bool) -> None:
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.zeros(2, 2))], **options)
    assert capturable(optimizer) is right


@pytest.mark.parametrize(
    ("asked", "device", "name", "anomalies", "form"),
    [
        ("auto", "cuda", "AdamW", False, "graph"),
        ("auto", "cuda", "Adafactor", False, "eager"),
        ("auto", "cuda", "AdamW", True, "eager"),
        ("auto", "cpu", "AdamW", False, "eager"),
        ("auto", "mps", "AdamW", False, "eager"),
        ("graph", "cuda", "AdamW", False, "graph"),
        ("graph", "cuda", "Adafactor", False, "Adafactor"),
        ("graph", "cuda", "AdamW", True, "detect_anomaly"),
        ("graph", "mps", "AdamW", False, "needs CUDA"),
        ("compiled_graph", "cuda", "AdamW", False, "compiled_graph"),
        ("compiled_graph", "cpu", "AdamW", False, "needs CUDA"),
        ("compile", "cpu", "Adafactor", False, "compile"),
        ("eager", "cuda", "AdamW", False, "eager"),
    ],
)
def test_what_is_asked_for(asked: str, device: str, name: str, anomalies: bool, form: str) -> None:
    config = TrainerConfig(accelerator="auto", step=asked, detect_anomaly=anomalies)
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.zeros(2, 2))])
    if form in ("eager", "compile", "graph", "compiled_graph"):
        assert resolve_step(config, torch.device(device), optimizer) == form
    else:
        with pytest.raises(InputError, match=f"trainer.step={asked} .*{form}"):
            resolve_step(config, torch.device(device), optimizer)


def test_a_graph_without_cuda(command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = command("train", "trainer=cpu", "trainer.step=graph", f"runs={tmp_path}")
    refused(outcome, "trainer.step=graph needs CUDA", "cpu", "trainer.step=eager")
    assert not list(tmp_path.iterdir())


def test_autocast_keeps_no_weights_within_a_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture relies on: a weight cast once, outside the graph, would be used for ever."""
    cached = []
    forward = nn.Conv2d.forward

    def look(self: nn.Conv2d, maps: Tensor) -> Tensor:
        if self.training:
            cached.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return forward(self, maps)

    monkeypatch.setattr(nn.Conv2d, "forward", look)
    train("model.kernels=torch", "recipe.precision=bf16", "recipe.epochs=1", "trainer.limit_batches=1")
    assert set(cached) == {(True, False)}


@pytest.mark.parametrize("model", ["airbench", "baseline", "tiny"])
def test_a_compiled_network_is_one_graph(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in torch 2.11, where an nn.Sequential's own `compile()` compiles its parts at best."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    net = build(model, (1, 16, 16), 10, **SLIM.get(model, {}))
    names = set(net.state_dict())
    compile_network(net)
    images = torch.randn(4, 1, 16, 16)
    copy.deepcopy(net)(images)
    assert counter.frame_count == 0
    net(images)
    assert counter.frame_count == 1
    assert set(net.state_dict()) == names


@pytest.mark.slow
def test_a_compiled_network_trains_alike(train: Train) -> None:
    """To the eager weights, but for rounding, and to checkpoints that know nothing of it."""
    # torch compiles its own kernels
    arguments = ["model=tiny", "model.kernels=torch", *ODD, "recipe.epochs=1", "recipe.precision=fp32"]
    eager, compiled = (train(*arguments, f"trainer.step={form}") for form in ("eager", "compile"))
    assert result(compiled)["step"] == "compile"
    one, other = weights(eager), weights(compiled)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-3, atol=1e-4)
    assert result(compiled)["test_loss"] == pytest.approx(result(eager)["test_loss"], rel=1e-3)
    checkpoint = compiled / "checkpoints/last.ckpt"
    loaded = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    assert loaded(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


@pytest.fixture
def train_on_gpu(command: Callable[..., Outcome], tmp_path: Path) -> Train:
    """Trains with `train.py` on the GPU, with algorithms that give the same bits each time: the run's directory."""

    def run(*arguments: object) -> Path:
        before = set(tmp_path.glob("*/*/*"))
        outcome = command("train", "trainer=gpu", "trainer.deterministic=true", f"runs={tmp_path}", *arguments)
        assert outcome.status == 0, outcome.err
        (made,) = set(tmp_path.glob("*/*/*")) - before
        return made

    return run


def close(one: Path, other: Path) -> None:
    """Asserts that two runs ended with weights that differ by roundings of the learning rate, and drew alike."""
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-2, atol=1e-3)
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["ImageData"] for run in (one, other)]
    assert torch.equal(states[0]["generator"].cpu(), states[1]["generator"].cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["separable", "resnet"])
@pytest.mark.parametrize(
    "optimizer", [[], ["recipe=keras"], ["recipe.optimizer.name=SGD", "~recipe.optimizer.betas"], ["recipe=muon"]]
)
def test_a_graph_trains_to_the_weights_of_eager_steps(train_on_gpu: Train, model: str, optimizer: list[str]) -> None:
    arguments = [f"model={model}", *optimizer, *ODD, "recipe.epochs=2", "recipe.precision=fp32"]
    eager, graph, auto = (train_on_gpu(*arguments, f"trainer.step={form}") for form in ("eager", "graph", "auto"))
    close(eager, graph)
    assert identical(weights(graph), weights(auto))
    assert [result(run)["step"] for run in (eager, graph, auto)] == ["eager", "graph", "graph"]


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["fast", "keras"])
def test_a_graph_after_a_resume(
    train_on_gpu: Train, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Bit for bit as if it had never stopped; and resumed with eager steps, close to that."""
    arguments = [*ODD, f"recipe={recipe}", "recipe.epochs=3", "recipe.precision=fp32", "trainer.step=graph",
                 "trainer.checkpoint_seconds=0"]  # fmt: skip
    whole = train_on_gpu(*arguments)
    training_step = ImageClassifier.training_step

    def stopping(self: ImageClassifier, rows: Tensor, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == (1, 7):
            raise RuntimeError("the power went")
        return training_step(self, rows, batch_idx)

    for form in ("graph", "eager"):
        before = set(whole.parent.glob("*/config.yaml"))
        with monkeypatch.context() as patch:
            patch.setattr(ImageClassifier, "training_step", stopping)
            with pytest.raises(RuntimeError, match="the power went"):
                train_on_gpu(*arguments)
        (stopped,) = {path.parent for path in set(whole.parent.glob("*/config.yaml")) - before}
        trainer = ["trainer=gpu", "trainer.deterministic=true", f"trainer.step={form}"]
        outcome = command("train", f"resume={stopped}", *trainer)
        assert outcome.status == 0, outcome.err
        if form == "graph":
            assert identical(weights(stopped), weights(whole))
        close(stopped, whole)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["fast", "keras", "muon"])
def test_replayed_steps_never_wait_for_the_device(
    train_on_gpu: Train, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    perform, watched = TrainingStep.__call__, []

    def watch(self: TrainingStep, rows: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.perform, CapturedStep)
        if self.perform.replay is None:  # the capture waits
            return perform(self, rows)
        watched.append(len(rows))
        torch.cuda.set_sync_debug_mode("error")
        try:
            return perform(self, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainingStep, "__call__", watch)
    options = [*ODD, "recipe.batch_size=128", "recipe.epochs=1", "recipe.augment.flip=true"]
    train_on_gpu(f"recipe={recipe}", *options, "recipe.augment.alternate=true", "trainer.step=graph")
    assert watched == [128] * (10 - WARM_UP - 1) + [14]  # an epoch's last batch too
