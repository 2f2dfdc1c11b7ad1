"""The search: what it draws and trains, that it goes on, and what it writes. Trainings are made up, but for one."""

import csv
import io
import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REAL_DATA, REPOSITORY, Outcome, refused
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from recorded import Ended, figures, write_predictions, write_run

from sepconv import Stopped
from sepconv.config.keys import TrainConfig
from sepconv.config.read import complete, read
from sepconv.networks import build
from sepconv.study.search import budget, space
from sepconv.study.search.budget import Budget, count
from sepconv.study.search.report import Findings, describe, errors
from sepconv.study.trainings import Process, Trainings
from sepconv.terminal import Progress
from sepconv.training import runs
from sepconv.training.runs import fingerprint

optuna = pytest.importorskip("optuna")

from sepconv.study.search.trials import Queue, Rung, Storage, Trained, betters, make_sampler, rank  # noqa: E402

Command = Callable[..., Outcome]
TABLE = REAL_DATA / "nas-bench-macro_cifar10.json"
MODEL = {
    "name": "staged", "stem": 16, "stem_stride": 2, "conv": "separable", "residual": True, "activation": "relu",
    "stages": [{"channels": 16, "kernel_size": 3},
               {"channels": 24, "blocks": 2, "stride": 2, "kernel_size": 5, "expansion": 3, "squeeze": True}],
}  # fmt: skip


def network(number: int, accuracy: float, parameters: float, conv: str = "separable") -> Trained:
    costs = {"parameters": parameters, "macs": 100.0}
    return Trained(number=number, model=MODEL | {"conv": conv}, costs=costs, epochs=3, seed=0, accuracy=accuracy)


@pytest.mark.parametrize("limits", [{"parameters": 20_000.0}, {"macs": 6e6, "peak_bytes": 40_000.0}])
def test_networks_are_as_wide_as_the_budget_admits(limits: dict[str, float]) -> None:
    """Those that break it are as narrow as can be, and the others fill some of it; all can be built."""
    allowed, shape = Budget(limits), (3, 32, 32)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(0))
    shares = []
    for _ in range(6):
        trial = study.ask()
        model = complete(space.draw(trial, shape, lambda m: 1 + max(allowed.excess(count(m, shape, 10)).values())))
        shares.append(1 + max(allowed.excess(count(model, shape, 10)).values()))
        assert shares[-1] <= 1 or model["stem"] == 4
        assert build(shape=shape, classes=10, **model)
        study.tell(trial, 0.0)
    assert sum(0.25 < share <= 1 for share in shares) >= 2, shares


def test_width_without_a_budget_that_can_be_counted() -> None:
    trial = optuna.trial.FixedTrial({
        "stem_stride": 1, "conv": "dense", "residual": 0, "activation": 1, "resolution": 1, "depthwise_first": 1,
        "width": 0.5,
        **{f"{name}{stage}": value for stage in range(4) for name, value in
           {"blocks": int(stage < 2), "growth": 1, "stride": 1, "kernel_size": 1, "expansion": 0,
            "squeeze": 1}.items()},
    })  # fmt: skip
    assert space.draw(trial, (3, 64, 64), None) == {
        "name": "staged", "stem": 8, "stem_stride": 2, "conv": "dense", "residual": False, "activation": "hardswish",
        "resolution": 1.0,
        "stages": [{"channels": 12, "blocks": 1, "stride": 2, "kernel_size": 5},
                   {"channels": 16, "blocks": 1, "stride": 2, "kernel_size": 5}],
    }  # fmt: skip
    assert space.draw(trial, (3, 224, 224), None)["stem_stride"] == 4


def test_widest() -> None:
    for most in (0.1, 0.5, 3.0):
        width = space.widest(lambda width: width**2, most)
        assert width**2 <= most
        assert width == space.WIDTHS[-1] or space.WIDTHS[space.WIDTHS.index(width) + 1] ** 2 > most
    assert space.widest(lambda _: 9.0, 1.0) == space.WIDTHS[0]
    assert [space.divisible(channels) for channels in (0.3, 9, 31, 35, 77)] == [4, 8, 32, 32, 80]


def test_costs_are_those_of_the_network() -> None:
    """Of the reference of MLPerf Tiny: its known MACs and bytes of maps."""
    found = count({"name": "resnet", "form": "mlperf_tiny", "depth": 8}, (3, 32, 32), 10)
    assert found == {"parameters": 78_186, "macs": 12_501_632, "peak_bytes": 49_152}
    excess = Budget({"macs": 12.5e6, "latency_ms": 2.0}).excess(found)
    assert excess == {"macs": pytest.approx(12_501_632 / 12.5e6 - 1)}


