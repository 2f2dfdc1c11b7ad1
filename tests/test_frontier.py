"""The frontier: its plan, its trainings, found and made, and what it says of made-up ones."""

import base64
import io
import json
import signal
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import psutil
import pytest
import recorded
import torch
import yaml
from conftest import REPOSITORY, Outcome, refused
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from recorded import Ended, figures, write_predictions, write_run
from scipy.interpolate import PchipInterpolator

from sepconv import InputError, Stopped, files
from sepconv.config.keys import FrontierConfig, TrainConfig
from sepconv.config.read import read
from sepconv.data.datasets import image_shape
from sepconv.packing import pack
from sepconv.study import trainings
from sepconv.study.frontier import networks, report
from sepconv.study.frontier.record import (
    Diverged,
    Network,
    Record,
    Row,
    Settings,
    Speed,
    Training,
    make_training,
)
from sepconv.study.frontier.report import page, sentence
from sepconv.study.frontier.trainings import FrontierTrainings, Remaining, work
from sepconv.study.frontier.verdicts import compare, orders, read_curve
from sepconv.study.trainings import Process
from sepconv.terminal import Progress, duration
from sepconv.training import runs
from sepconv.training.runs import fingerprint

COMMIT = "c" * 40
SPREAD = (-0.002, 0.0, 0.002)  # of three seeds


def configuration(*overrides: str) -> FrontierConfig:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return read(FrontierConfig, compose("frontier", list(overrides)))


