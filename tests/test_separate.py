"""Separated convolutions, and the command from a trained run to a separated one."""

import copy
import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome, data_config, refused, script
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sepconv import InputError, Stopped
from sepconv.costs import counting
from sepconv.data.datasets import load
from sepconv.networks import build, lowrank
from sepconv.networks.cpu import DepthwiseConv2d
from sepconv.networks.lowrank import METHODS, Decomposition, find_separable, full_rank, make_factors
from sepconv.study import separation_report
from sepconv.study.separate import Original, Row, choose_places, last_above
from sepconv.training.classifier import ImageClassifier
from sepconv.training.whitening import find_stem

Command = Callable[..., Outcome]


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Dense and depthwise convolutions in float64 of any geometry, with weights of their own."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(*[st.integers(low, high)] * 2))

    torch.manual_seed(draw(st.integers(0, 9)))
    inputs, factor = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, inputs]))
    stride, padding = pair(1, 3), draw(st.sampled_from(["same", "valid", None]))
    if padding == "same":
        stride = (1, 1)
    return nn.Conv2d(
        inputs, inputs * factor, pair(1, 5), stride, padding or pair(0, 3), pair(1, 2), groups, draw(st.booleans()),
        draw(st.sampled_from(["zeros", "circular"])), dtype=torch.double,
    )  # fmt: skip