def test_a_network_without_errors_has_a_place_on_a_logarithmic_axis() -> None:
    assert errors([network(0, 1.0, 10), network(1, 0.75, 10)]) == [0.01, 25.0]


def test_networks_in_a_line() -> None:
    assert describe(complete(MODEL)) == "separable 16/2, 16, 24 x 2/2 k5 e3 se"
    first = complete({"name": "staged", "stages": [MODEL["stages"][0] | {"expansion": 2.5, "depthwise_first": True}]})
    assert describe(first) == "separable 32/2, 16 e2.5 df"


def test_order() -> None:
    """By accuracy; with a cost to minimize, first all those that no other betters in both."""
    good, small, worse, bad = (network(*each) for each in ((0, 0.9, 100), (1, 0.7, 10), (2, 0.8, 120), (3, 0.6, 50)))
    assert rank([bad, small, worse, good], []) == [good, worse, small, bad]
    assert rank([bad, small, worse, good], ["parameters"]) == [good, small, worse, bad]
    assert betters(good, worse, ["parameters"])
    assert not betters(small, good, ["parameters"])
    assert not betters(good, good, ["parameters", "macs"])


class Lab:
    """Trainings that are made up at once: more parameters are better, and the epochs and seeds count a little."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[TrainConfig, list[str]]] = []
        self.errors, self.stop_at, self.fails_at, self.draws = b"", 0, set[int](), False
        draw = Findings.draw
        monkeypatch.setattr(Findings, "draw", lambda findings: draw(findings) if self.draws else Figure())
        monkeypatch.setattr(Trainings, "begin", lambda trainings, *each: self.begin(trainings, *each))
        monkeypatch.setattr(runs, "hash_code", lambda code: code["sha"])
        monkeypatch.setattr("sepconv.study.search.POLL", 0)
        monkeypatch.setattr(space, "STAGES", 2)
        monkeypatch.setattr(space, "BLOCKS", 1)

    def begin(self, trainings: Trainings, config: TrainConfig, arguments: list[str]) -> Process:
        self.begun.append((config, arguments))
        if len(self.begun) == self.stop_at:
            raise Stopped(status=143)
        if not self.errors and len(self.begun) not in self.fails_at:
            costs = count(config.model, (1, 16, 16), 10)
            accuracy = 0.5 + costs["parameters"] / 20_000 + config.recipe.epochs / 1000 + config.seed / 1e4
            made = figures("separable", config.seed, round(accuracy, 3))
            made["images"]["test"] = 1000
            path = trainings.folder / "digits/staged" / str(len(self.begun))
            run = write_run(path, asdict(config), arguments)
            write_predictions(run, list(range(round(1000 * (1 - made["test_accuracy"])))), [0] * 1000)
            made |= {"model": "staged", "data": "digits", "git": runs.current_code(), "digests": trainings.digests}
            (run / "result.json").write_text(json.dumps(made))
        return Process(Ended(2 if self.errors else 0), io.BytesIO(self.errors))  # type: ignore[arg-type]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(monkeypatch)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return ["data=digits", "trainer=cpu", "parameters=4000", "trials=5", "rungs=[1,2]", "keep=0.4", "winners=1",
            "recipe/optimizer=adam", "recipe.epochs=6", "+recipe.optimizer.weight_decay=0.1",
            "+recipe.optimizer.amsgrad=true", "seeds=[1,2]", "jobs=1", f"output={tmp_path}/found"]  # fmt: skip


def records(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_are_trained_longer(command: Command, lab: Lab, arguments: list[str], tmp_path: Path) -> None:
    """Two of five, then the winner in full with new seeds; nothing above the budget is trained."""
    lab.draws = True
    outcome = command("search", *arguments)
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "found"
    found = records(folder)
    lengths = [(row["epochs"], row["seed"]) for row in found]
    assert lengths == [("1", "0")] * 5 + [("2", "0")] * 2 + [("6", "1"), ("6", "2")]
    assert all(int(row["parameters"]) <= 4000 for row in found)
    first = sorted(found[:5], key=lambda row: -float(row["validation"]))
    assert [row["network"] for row in found[5:7]] == [row["network"] for row in first[:2]]
    assert {row["network"] for row in found[7:]} == {first[0]["network"]}

    # the experiment trains just what the winner was trained on, and says what it came to
    path = folder / "configs/experiment/digits_1.yaml"
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        composed = compose(
            "train", [f"hydra.searchpath=[file://{folder}/configs]", "experiment=digits_1", "trainer=cpu"]
        )
        assert fingerprint(read(TrainConfig, composed)) == fingerprint(lab.begun[-1][0])
        for config, given in lab.begun:  # and what was asked of train.py is what it is taken for
            assert fingerprint(read(TrainConfig, compose("train", given))) == fingerprint(config)
    text = path.read_text()
    mean = statistics.fmean(float(row["validation"]) for row in found[7:])
    assert f"# Validation accuracy {mean:.2%}"[:-1] in text
    assert "test accuracy" in text
    assert f"# {int(found[7]['parameters']):,} parameters" in text

    page = (folder / "search.html").read_text()
    assert "<svg" in page
    assert "at most 4,000 parameters" in page
    assert "The winner is " in page
    assert page.count("test accuracy") == 1

    # asked again, nothing is trained; with more trials, some are, and what is better now is trained longer
    begun = len(lab.begun)
    assert command("search", *arguments).status == 0
    assert len(lab.begun) == begun
    assert records(folder) == found
    assert command("search", *arguments, "trials=8").status == 0
    more = records(folder)
    assert [row["epochs"] for row in more].count("1") == 8
    longer = {row["network"] for row in more if row["epochs"] == "2"}
    assert longer >= {row["network"] for row in sorted(more[:8], key=lambda row: -float(row["validation"]))[:4]}


def test_a_stopped_search_goes_on(command: Command, lab: Lab, arguments: list[str], tmp_path: Path) -> None:
    """In whatever length of training it was; what was begun is begun again, with what was drawn."""
    for place in (3, 8, 11):
        lab.stop_at = place
        outcome = command("search", *arguments)
        assert outcome.status == 143, outcome
        assert "what is finished is kept" in outcome.err
    lab.stop_at = 0
    assert command("search", *arguments).status == 0
    assert len(records(tmp_path / "found")) == 9
    assert len(lab.begun) == 9 + 3
    for place in (2, 7, 10):
        assert lab.begun[place][0] == lab.begun[place + 1][0]


def test_costs_to_minimize_and_latency(
    command: Command, lab: Lab, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A latency is measured of what is within the rest of the budget; one above its own is not trained."""
    measured: Iterator[float] = iter([3.0, *[1.5] * 50])
    monkeypatch.setattr("sepconv.study.search.measure_latency", lambda _: next(measured))
    options = ["latency_ms=2", "minimize=[macs]", "winners=2", "trials=3", "rungs=[1]", "kinds=[dense]"]
    outcome = command("search", *arguments, *options)
    assert outcome.status == 0, outcome.err
    found = records(tmp_path / "found")
    assert {row["latency_ms"] for row in found} == {"1.5"}
    assert {json.loads(row["model"])["conv"] for row in found} == {"dense"}
    page = (tmp_path / "found/search.html").read_text()
    assert "at most 2 ms an image" in page
    winners = {row["network"] for row in found[3:]}
    assert len(winners) == 2
    study = optuna.load_study(study_name="drawn", storage=f"sqlite:///{tmp_path}/found/search.db")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    refusals = [trial for trial in study.trials if trial.values[0] == 0]
    assert any(trial.constraints.get("latency_ms") == 0.5 for trial in refusals)