@pytest.mark.parametrize("data", ["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def test_every_kind_has_a_network_near_every_size(data: str) -> None:
    config = configuration(f"data={data}")
    plan = networks.plan(config, *image_shape(config.data))
    assert config.recipe.epochs == {"mnist": 10, "cifar10": 15}[data]
    found = {(network.kind, network.size, network.epochs) for network in plan}
    assert len(found) == len(plan)
    for size in config.sizes[1:]:
        assert {kind for kind, *rest in found if rest == [size, config.recipe.epochs]} == set(networks.KINDS)
    assert {kind for kind, *rest in found if rest == [28_000, 2 * config.recipe.epochs]} == set(networks.KINDS)
    for network in plan:
        if network.kind != "deep_dense":  # whose smallest has 5,000
            assert network.parameters == pytest.approx(network.size, rel=0.06)


def test_sizes_that_no_network_has() -> None:
    with pytest.raises(InputError, match="sizes=50 is out of range"):
        networks.plan(configuration("sizes=[50]"), (1, 16, 16), 10)


# a made-up study: three sizes, the middle one twice as long; rates 0.01 and 0.1; seeds 0, 1, 2
SETTINGS = Settings(data="cifar10", rates=[0.01, 0.1], tuning_seed=9, seeds=[0, 1, 2], jobs=1, command="command")


def make_networks(*kinds: str) -> list[Network]:
    lengths = ((1_000, 2), (10_000, 2), (100_000, 2), (10_000, 4))
    return [Network(kind=kind, size=size, epochs=epochs, width=1.0, parameters=size, macs=10 * size)
            for size, epochs in lengths for kind in kinds]  # fmt: skip


IMAGES = 1000  # of its test


def make_row(network: Network, rate: float, seed: int, val: float, test: float | None, images: int = IMAGES) -> Row:
    """A row that is right about the first images, as many as `test` says."""
    right = None if test is None else np.arange(images) < round(test * images)
    return Row(
        **vars(make_training(network, rate, seed)), val_accuracy=val, test_accuracy=test,
        images=images, right=None if right is None else pack(right),
        parameters=network.parameters, macs=network.macs, seconds=network.size / 100,
        device="CPU, 1 thread", torch="2.15", precision="bf16-mixed", commit=COMMIT, dirty=False, code="code",
        configuration="configuration",
    )  # fmt: skip


def make_speed(network: Network) -> Speed:
    """Of a network that takes as long as it has parameters: an epoch a hundredth of a second each."""
    rates = [100_000 / network.size * factor for factor in (0.5, 1, 3)]
    return Speed(kind=network.kind, size=network.size, images=1000, training=rates, evaluation=rates,
                 device="CPU, 1 thread", torch="2.15", precision="bf16-mixed", commit=COMMIT, dirty=False,
                 date="2026-11-27")  # fmt: skip


def make_record(*kinds: str, **less: float) -> Record:
    """A complete study of separable networks; of each other kind, so much `less` accuracy."""
    record = Record(SETTINGS, make_networks("separable", *less, *kinds))
    record.speeds = list(map(make_speed, record.of_kind("separable")))
    record.speeds += [make_speed(network) for kind in less for network in record.of_kind(kind)]
    for network in record.networks:
        if network.kind not in kinds:
            middle = {1_000: 0.6, 10_000: 0.7, 100_000: 0.8}[network.size] - less.get(network.kind, 0.0)
            for rate in (0.01, 0.1):  # validation prefers 0.01
                add(record, make_row(network, rate, 9, 0.9 - rate, None))
            for seed, spread in enumerate(SPREAD):
                add(record, make_row(network, 0.01, seed, 0.9, middle + spread))
    return record


def add(record: Record, row: Row) -> None:
    record.rows[row.training] = row


def diverge(record: Record, training: Training) -> None:
    record.diverged[training] = Diverged(**vars(training), commit=COMMIT, code="code", configuration="configuration")


def test_validation_chooses_and_seeds_follow() -> None:
    record = Record(SETTINGS, make_networks("separable")[:1])
    (network,) = record.networks
    assert record.planned == len(record.left()) == 5
    assert [(each.rate, each.seed) for each in record.missing()] == [(0.01, 9), (0.1, 9)]
    add(record, make_row(network, 0.01, 9, val=0.5, test=None))
    assert record.rate(network) is None
    add(record, make_row(network, 0.1, 9, val=0.6, test=None))
    assert record.rate(network) == 0.1
    assert [(each.rate, each.seed) for each in record.missing()] == [(0.1, 0), (0.1, 1), (0.1, 2)]
    add(record, make_row(network, 0.01, 0, val=0.9, test=0.99))  # better in its test: at a rate not chosen
    add(record, make_row(network, 0.1, 1, val=0.6, test=0.5))
    assert record.right(network).mean(1).tolist() == [0.5]
    assert not record.is_complete(network)
    assert len(record.left()) == 2


def test_a_rate_that_diverges_is_not_chosen() -> None:
    record = Record(SETTINGS, make_networks("separable")[:1])
    (network,) = record.networks
    diverge(record, make_training(network, 0.1, 9))
    add(record, make_row(network, 0.01, 9, val=0.5, test=None))
    assert record.rate(network) == 0.01
    record.rows.clear()
    diverge(record, make_training(network, 0.01, 9))
    assert record.rate(network) is None
    assert not list(record.missing())


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = make_record(dense=0.1)
    diverge(record, make_training(record.networks[0], 0.1, 1))
    record.write(tmp_path / "a.json")
    again = Record.read(tmp_path / "a.json")
    assert vars(again) == vars(record)
    assert page(again) == page(record)
    good = json.loads((tmp_path / "a.json").read_text())
    bare = [vars(training) for training in record.diverged]  # which do not say what they are of
    (tmp_path / "b.json").write_text(json.dumps(good | {"diverged": bare}))
    assert Record.read(tmp_path / "b.json").diverged.keys() == record.diverged.keys()
    place = next(place for place, row in enumerate(good["runs"]) if row["right"])
    changed = []
    bomb = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    for changes in ({"right": None}, {"right": "?"}, {"right": "AAAA"}, {"right": bomb}, {"images": 5}, {"images": -1},
                    {"right": pack(np.ones(IMAGES, bool))}):  # fmt: skip
        rows = [row | changes if place == number else row for number, row in enumerate(good["runs"])]
        changed.append(good | {"runs": rows})
    changed.append(good | {"runs": [{key: row[key] for key in row if key != "right"} for row in good["runs"]]})
    for broken in (
        "[]",
        "{}",
        '{"settings": {}}',
        (tmp_path / "a.json").read_text().replace('"seed": 9', '"seed": "9"'),
        *(json.dumps(made) for made in changed),
    ):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(InputError, match="is not a record"):
            Record.read(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("less", "verdict", "words"),
    [
        (0.05, "better", "separable is better at 1 k to 100 k parameters (+5.00 to +5.00 points)"),
        (-0.05, "worse", "dense is better at 1 k to 100 k parameters (-5.00 to -5.00 points)"),
        (0.004, "not shown", "neither a difference nor equality is shown at 1 k to 100 k parameters"),
    ],
)
def test_verdicts(less: float, verdict: str, words: str) -> None:
    record = make_record(dense=less)
    for cost in ("parameters", "macs", "seconds", "ms_per_image"):
        comparisons = compare(record, "separable", "dense", cost)
        assert comparisons is not None
        assert [each.verdict for each in comparisons] == [verdict] * 3
        assert [each.difference.estimate.mean for each in comparisons] == pytest.approx([less] * 3)
        assert words in sentence(record, "separable", "dense", cost)


def test_equality_is_shown_where_seeds_hardly_differ() -> None:
    record = make_record(dense=0.0)
    for network in record.networks:
        middle = {1_000: 0.6, 10_000: 0.7, 100_000: 0.8}[network.size]
        for seed in range(3):
            add(record, make_row(network, 0.01, seed, 0.9, middle + seed * 1e-4, images=10_000))
    comparisons = compare(record, "separable", "dense", "macs")
    assert comparisons is not None
    assert [each.verdict for each in comparisons] == ["equal"] * 3
    assert "the two are equal to within 0.1 point at 1 k to 100 k" in sentence(record, "separable", "dense", "macs")


def test_p_values_are_corrected_for_their_number() -> None:
    """What is alone shown is not shown among three."""
    record = make_record(dense=0.005)
    comparisons = compare(record, "separable", "dense", "parameters")
    assert comparisons is not None
    for each in comparisons:
        assert each.difference.p is not None
        assert each.difference.p < 0.05 < each.p == pytest.approx(3 * each.difference.p)
        assert each.verdict == "not shown"


def test_no_verdict_where_trainings_lack() -> None:
    record = make_record("dense")
    assert compare(record, "separable", "dense", "macs") is None
    assert sentence(record, "separable", "dense", "macs") == "there is no verdict: trainings lack"
    assert "**20 of 40 trainings are in.**" in page(record)
    record = make_record(dense=0.1)
    assert "All 40 trainings are in." in page(record)
    network = record.of_kind("dense")[1]
    del record.rows[make_training(network, 0.01, 2)]
    assert compare(record, "separable", "dense", "macs") is None
    assert "separable is better at" not in page(record)
    assert "**39 of 40 trainings are in.**" in page(record)


def test_times_are_of_one_measurement() -> None:
    """By the median over turns, for as many epochs as a network is trained; without it there is no verdict."""
    record = make_record(dense=0.1)
    (longer,) = (network for network in record.longer if network.kind == "dense")
    assert record.cost(longer, "seconds") == pytest.approx(4 * 1000 / 10)
    assert record.cost(longer, "ms_per_image") == pytest.approx(1000 / 10)
    assert "Times: 2026-11-27; CPU, 1 thread; torch 2.15; bf16-mixed; commit ccccccc; 3 turns." in page(record)
    record.speeds.clear()
    assert compare(record, "separable", "dense", "macs")
    assert compare(record, "separable", "dense", "seconds") is None
    assert sentence(record, "separable", "dense", "seconds") == "there is no verdict: times are not measured"
    assert "Times:" not in page(record)


def test_accuracy_is_read_off_the_other_kinds_curve() -> None:
    """A kind of a tenth of the MACs stands against the network ten times as small, and its smallest against none."""
    record = make_record(dense=0.0)
    record.networks = [replace(each, macs=each.size) if each.kind == "separable" else each for each in record.networks]
    comparisons = compare(record, "separable", "dense", "macs")
    assert comparisons is not None
    assert [each.network.size for each in comparisons] == [10_000, 100_000]
    assert [each.difference.estimate.mean for each in comparisons] == pytest.approx([0.1, 0.1])
    text = sentence(record, "separable", "dense", "macs")
    assert "separable is better at 10 k, 100 k parameters" in text
    assert "at 1 k parameters no dense network costs the same" in text


def test_sizes_in_words() -> None:
    every = [1_000, 2_700, 10_000, 28_000, 100_000]
    assert report.listed(every, every) == "1 k to 100 k parameters"
    assert report.listed([1_000, 2_700, 28_000], every) == "1 k, 2.7 k, 28 k parameters"
    assert report.listed([1_000, 10_000, 28_000, 100_000], every) == "1 k, 10 k to 100 k parameters"


def test_curve() -> None:
    curve = {1.0: 0.1, 10.0: 0.3, 100.0: 0.35}

    def weights(cost: float) -> list[float]:
        return list((read_curve(curve, cost) or {}).values())

    assert weights(10.0) == pytest.approx([0, 1, 0], abs=1e-6)
    assert weights(103.0) == pytest.approx([0, 0, 1], abs=1e-6)
    for cost in (1.5, 3, 20, 50):  # an accuracy that is added to all points is added between them, too
        expected = float(PchipInterpolator(np.log(list(curve)), list(curve.values()))(np.log(cost)))
        assert sum(weights(cost)) == pytest.approx(1)
        assert np.dot(weights(cost), list(curve.values())) == pytest.approx(expected, abs=1e-6)
    for accuracies in ([0.9862, 0.9916, 0.9943, 0.9955, 0.9962, 0.9962, 0.9962], [0.99] * 7, [0.98, 0.99] * 3 + [0.99]):
        flat = dict(zip((2.7, 5.1, 12.7, 28.0, 56.0, 112.0, 294.0), accuracies, strict=True))
        for cost in (4.0, 8.0, 100.0, 180.0):  # also where neighbours are equal
            found = read_curve(flat, cost) or {}
            expected = float(PchipInterpolator(np.log(list(flat)), accuracies)(np.log(cost)))
            assert sum(found.values()) == pytest.approx(1, abs=1e-6)
            assert np.dot(list(found.values()), accuracies) == pytest.approx(expected, abs=1e-5)
    assert read_curve(curve, 110.0) is None
    assert read_curve(curve, 0.9) is None
    assert read_curve({10.0: 0.5}, 10.2) == {10.0: 1.0}


def test_order_when_trained_twice_as_long() -> None:
    record = make_record(dense=0.05)
    (order,) = orders(record) or []
    assert not order.changes
    assert "no two kinds change places" in page(record)
    network = next(each for each in record.longer if each.kind == "dense")
    for seed in range(3):
        add(record, make_row(network, 0.01, seed, 0.9, 0.9 + seed / 1000))
    (order,) = orders(record) or []
    assert order.changes
    assert order.shown
    assert "these change places: separable and dense. P" in page(record)
    for network in record.networks:
        sign = 1 if network.epochs == 2 else -1
        for seed, value in enumerate((0.6, 0.7, 0.8)):
            test = 1.39 - value if network.kind == "dense" else value  # the other way round, and a point less
            add(
                record,
                make_row(network, 0.01, seed, 0.9, test if sign > 0 else test + 0.02 * (network.kind == "dense")),
            )
    assert "separable and dense (which is better is shown at neither length)" in page(record)
    del record.rows[make_training(network, 0.01, 0)]
    assert orders(record) is None
    assert "These trainings are not all in." in page(record)


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that the trainings took until now, and the MACs of the others."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    record = make_record("dense")
    assert len(record.left()) == 20
    record.rows = {key: replace(row, seconds=work(row.epochs, row.macs)) for key, row in record.rows.items()}
    spent = sum(row.seconds for row in record.rows.values())
    first = next(iter(record.rows))
    record.rows[first] = replace(record.rows[first], seconds=10 * spent)  # it was paused
    remaining = Remaining(record)
    assert remaining.until == pytest.approx(spent)  # dense networks have as many MACs as the separable ones
    assert "frontier: training 20 of 40" in str(remaining)
    assert remaining.left() == f"{duration(spent)} left"
    empty = Record(SETTINGS, make_networks("dense"))
    assert Remaining(empty).left() == ""


def test_every_kind_is_drawn() -> None:
    assert set(report.KINDS) == set(networks.KINDS)
    assert {kind for pair in report.QUESTIONS for kind in pair} == set(networks.KINDS)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Study":
    return Study(tmp_path, monkeypatch)


class Study:
    """A study whose trainings are made up at once, by the arguments that scripts/train.py would get."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.started = path, list[list[str]]()
        self.config = configuration(f"runs={path}", "sizes=[2700]", "kinds=[separable]", "seeds=[0,1]", "jobs=1",
                                    "trainer=cpu", "rates=[0.002,0.006]")  # fmt: skip
        self.code = {"sha": COMMIT, "dirty": False}
        monkeypatch.setattr(trainings, "start", self.start)
        monkeypatch.setattr(runs, "hash_code", lambda code: None if code["dirty"] else code["sha"])
        monkeypatch.setattr(runs, "current_code", lambda: {"sha": COMMIT, "dirty": False})
        monkeypatch.setattr("sepconv.study.frontier.trainings.POLL", 0)
        self.errors, self.status = b"", 2
        self.digests = {"train": "a", "validation": "b", "test": "c"}

    def start(self, arguments: list[str]) -> Process:
        self.started.append(arguments)
        if not self.errors and arguments[0].startswith("resume="):
            run = Path(arguments[0].removeprefix("resume="))
            self.finish(run, yaml.safe_load((run / "config.yaml").read_text()))
        elif not self.errors:
            with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
                config: Any = OmegaConf.to_container(compose("train", arguments), resolve=True)
            run = write_run(Path(config["runs"], "digits/separable", str(len(self.started))), config, arguments)
            runs.write_code(run, [self.code])
            self.finish(run, config)
        return Process(Ended(self.status if self.errors else 0), io.BytesIO(self.errors))  # type: ignore[arg-type]

    def finish(self, run: Path, config: dict[str, Any]) -> None:
        made = figures(seed=config["seed"], accuracy=0.9 + config["recipe"]["optimizer"]["lr"])
        made["images"]["test"] = 1000
        write_predictions(run, list(range(round(1000 * (1 - made["test_accuracy"])))), [0] * 1000)
        (run / "result.json").write_text(
            json.dumps(made | {"data": "digits", "git": self.code, "digests": self.digests})
        )

    def make(self, record: Record | None = None, **changes: Any) -> Record:
        config = replace(self.config, **changes)
        settings = replace(
            SETTINGS, data="digits", rates=config.rates, tuning_seed=config.tuning_seed, seeds=config.seeds
        )
        plan = networks.plan(config, (1, 16, 16), 10)
        before = record or Record(settings, [])
        made = Record(settings, plan, before.diverged.values(), list(before.rows.values()))
        self.trainings = FrontierTrainings(config, made, self.digests, ["data=digits", "trainer=cpu"], lambda: None)
        self.trainings.find()
        self.trainings.make()
        return made


def test_trainings_are_made_once(study: Study) -> None:
    """Each as its arguments say, the seeds at the rate chosen; found again by their runs, and by the record alone."""
    record = study.make()
    assert len(study.started) == len(record.rows) == record.planned == 8
    assert not record.left()
    assert {record.rate(network) for network in record.networks} == {0.006}
    chosen = [row.test_accuracy for row in record.rows.values() if row.seed != 1000]
    assert record.right(record.networks[0]).sum(1).tolist() == [906, 906]
    assert chosen == [pytest.approx(0.906)] * 4
    assert {row.test_accuracy for row in record.rows.values() if row.seed == 1000} == {None}
    assert study.make().rows == record.rows
    folder = study.trainings.trainings.folder
    others = trainings.Trainings(folder, COMMIT, study.digests | {"test": "others"})  # images
    others.scan()
    assert not others.finished
    folder.rename(study.path / "gone")
    assert study.make(record).rows == record.rows
    assert len(study.started) == 8
    more = study.make(record, seeds=[0, 1, 2])
    assert len(study.started) == 10
    assert len(more.rows) == 10


def test_an_interrupted_training_is_resumed(study: Study) -> None:
    study.make()
    (first,) = study.path.glob("c*/digits/separable/1")
    (first / "result.json").unlink()
    study.make()
    assert study.started[8:] == [[f"resume={first}", f"data.root={study.config.data.root}"]]

    # not one that other code began
    (first / "result.json").unlink()
    runs.write_code(first, [{"sha": "0" * 40, "dirty": False}])
    study.make()
    assert study.started[9][0] == "data=digits"


def test_a_stopped_run_goes_on_with_its_own_images(tmp_path: Path) -> None:
    found = trainings.Trainings(tmp_path, "code", {"test": "a"})
    assert found.same_images(tmp_path)  # it has learnt from none
    (tmp_path / "checkpoints").mkdir()
    for digest in "ab":
        images = {"digests": {"test": digest}}
        values = {"hyper_parameters": {"images": images}, "state_dict": {}}
        torch.save(values, tmp_path / "checkpoints/last.ckpt")
        assert found.same_images(tmp_path) == (digest == "a")


def test_what_still_runs_is_waited_for(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training whose study was killed goes on by itself, and is taken when it has ended."""
    study.make()
    (first,) = study.path.glob("c*/digits/separable/1")
    result = (first / "result.json").read_text()
    (first / "result.json").unlink()
    looks: list[Path] = []

    def is_locked(run: Path) -> bool:
        looks.append(run)
        if len(looks) == 3:
            (first / "result.json").write_text(result)
        return len(looks) < 3

    monkeypatch.setattr(trainings, "is_locked", is_locked)
    monkeypatch.setattr(trainings, "POLL", 0)
    assert not study.make().left()
    assert looks == [first] * 3
    assert len(study.started) == 8
    assert capsys.readouterr().out.count(f"waits for {first}, which another process trains") == 1


def test_only_a_run_that_another_process_has_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(folder: Path, work: str) -> None:
        raise InputError(f"cannot write to {folder}")

    run = write_run(tmp_path / "run", recorded.configuration(), [])
    with files.lock(run, "trained"):
        assert trainings.is_locked(run)
    assert not trainings.is_locked(run)
    monkeypatch.setattr(files, "lock", lock)
    with pytest.raises(InputError, match="cannot write to"):
        trainings.is_locked(run)


def test_trainings_that_were_left_halted_go_on(tmp_path: Path) -> None:
    """Those of this folder alone."""
    places = [f"runs={tmp_path}/runs", f"resume={tmp_path}/runs/a", f"runs={tmp_path}/runs2"]
    started = [psutil.Popen(["sh", "-c", "read line", "sh", place], stdin=PIPE) for place in places]
    try:
        for each in started:
            each.suspend()
        while any(each.status() != psutil.STATUS_STOPPED for each in started):
            time.sleep(0.01)  # the signal takes its time
        trainings.Trainings(tmp_path / "runs", None, {}).wake()
        assert [each.status() == psutil.STATUS_STOPPED for each in started] == [False, False, True]
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_a_run_that_did_not_keep_its_predictions_is_made_again(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    study.make()
    (first,) = study.path.glob("c*/digits/separable/1")
    (first / "predictions.npy").unlink()
    study.make()
    assert len(study.started) == 9
    assert f"{first} is left out: {first} has no predictions.npy: train it again" in caplog.messages


def test_runs_of_other_code_are_not_used(study: Study) -> None:
    """Neither by a record, nor those that were made while the code changed."""
    record = study.make()
    for name in ("commit", "dirty"):
        row = replace(next(iter(record.rows.values())), code=f"other {name}")
        with pytest.raises(InputError, match="has a run of other code or settings"):
            study.make(Record(SETTINGS, [], [], [row]))
    with pytest.raises(InputError, match="other code or settings"):
        study.make(record, recipe=replace(study.config.recipe, batch_size=64))
    study.code = {"sha": COMMIT, "dirty": True}
    with pytest.raises(InputError, match=r"2 trainings failed, .*not of these settings, these images and this code"):
        study.make(record, seeds=[0, 1, 2])


def test_code_that_is_not_committed_is_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "current_code", lambda: {"sha": COMMIT, "dirty": True})
    with pytest.raises(InputError, match="commit them, or give uncommitted=true"):
        study.make()
    study.code = {"sha": COMMIT, "dirty": True}
    assert not study.make(uncommitted=True).left()


def test_failures_are_told_at_the_end(study: Study) -> None:
    study.errors = b"a line\nerror: no disk\n"
    with pytest.raises(InputError, match=r"4 trainings failed, the first \(separable 2,700, .*\): error: no disk"):
        study.make()
    study.errors = b"error: the loss became nan in epoch 1, step 3: lower recipe.optimizer.lr\n"
    record = study.make()
    assert len(record.diverged) == 4
    assert not list(record.missing())
    assert record.lost() == list(record.diverged)  # of no network there is a learning rate

    # that is of this code and these settings, too
    assert study.make(record).diverged == record.diverged
    for other in ({"code": "other"}, {"configuration": None}):
        again = replace(next(iter(record.diverged.values())), **other)
        with pytest.raises(InputError, match="other code or settings"):
            study.make(Record(record.settings, [], [again]))


def test_why_a_training_failed() -> None:
    """By the line that says so, not by how far it was."""

    def failure(status: int, errors: str) -> str:
        return Process(Ended(status), io.BytesIO(errors.encode())).failure()  # type: ignore[arg-type]

    progress = Progress("training: step", 1400)
    progress.reach(1020, "epoch 3 of 40, validation accuracy 91.00%")
    both = "; ".join(map(str, (progress, Progress("reading: image", 12))))
    assert failure(-9, f"{both}\n") == "killed by SIGKILL"
    assert failure(0, f"{progress}\n").startswith("its run is not of these settings")
    assert failure(1, f"a line\nValueError: step 3 of 9\n{progress}\n{both}\n") == "ValueError: step 3 of 9"
    assert failure(2, f"error: the batch: step 3 of 9\n{both}\n") == "error: the batch: step 3 of 9"
    assert failure(1, f"{progress}\n") == "exit status 1"


def test_a_reported_seed_that_diverges_is_named(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the page, and by the command's last line."""
    record = make_record(dense=0.1)
    assert not record.lost()
    network = record.of_kind("dense")[1]
    training = make_training(network, 0.01, 2)
    del record.rows[training]
    diverge(record, training)
    assert record.lost() == [training]
    monkeypatch.setattr("sepconv.study.frontier.go_on", lambda *_: record)
    outcome = command("frontier", f"output={tmp_path}")
    refused(outcome, f"no verdict on what diverged ({training}): give lower rates=")
    assert "Diverged, so that their networks lack them: dense 10,000, 2 epochs at 0.01, seed 2." in page(record)


def test_a_seed_that_chose_a_rate_is_tested_before_it_is_reported() -> None:
    network = make_networks("separable")[0]
    row = make_row(network, 0.01, 9, 0.9, None)
    assert Record(SETTINGS, [network], runs=[row]).rows
    record = Record(replace(SETTINGS, rates=[0.01], tuning_seed=8, seeds=[9, 10]), [network], runs=[row])
    assert make_training(network, 0.01, 9) in record.missing()


def test_networks_without_errors_are_drawn() -> None:
    """Where their axis is logarithmic in the errors."""
    record = make_record()
    for row in list(record.rows.values()):
        if row.right is not None:
            add(record, make_row(record.of_kind("separable")[0], 0.01, row.seed, 1.0, 1.0))
    lines = report.draw(record).axes[0].lines
    assert min(min(line.get_ydata()) for line in lines if len(line.get_ydata())) > 0  # type: ignore[type-var,arg-type]


def test_a_record_of_other_images_is_refused(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not tell its images is taken."""
    monkeypatch.setattr("sepconv.study.frontier.FrontierTrainings", lambda *_: sys.exit(7))
    settings = replace(SETTINGS, data="digits", digests=dict.fromkeys(("train", "validation", "test"), "other"))
    Record(settings, []).write(tmp_path / "digits.json")
    outcome = command("frontier", f"output={tmp_path}", "uncommitted=true")
    refused(outcome, "digits.json is of other images", "another output=")
    old = json.loads((tmp_path / "digits.json").read_text())
    del old["settings"]["digests"]
    (tmp_path / "digits.json").write_text(json.dumps(old))
    assert command("frontier", f"output={tmp_path}", "uncommitted=true").status == 7


def test_a_stop_ends_what_is_under_way(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    class Running:
        def poll(self) -> None:
            raise Stopped(status=143)

        def send_signal(self, number: int) -> None:
            stopped.append(signal.Signals(number).name)

        def wait(self) -> None:
            stopped.append("wait")

    monkeypatch.setattr(trainings, "start", lambda _: Process(Running(), io.BytesIO()))  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        study.make()
    assert stopped == ["SIGTERM", "wait"]


def test_settings_are_those_of_the_training(study: Study) -> None:
    """What the study takes a training for, by its hash, is what its arguments come to."""
    study.make()
    for training in study.trainings.record.rows:
        config = study.trainings.configure(training)
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            composed = read(TrainConfig, compose("train", study.trainings.describe(training)))
        assert fingerprint(composed) == fingerprint(config) == study.trainings.configuration(training)
        assert fingerprint(replace(config, seed=5)) == fingerprint(config)
        assert fingerprint(replace(config, recipe=replace(config.recipe, epochs=99))) != fingerprint(config)


@pytest.mark.slow
def test_study_of_digits(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """The command trains, in processes of one thread, writes record, page and picture, and finds all of it again."""
    arguments = ["trainer=cpu", "recipe.epochs=1", "kinds=[dense]", "sizes=[2700]", "rates=[0.006]", "seeds=[0,1]",
                 "rounds=1", f"runs={tmp_path}/runs", f"output={tmp_path}/out", "uncommitted=true"]  # fmt: skip
    outcome = command("frontier", *arguments)
    assert outcome.status == 0, outcome.err
    record = Record.read(tmp_path / "out/digits.json")
    assert {(row.epochs, row.seed) for row in record.rows.values()} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert all(row.device.endswith(", 1 thread") for row in record.rows.values())
    (speed,) = record.speeds
    assert len(speed.training) == len(speed.evaluation) == 1
    assert speed.images == 1280  # in whole batches
    results = sorted((tmp_path / "runs").rglob("result.json"))
    assert len(results) == 4
    written = json.loads(results[0].read_text())
    assert written["parameters"] == record.networks[0].parameters
    assert written["macs"] == record.networks[0].macs
    text = (tmp_path / "out/digits.md").read_text()
    assert text == page(record)
    assert "All 4 trainings are in." in text
    assert (tmp_path / "out/digits.png").stat().st_size > 5_000
    before = (tmp_path / "out/digits.json").read_text()
    assert command("frontier", *arguments).status == 0
    assert sorted((tmp_path / "runs").rglob("result.json")) == results
    assert (tmp_path / "out/digits.json").read_text() == before
    (tmp_path / "out/digits.md").unlink()
    assert command("frontier", "jobs=0", f"output={tmp_path}/out").status == 0
    assert (tmp_path / "out/digits.md").read_text() == text


def test_bad_input(command: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(command("frontier", "kinds=[spatial]", f"output={tmp_path}", "uncommitted=true"), "unknown kinds=spatial")
    refused(command("frontier", "kinds=[dense,dense]"), "kinds=['dense', 'dense']", "each once")
    refused(command("frontier", "seeds=[0,1000]"), "tuning_seed=1000", "seeds=")
    refused(command("frontier", "rates=[]"), "rates=[]", "one or more")
    refused(command("frontier", "sizes=[5,5]"), "sizes=[5, 5]", "each once")
    refused(command("frontier", "jobs=0", f"output={tmp_path}"), "jobs=0", "is not there")
    refused(command("frontier", "output=/dev/null/x", "uncommitted=true"), "cannot write", "output=")