def weight_of(net: nn.Module, conv: nn.Conv2d) -> Tensor:
    """The weight (C_out, C_in / groups, K, K) of the one convolution that layers in `conv`'s place compute, by
    their answers to every image with one pixel set."""
    height, width = conv.kernel_size
    pixels = torch.eye(conv.in_channels * height * width, dtype=torch.double)
    with torch.no_grad():
        answers = net(pixels.view(-1, conv.in_channels, height, width))[..., 0, 0]
    dense = answers.T.view(conv.out_channels, conv.in_channels, height, width)
    if conv.groups == 1:
        return dense
    own = torch.arange(conv.out_channels) // (conv.out_channels // conv.in_channels)
    return dense[torch.arange(conv.out_channels), own][:, None]


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=30)
@given(conv=convolutions(), data=st.data())
def test_full_rank_is_exact(method: str, conv: nn.Conv2d, data: st.DataObject) -> None:
    assume(find_separable(conv, method))
    images = torch.randn(2, conv.in_channels, 11, 12, dtype=torch.double)
    decomposition = Decomposition(conv, method)
    parts = decomposition.factors(decomposition.full)
    steps = copy.deepcopy(parts)
    steps.stepwise = True
    assert decomposition.full == full_rank(conv, method)
    assert decomposition.error(decomposition.full) == 0
    with torch.no_grad():
        torch.testing.assert_close(parts(images), conv(images), rtol=0, atol=1e-11)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lowrank, "MOST_MAPS", 1)  # an image at a time
            torch.testing.assert_close(steps(images), conv(images), rtol=0, atol=1e-11)
    assert (parts[-1].bias is None) == (conv.bias is None)
    rank = data.draw(st.integers(1, decomposition.full))
    approximated = decomposition.factors(rank)(images)
    with torch.no_grad():
        conv.weight.copy_(decomposition.weight(rank))  # the same as one kernel
        torch.testing.assert_close(approximated, conv(images), rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("depthwise", [False, True])
def test_errors_are_the_discarded_singular_values(method: str, depthwise: bool, multiplier: int) -> None:
    """The weights that the layers compute are as far off as the best of that rank can be, and less so as it rises."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4 * multiplier, (3, 4), groups=4 if depthwise else 1, bias=False).double()
    weight = conv.weight.detach()
    if method == "spatial":
        matrices = list(weight.flatten(0, 1))
    elif method == "depthwise":
        outputs = weight.chunk(4) if depthwise else weight.split(1, dim=1)  # those of each input channel
        matrices = [part.reshape(-1, 12) for part in outputs]
    else:  # rows: input channel and row of the kernel; columns: output channel and column of the kernel
        groups = weight.chunk(conv.groups)
        matrices = [torch.cat([torch.cat(list(kernels), 0) for kernels in part], 1) for part in groups]
    assert len({min(matrix.shape) for matrix in matrices}) == 1
    if method == "depthwise" and depthwise and multiplier == 1:
        assert not find_separable(conv, method)
        return
    decomposition = Decomposition(conv, method)
    errors = []
    for rank in range(1, decomposition.full + 1):
        change = weight_of(decomposition.factors(rank), conv) - weight
        least = sum(float(torch.linalg.svdvals(matrix)[rank:].square().sum()) for matrix in matrices)
        errors.append(float(change.square().sum()))
        assert errors[-1] == pytest.approx(least, abs=1e-12)
        assert errors[-1] == pytest.approx(decomposition.error(rank), abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert decomposition.error(0) == pytest.approx(float(weight.square().sum()))


@pytest.mark.parametrize("groups", [1, 6])
def test_kernels_of_rank_one_separate_exactly(groups: int) -> None:
    """K = a·bᵀ: one K x K convolution is a K x 1 and a 1 x K one."""
    conv = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=groups).double()
    column, row = (torch.randn(6, 6 // groups, *side, dtype=torch.double) for side in ((5, 1), (1, 5)))
    conv.weight.data = column * row
    images = torch.randn(3, 6, 17, 14, dtype=torch.double)
    parts = Decomposition(conv, "spatial").factors(1)
    assert [part.kernel_size for part in parts if isinstance(part, nn.Conv2d)] == [(5, 1), (1, 5)]
    torch.testing.assert_close(parts(images), conv(images), rtol=0, atol=1e-12)


def test_kernel_wise_layers_learn_alike() -> None:
    """As one convolution and step by step: outputs and all gradients."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)).double()
    layers = Decomposition(conv, "spatial").factors(2)
    steps = copy.deepcopy(layers)
    steps.stepwise = True
    images = torch.randn(2, 3, 12, 14, dtype=torch.double)
    gradients = []
    for net in (layers, steps):
        inputs = images.clone().requires_grad_()
        net(inputs).square().sum().backward()
        gradients.append([inputs.grad, *(parameter.grad for parameter in net.parameters())])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    assert layers.state_dict().keys() == {"vertical.weight", "horizontal.weight", "horizontal.bias"}


def test_depthwise_separable_convolution_is_found_again() -> None:
    """The dense convolution equal to a depthwise and a pointwise one separates into one such pair."""
    conv = nn.Conv2d(5, 7, 3, padding=1).double()
    depthwise, pointwise = torch.randn(5, 3, 3, dtype=torch.double), torch.randn(7, 5, dtype=torch.double)
    conv.weight.data = torch.einsum("oi,ikl->oikl", pointwise, depthwise)
    images = torch.randn(3, 5, 9, 9, dtype=torch.double)
    parts = Decomposition(conv, "depthwise").factors(1)
    assert [type(part) for part in parts] == [DepthwiseConv2d, nn.Conv2d]
    torch.testing.assert_close(parts(images), conv(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "macs"),
    [("spatial", 2 * 3 * 8 * 16), ("spatial_joint", 3 * (8 + 16)), ("depthwise", (9 + 16) * 8)],
)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_costs_are_those_stated(method: str, macs: int, rank: int) -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    parts = make_factors(conv, method, rank)
    assert counting.parameters(parts) == macs * rank
    assert counting.macs(parts, (8, 10, 12)) == macs * rank * 10 * 12


def test_what_is_separated() -> None:
    net = nn.ModuleDict(
        {
            "dense": nn.Conv2d(4, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "multiplied": nn.Conv2d(8, 16, 3, groups=8),
            "pointwise": nn.Conv2d(8, 4, 1),
            "column": nn.Conv2d(4, 4, (3, 1)),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
        }
    )
    assert list(find_separable(net, "spatial")) == ["dense", "depthwise", "multiplied"]
    assert list(find_separable(net, "spatial_joint")) == ["dense", "depthwise", "multiplied"]
    assert list(find_separable(net, "depthwise")) == ["dense", "multiplied", "column"]


def test_separated_networks_are_built_from_plain_values() -> None:
    """And are networks: they can be separated again."""
    once = {"base": {"name": "baseline"}, "method": "depthwise", "ranks": {"conv2.conv": 4}}
    net = build("separated", (1, 28, 28), 10, **once)
    assert counting.parameters(net) == 121_930 - 9 * 32 * 64 + 4 * 32 * (9 + 64)
    assert counting.macs(net, (1, 28, 28)) == 2_528_000 - 121 * (9 * 32 * 64 - 4 * 32 * (9 + 64))
    assert list(find_separable(net, "spatial")) == ["conv1.conv", "conv2.conv.depthwise"]
    ranks = {"conv2.conv.depthwise": 1}
    twice = build("separated", (1, 28, 28), 10, base={"name": "separated", **once}, method="spatial", ranks=ranks)
    assert counting.macs(net, (1, 28, 28)) > counting.macs(twice, (1, 28, 28))
    for ranks, words in (
        ({"conv2.conv": 10}, r"model.ranks.conv2.conv=10 is out of range: 1 to 9"),
        ({"conv2.conv": 0}, r"model.ranks.conv2.conv=0 is out of range: 1 to 9"),
        ({"7": 1}, r"unknown model.ranks.7: depthwise separates conv1.conv, conv2.conv"),
    ):
        with pytest.raises(InputError, match=words):
            build("separated", (1, 28, 28), 10, **{**once, "ranks": ranks})
    with pytest.raises(InputError, match=r"unknown model.method=diagonal: choose from spatial"):
        build("separated", (1, 28, 28), 10, **{**once, "method": "diagonal"})


def test_choice_of_places() -> None:
    assert choose_places(range(9, 0, -1), 9) == list(range(9))
    values = [100, 90, 80, 40, 30, 20, 11, 10, 9, 2, 1]
    assert [values[place] for place in choose_places(values, 3)] == [100, 10, 1]
    assert [values[place] for place in choose_places(values, 1)] == [1]
    assert choose_places(values, 0) == []


@pytest.mark.parametrize("measured", [[0], [0, 40, 80, 99], [0, 70, 71]])
def test_bisection_finds_the_last_that_reaches(measured: list[int]) -> None:
    calls = []

    def measure(place: int) -> Row:
        calls.append(place)
        return Row(
            ranks={}, weight_error=0, logit_error=0, logit_difference=0, parameters=0, macs=0, accuracy=1 - place / 100
        )

    assert last_above(0.295, measure, measured, 100) == 70
    assert len(set(calls)) <= 12
    assert last_above(1, measure, [0], 100) == 0
    assert last_above(0, measure, [0], 100) == 99


# The command, on a baseline network trained on digits


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a trained run."""
    folder = tmp_path_factory.mktemp("original")
    script("train", "trainer=cpu", "model=baseline", "recipe.epochs=12", "recipe.precision=fp32", f"runs={folder}")
    (run,) = folder.glob("digits/baseline/*")
    return run


@pytest.fixture
def separate(command: Command, original: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Separates the trained run, and gives the report, with the new runs in it."""

    def run(*arguments: object) -> dict[str, Any]:
        before = set(tmp_path.glob("digits/separated/*"))
        outcome = command("separate", f"run={original}", "trainer=cpu", f"runs={tmp_path}", *arguments)
        assert outcome.status == 0, outcome.err
        made = set(tmp_path.glob("digits/separated/*")) - before
        (path,) = (run for run in made if (run / "separation.json").exists())
        report = json.loads((path / "separation.json").read_text())
        assert made == {path, Path(report.get("finetuned_run", path))}
        return report | {"path": path, "out": outcome.out}

    return run


def result(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "result.json").read_text())


def logits(run: str | Path) -> Tensor:
    classifier = ImageClassifier.load_from_checkpoint(Path(run) / "checkpoints/best.ckpt", weights_only=True).eval()
    dataset = load(data_config("digits"))
    with torch.no_grad():
        return classifier(dataset[dataset.test][0])


@pytest.mark.parametrize(
    "method", [pytest.param(each, marks=[pytest.mark.slow] * (each != "depthwise")) for each in METHODS]
)
def test_sweep_to_full_rank(separate: Callable[..., dict[str, Any]], original: Path, method: str) -> None:
    full = {"spatial": 3, "spatial_joint": 96, "depthwise": 9}[method]
    report = separate(f"method={method}", f"rank={full}", "finetune_epochs=0", "sweep=9")
    assert (logits(report["path"]) - logits(original)).abs().max() < 1e-4
    rows = report["networks"]
    assert report["chosen"] == 1
    assert rows[0]["ranks"] == {}
    assert rows[0]["macs"] == result(original)["macs"]
    assert rows[1]["logit_difference"] < 1e-4
    assert rows[1]["accuracy"] == rows[0]["accuracy"] == result(original)["val_accuracy"]
    ranks = [row["ranks"]["conv2.conv"] for row in rows[1:]]
    assert ranks == sorted(ranks, reverse=True)
    assert (ranks[0], ranks[-1]) == (full, 1)
    assert len(ranks) == min(full, 9)
    for earlier, later in pairwise(rows[1:]):
        assert later["weight_error"] > earlier["weight_error"]
        assert later["macs"] < earlier["macs"]
        assert later["parameters"] < earlier["parameters"]
    assert rows[-1]["logit_error"] > rows[2]["logit_error"] > 0.01
    assert all(row["images_per_second"] > 0 for row in rows)
    with (report["path"] / "separation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in table] == [row["macs"] for row in rows]
    assert table[1]["ranks"] == f"conv1.conv:{rows[1]['ranks']['conv1.conv']} conv2.conv:{full}"
    assert (report["path"] / "separation.png").read_bytes().startswith(b"\x89PNG")
    assert f"{rows[1]['macs']:,}" in report["out"]


def test_from_separation_to_further_training(
    separate: Callable[..., dict[str, Any]], command: Command, original: Path, tmp_path: Path
) -> None:
    """train, separate, fine-tune; evaluation reproduces each; and training goes on from there."""
    damaged = tmp_path / "digits/separated/29990101-000000-seed0"  # another's, which is passed over
    damaged.mkdir(parents=True)
    (damaged / "config.yaml").write_text("{")
    report = separate("method=depthwise", "rank=2", "sweep=2", "finetune_epochs=2")
    path, finetuned = report["path"], Path(report["finetuned_run"])
    rank_two = report["networks"][report["chosen"]]
    assert rank_two["ranks"] == {"conv1.conv": 2, "conv2.conv": 2}
    assert [row["finetuned_accuracy"] is None for row in report["networks"]] == [False] * 4
    last = result(finetuned)["history"][-1]["val_accuracy"]  # of all networks here after the last epoch
    assert rank_two["finetuned_accuracy"] == last > rank_two["accuracy"]
    assert rank_two["accuracy"] == result(path)["val_accuracy"] > 0.2
    assert report["test_accuracy"] == {
        "original": result(original)["test_accuracy"],
        "separated": result(path)["test_accuracy"],
        "finetuned": result(finetuned)["test_accuracy"],
    }
    record = result(path)
    assert record.keys() == result(finetuned).keys()
    assert (record["separated_from"], result(finetuned)["separated_from"]) == (str(original), None)
    assert (record["model"], record["epochs"], result(finetuned)["epochs"]) == ("separated", 0, 2)
    assert record["macs"] == result(finetuned)["macs"] == rank_two["macs"]
    for run in (path, finetuned):
        for checkpoint in ("best", "last") if run == path else ("best",):
            outcome = command("evaluate", f"run={run}", f"checkpoint={checkpoint}", "trainer=cpu")
            assert outcome.status == 0, outcome.err
            assert outcome.out.count(f"{result(run)['test_accuracy']:.2%}") == 2
    # the fine-tuned run's own arguments make it again
    again = result(finetuned)["overrides"]
    assert f"weights={path}" in again
    assert command("train", *again).status == 0
    (repeated,) = set(tmp_path.glob("digits/separated/*")) - {path, finetuned, damaged}
    assert torch.equal(logits(repeated), logits(finetuned))
    # a separated network separates again
    outcome = command(
        "separate", f"run={finetuned}", "trainer=cpu", "method=spatial", "rank=1", "sweep=0", f"runs={tmp_path}"
    )
    assert outcome.status == 0, outcome.err


@pytest.mark.slow
def test_targets(separate: Callable[..., dict[str, Any]]) -> None:
    report = separate("method=spatial_joint", "macs=0.3", "sweep=4", "finetune_epochs=0")
    total, chosen = report["networks"][0], report["networks"][report["chosen"]]
    assert 0.2 < chosen["macs"] / total["macs"] <= 0.3
    assert len(report["networks"]) in (5, 6)
    report = separate("method=spatial_joint", "accuracy_drop=0.02", "sweep=4", "finetune_epochs=0")
    chosen = report["networks"][report["chosen"]]
    assert chosen["macs"] < total["macs"]
    assert chosen["accuracy"] >= total["accuracy"] - 0.02 - 1e-9
    cheaper = report["networks"][report["chosen"] + 1]
    assert cheaper["accuracy"] < total["accuracy"] - 0.02
    tuned = separate("method=spatial_joint", "accuracy_drop=0.02", "finetune_epochs=1")
    row = tuned["networks"][tuned["chosen"]]
    assert row["finetuned_accuracy"] >= total["accuracy"] - 0.02 - 1e-9
    assert row["macs"] < chosen["macs"]  # fine-tuning allows for more


def test_greedy_ranks_beat_uniform_ones(separate: Callable[..., dict[str, Any]]) -> None:
    uniform = separate("method=depthwise", "rank=3", "sweep=0", "finetune_epochs=0")
    rows = uniform["networks"]
    share = rows[1]["macs"] / rows[0]["macs"]
    greedy = separate("method=depthwise", f"macs={share}", "sweep=0", "finetune_epochs=0")["networks"][1]
    assert greedy["macs"] <= rows[1]["macs"]
    assert greedy["logit_error"] <= rows[1]["logit_error"]


@pytest.mark.parametrize(
    ("target", "owner", "method", "calls"),
    [
        pytest.param("accuracy_drop=0.1", Original, "measure", 2, marks=pytest.mark.slow),
        ("rank=2", ImageClassifier, "on_train_epoch_end", 0),
        pytest.param("rank=2", Original, "finetune", 1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_separation_goes_on(
    command: Command, original: Path, tmp_path: Path, target: str, owner: Any, method: str, calls: int
) -> None:
    """What was finished is used: nothing is measured or recorded twice."""
    arguments = [f"run={original}", "trainer=cpu", "method=depthwise", target, "sweep=2", "trainer.limit_batches=2"]
    measured: list[Any] = []
    stopping, work = [True], getattr(owner, method)

    def counted(*given: Any, **named: Any) -> Any:
        if stopping and len(measured) == calls:
            stopping.clear()
            raise Stopped(status=143)
        measured.append(str(given[1:]))
        return work(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, counted)
        outcome = command("separate", *arguments, f"runs={tmp_path}/runs")
        assert outcome.status == 143, outcome
        assert "the same command goes on" in outcome.err
        assert command("separate", *arguments, f"runs={tmp_path}/runs").status == 0
    assert len(set(measured)) == len(measured) or owner is not Original
    made = list(tmp_path.glob("runs/digits/separated/*"))
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/digits/separated/*/separation.json"))
    assert len(made) == 2
    assert Path(report["finetuned_run"]) in made
    assert report["complete"]
    assert len({str(row["ranks"]) for row in report["networks"]}) == len(report["networks"]) >= 3
    assert all(row["images_per_second"] for row in report["networks"])


def test_a_picture_that_fails_is_a_line(
    separate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(separation_report, "plot", lambda report: 1 / 0)
    report = separate("method=depthwise", "rank=2", "finetune_epochs=0")
    assert report["complete"]
    assert len(report["networks"]) == 2
    assert "separation.png could not be written (ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["give one of rank=, macs= and accuracy_drop="]),
        (["rank=2", "macs=0.5"], ["give one of rank="]),
        (["rank=0"], ["rank=0 is out of range: 1 to 9"]),
        (["rank=10"], ["rank=10 is out of range: 1 to 9"]),
        (["rank=97", "method=spatial_joint"], ["rank=97 is out of range: 1 to 96"]),
        (["rank=4", "method=spatial"], ["rank=4 is out of range: 1 to 3"]),
        (["rank=two"], ["rank", "two"]),
        (["macs=0"], ["macs=0", "above 0, below 1"]),
        (["macs=1.5"], ["macs=1.5", "above 0, below 1"]),
        (["macs=0.01"], ["macs=0.01 cannot be met", "leaves 0."]),
        (["accuracy_drop=-1"], ["accuracy_drop=-1", "0.001"]),
        (["rank=1", "method=diagonal"], ["unknown method=diagonal", "spatial_joint", "depthwise"]),
        (["rank=1", "finetune_epochs=-1"], ["finetune_epochs=-1"]),
        (["rank=1", "finetune_lr=0"], ["finetune_lr=0", "above 0"]),
        (["rank=1", "sweep=-1"], ["sweep=-1"]),
        (["rank=1", "runs=/dev/null/runs", "sweep=0", "finetune_epochs=0"], ["/dev/null/runs", "runs="]),
        (["rank=1", "ranks=3"], ["unknown key ranks", "did you mean rank?"]),
    ],
)
def test_bad_arguments(
    command: Command, original: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    runs = [] if any(argument.startswith("runs=") for argument in arguments) else [f"runs={tmp_path}"]
    refused(command("separate", f"run={original}", "trainer=cpu", *runs, *arguments), *words)
    assert not list(tmp_path.rglob("*seed*"))


def test_accuracy_that_cannot_be_kept(command: Command, original: Path, tmp_path: Path) -> None:
    """By kernels alone even the least that saves MACs changes too much."""
    outcome = command(
        "separate", f"run={original}", "trainer=cpu", "method=spatial", "accuracy_drop=0", "sweep=0",
        "finetune_epochs=0", f"runs={tmp_path}",
    )  # fmt: skip
    refused(outcome, "accuracy_drop=0.0 cannot be met", "method=spatial comes to")


def test_no_run_and_nothing_to_separate(command: Command, tmp_path: Path, original: Path) -> None:
    refused(command("separate", f"run={tmp_path}", "rank=1"), "is no run")
    refused(command("separate", "rank=1"), "run is missing")
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    shutil.rmtree(copy / "checkpoints")
    refused(command("separate", f"run={copy}", "rank=1"), "no checkpoint best.ckpt")


# Training from another run's weights


def test_training_starts_from_the_weights(command: Command, original: Path, tmp_path: Path) -> None:
    """With steps too small to change anything, what comes out is what went in; pixels are normalised as they were."""
    for recipe in ("fast", "keras"):
        outcome = command(
            "train", f"weights={original}", "trainer=cpu", f"recipe={recipe}", "recipe.precision=fp32",
            "recipe.epochs=1", "recipe.optimizer.lr=1e-12", "trainer.limit_batches=2", f"runs={tmp_path}/{recipe}",
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        (run,) = tmp_path.glob(f"{recipe}/digits/baseline/*")
        torch.testing.assert_close(logits(run), logits(original), rtol=0, atol=1e-4)


def test_separated_layers_that_are_used_again(command: Command, tmp_path: Path) -> None:
    """Every use of a shared convolution is separated, with the same filters, and counted."""
    model = ["model=tiny", "model.conv=dense", "model.form=unpadded", "data.image_size=20"]
    short = ["trainer=cpu", f"runs={tmp_path}", "recipe.epochs=1", "trainer.limit_batches=2"]
    assert command("train", *model, *short).status == 0
    (run,) = tmp_path.glob("digits/tiny/*")
    outcome = command("separate", f"run={run}", "method=depthwise", "rank=2", "finetune_epochs=0", f"runs={tmp_path}/s")
    assert outcome.status == 0, outcome.err
    (made,) = tmp_path.glob("s/digits/separated/*")
    classifier = ImageClassifier.load_from_checkpoint(made / "checkpoints/best.ckpt", weights_only=True)
    places = dict(classifier.net.named_modules(remove_duplicate=False))
    kernels = [conv for conv in places.values() if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1]
    assert all(conv.groups == conv.in_channels for conv in kernels)
    assert len(set(kernels)) == len(kernels) - 2  # one of two uses in each of two stages
    record = result(made)
    assert record["macs"] == counting.macs(classifier.net, (1, 20, 20))
    report = json.loads((made / "separation.json").read_text())
    assert report["networks"][report["chosen"]]["macs"] == record["macs"]
    assert report["networks"][report["chosen"]]["parameters"] == record["parameters"]


def test_stopped_training_from_weights_resumes(
    command: Command, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its own checkpoint, even where the run that the weights came from is gone."""
    gone = tmp_path / "gone"
    shutil.copytree(original, gone)

    def interrupt(self: ImageClassifier) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_end", interrupt)
        arguments = ["trainer=cpu", "recipe.epochs=3", "trainer.limit_batches=2", "data.train=400"]
        arguments.append(f"runs={tmp_path}/runs")
        assert command("train", f"weights={gone}", *arguments).status == 130
    (run,) = tmp_path.glob("runs/digits/baseline/*")
    between = shutil.copytree(run, tmp_path / "between")  # stopped after its first best.ckpt, before its last.ckpt
    (between / "checkpoints/last.ckpt").unlink()
    outcome = command("train", f"resume={between}")
    assert outcome.status == 0, outcome.err
    shutil.rmtree(gone)
    outcome = command("train", f"resume={run}")
    assert outcome.status == 0, outcome.err
    assert result(run)["epochs"] == 3
    known = [
        ImageClassifier.load_from_checkpoint(folder / "checkpoints/last.ckpt", weights_only=True).hparams["images"]
        for folder in (original, run)
    ]
    for key in ("mean", "deviation"):
        assert known[0][key] == known[1][key]  # not that of the part of the data that this run trains on


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.image_size=20"], ["16 x 16 x 1 images of 10 classes", "20 x 20 x 1"]),
        (["model=separable"], ["comes with model={'name': 'baseline'", "drop model=separable"]),
        (["experiment=separable_mnist", "data=digits"], ["comes with model=", "drop experiment=separable_mnist"]),
        (["recipe.normalize=unit"], ["comes with recipe.normalize=standardize", "drop recipe.normalize=unit"]),
        (["recipe.whiten=0.5"], ["comes with a trained first convolution", "give recipe.whiten=0"]),
        (["resume="], ["drop weights="]),
    ],
)
def test_weights_that_do_not_fit(
    command: Command, original: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    runs = [f"runs={tmp_path}"]
    if arguments == ["resume="]:
        runs, arguments = [], [f"resume={original}"]
    refused(command("train", f"weights={original}", *runs, *arguments), *words)
    assert not list(tmp_path.rglob("*seed*"))
    refused(command("train", f"weights={tmp_path}", *runs), "is no run")


def test_weights_of_other_code(original: Path, tmp_path: Path, command: Command) -> None:
    """A network that was made of other layers at another commit is refused in a line."""
    run = tmp_path / "run"
    shutil.copytree(original, run)
    path = run / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.99.weight"] = checkpoint["state_dict"].pop("net.conv1.conv.weight")
    torch.save(checkpoint, path)
    refused(command("evaluate", f"run={run}"), "best.ckpt was made by other code", "code.yaml")


def test_what_is_not_trained_is_not_separated() -> None:
    net = build("baseline", (1, 16, 16), 10)
    assert [len(find_separable(net, method)) for method in METHODS] == [2, 2, 2]
    find_stem(net).requires_grad_(False)
    assert [list(find_separable(net, method)) for method in METHODS] == [["conv2.conv"]] * 3


def test_agreeing_model_may_be_given(command: Command, original: Path, tmp_path: Path) -> None:
    arguments = ["model=baseline", "trainer=cpu", "recipe.epochs=1", "trainer.limit_batches=1", f"runs={tmp_path}"]
    outcome = command("train", f"weights={original}", *arguments)
    assert outcome.status == 0, outcome.err