def test_a_latency_to_minimize_needs_no_limit(
    command: Command, lab: Lab, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepconv.study.search.measure_latency", lambda _: 1.5)
    outcome = command("search", *arguments, "minimize=[latency_ms]", "trials=2", "rungs=[1]")
    assert outcome.status == 0, outcome.err
    assert [row["latency_ms"] for row in records(tmp_path / "found")] == ["1.5"] * 4


def test_a_search_that_is_given_again_with_less(
    command: Command, lab: Lab, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer trials than were begun, fewer seeds than were trained; and runs that are gone."""

    def reach(progress: Progress, done: int, detail: str = "") -> None:
        assert not detail.startswith("waiting")

    monkeypatch.setattr(Progress, "reach", reach)
    lab.stop_at = 3
    assert command("search", *arguments, "rungs=[1]").status == 143
    outcome = command("search", *arguments, "rungs=[1]", "trials=2", "seeds=[1,2,3]")
    assert outcome.status == 0, outcome.err
    begun = len(lab.begun)
    path = tmp_path / "found/configs/experiment/digits_1.yaml"
    assert "n = 3 (seeds 1, 2, 3), 6 epochs; test accuracy" in path.read_text()
    outcome = command("search", *arguments, "rungs=[1]", "trials=2", "seeds=[1,2]")
    assert outcome.status == 0, outcome.err
    assert len(lab.begun) == begun
    assert "n = 2 (seeds 1, 2), 6 epochs; test accuracy" in path.read_text()

    # another process has them: the test of the others alone is not the winner's
    shutil.rmtree(tmp_path / "found/runs/digits/staged" / str(begun - 1))
    assert command("search", *arguments, "rungs=[1]", "trials=2", "seeds=[1,2]").status == 0
    assert "n = 2 (seeds 1, 2), 6 epochs.\n" in path.read_text()

    before = runs.current_code()["sha"]
    monkeypatch.setattr(runs, "hash_code", lambda _: "other")
    refused(command("search", *arguments, "rungs=[1]"), "by other code, commit", str(before)[:12], "another output=")


def test_several_share_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has begun no other begins, unless it was its own process of before."""
    storage = Storage(f"sqlite:///{tmp_path}/shared.db", {"seed": 0}, ("code", "commit"))
    one, other = (Rung(storage.open("drawn"), worker, 1, []) for worker in ("one", "other"))
    trial = one.ask()
    one.note(trial, MODEL, {"parameters": 1}, 0)
    assert one.read(trial) == (MODEL, 0)
    assert (one.begun(), other.begun()) == (1, 1)
    again = Rung(storage.open("drawn"), "other", 1, [])
    assert len(again.states("RUNNING")) == 1
    again = Rung(storage.open("drawn"), "one", 1, [])
    assert not again.states("RUNNING")
    (waiting,) = again.states("WAITING")
    assert json.loads(waiting.user_attrs["model"]) == MODEL
    resumed = other.ask()
    other.note(resumed, MODEL, {"parameters": 1}, 0)
    other.tell(resumed, 0.9)
    assert [each.accuracy for each in one.trained()] == [0.9]

    # a process that ended before it said which trial is its own
    lost = storage.open("lost").ask()
    assert len(Rung(storage.open("lost"), "one", 1, []).states("RUNNING")) == 1
    monkeypatch.setattr("sepconv.study.search.trials.UNNAMED", timedelta(0))
    assert not Rung(storage.open("lost"), "one", 1, []).states("RUNNING")
    assert len(storage.open("lost").trials) == lost.number + 2

    queues = [Queue(storage.open("queue 1"), worker, 2, []) for worker in ("one", "other")]
    for queue in queues:
        queue.fill([network(5, 0.9, 10), network(6, 0.8, 10)], [1])
    taken = [queues[place].next() for place in (0, 1, 0)]
    assert taken[2] is None
    for queue, trial in zip(queues, taken, strict=False):
        assert trial is not None
        queue.tell(trial, 0.95)
    assert [each.number for each in queues[0].trained()] == [5]  # both are of one model: trained once
    # where another process takes the last one in between, the sampler's trial is none
    monkeypatch.setattr(Queue, "states", lambda self, *names, left=[1]: left and [left.pop()])
    assert queues[0].next() is None


def test_a_training_that_diverges_or_fails(command: Command, lab: Lab, arguments: list[str], tmp_path: Path) -> None:
    lab.errors = b"error: no disk\n"
    outcome = command("search", *arguments)
    assert outcome.status == 2
    assert "3 trainings failed, the last: error: no disk" in outcome.err
    lab.errors = b"error: the loss became nan in epoch 1, step 3: lower recipe.optimizer.lr\n"
    outcome = command("search", *arguments, f"output={tmp_path}/other")
    assert outcome.status == 2
    assert "each training diverged: lower recipe.optimizer.lr, and give another output=" in outcome.err
    assert [row["validation"] for row in records(tmp_path / "other")] == ["0.0"] * 5
    lab.errors, lab.fails_at = b"", {len(lab.begun) + 2, len(lab.begun) + 3}
    outcome = command("search", *arguments, "trials=1", "rungs=[1]", f"output={tmp_path}/third")
    assert outcome.status == 2
    assert "no training came to anything, the last: its run is not of these settings" in outcome.err


@pytest.mark.slow
def test_a_winner_that_fails_is_trained_again(command: Command, lab: Lab, arguments: list[str], tmp_path: Path) -> None:
    lab.fails_at = {9}
    outcome = command("search", *arguments)
    assert outcome.status == 2
    assert "of each winner a training failed" in outcome.err
    assert command("search", *arguments).status == 0
    assert len(records(tmp_path / "found")) == 9


def test_bad_input(command: Command, lab: Lab, arguments: list[str], tmp_path: Path) -> None:
    free = [each for each in arguments if not each.startswith("parameters=")]
    refused(command("search", *free), "give a budget, such as parameters=78666")
    refused(command("search", *arguments, "seeds=[0,1]"), "seed=0 is out of range: a seed that is not one of seeds=")
    refused(command("search", *arguments, "rungs=[3,2]"), "rungs=[3, 2]", "rising")
    refused(command("search", *arguments, "minimize=[weights]"), "unknown minimize=weights", "parameters")
    refused(command("search", *arguments, "kinds=[fast]"), "unknown kinds=fast: choose from separable, dense, spatial")
    refused(command("search", *arguments, "kinds=[dense,dense]"), "kinds=['dense', 'dense'] is out of range")
    for leaves_out in ("~recipe.optimizer.weight_decay", "recipe.optimizer={name: SGD, lr: 0.1}"):
        refused(
            command("search", *free, "parameters=4000", leaves_out),
            f"{leaves_out} leaves out keys",
            "recipe/optimizer=",
        )
    refused(command("search", *arguments, "storage=nosql://x"), "storage=nosql://x cannot be used")
    (tmp_path / "file").write_text("")
    refused(command("search", *arguments, f"output={tmp_path}/file"), "cannot write to", "choose another output=")
    assert not lab.begun
    assert command("search", *arguments, "trials=1").status == 0
    refused(command("search", *arguments, "rungs=[1,3]"), "rungs=[1, 2]", "another output=")
    refused(command("search", *arguments, "recipe.batch_size=64"), "has another recipe", "another output=")
    refused(command("search", *arguments, "parameters=5000"), "has parameters=4000", "another output=")


def test_a_budget_that_nothing_keeps(
    command: Command, lab: Lab, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepconv.study.search.REFUSED", 2)
    outcome = command("search", *arguments, "parameters=20")
    refused(outcome, "of 2 networks none is within the budget; the last has parameters=", "allow for more")
    assert not lab.begun


def test_without_optuna(command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    refused(command("search", *arguments), "a search needs Optuna", "sepconv[search]")


def test_latency_is_that_of_the_file() -> None:
    pytest.importorskip("onnxruntime")
    from test_deployment import classifier_of

    assert 0.001 < budget.measure_latency(classifier_of(complete(MODEL))) < 1000


@pytest.mark.slow
def test_the_sampler_finds_the_best_of_a_table() -> None:
    """Of 6,561 trained networks (Su et al., arXiv 2103.11922): after 100 evaluations the best found is within 0.2
    points of the best there is, in the median of 20 searches, and nearer than a random search's. To minimize FLOPs too
    takes it longer.
    """
    if not TABLE.exists():
        pytest.skip(f"no table of trained networks in {TABLE}")
    table = json.loads(TABLE.read_text())
    best = max(each["mean_acc"] for each in table.values())

    def regret(sampler: Any, minimize: bool = False) -> float:
        study = optuna.create_study(directions=["maximize"] + ["minimize"] * minimize, sampler=sampler)
        for _ in range(100):
            trial = study.ask()
            each = table["".join(str(trial.suggest_int(f"layer {place}", 0, 2)) for place in range(8))]
            study.tell(trial, [each["mean_acc"]] + [each["flops"]] * minimize)
        return float(best - max(trial.values[0] for trial in study.trials))

    ours = statistics.median(regret(make_sampler(seed)) for seed in range(20))
    at_random = statistics.median(regret(optuna.samplers.RandomSampler(seed=seed)) for seed in range(20))
    both = statistics.median(regret(make_sampler(seed), minimize=True) for seed in range(20))
    print(f"regret: {ours:.3f}; at random {at_random:.3f}; with FLOPs to minimize {both:.3f}")
    assert ours <= 0.2
    assert ours < at_random
    assert ours < both


@pytest.mark.slow
def test_a_search_by_training(command: Command, tmp_path: Path) -> None:
    """On digits, of a winner that its experiment file trains again to the same figures."""
    outcome = command("search", "data=digits", "trainer=cpu", "macs=150000", "trials=4", "rungs=[2,6]", "winners=1",
                      "recipe.epochs=8", "seeds=[1,2]", f"output={tmp_path}")  # fmt: skip
    assert outcome.status == 0, outcome.err
    (winner,) = tmp_path.glob("configs/experiment/*.yaml")
    assert yaml.safe_load(winner.read_text())["recipe"] == {"epochs": 8}
    assert command("train", "--config-dir", tmp_path / "configs", f"experiment={winner.stem}", "trainer=cpu", "seed=2",
                   f"runs={tmp_path}/again").status == 0  # fmt: skip
    (again,) = tmp_path.glob("again/*/*/*/result.json")
    found = [row for row in records(tmp_path) if (row["epochs"], row["seed"]) == ("8", "2")]
    assert json.loads(again.read_text())["val_accuracy"] == pytest.approx(float(found[0]["validation"]))
