"""Runs compared: against hand calculations on made-up results, and on trained runs."""

import csv
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Outcome, data_config, refused
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from recorded import MACS, configuration, figures, write_predictions, write_run

from sepconv import InputError
from sepconv.benchmark.records import page
from sepconv.config.keys import ClaimsConfig, CompareConfig
from sepconv.config.read import read
from sepconv.data.datasets import load
from sepconv.study.claims.lab import Lab
from sepconv.study.compare import Network, compare
from sepconv.study.plots import draw_throughput
from sepconv.training import runs


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes a finished run with the accuracy given: its directory."""
    made = 0

    def run(
        model: str, seed: int, accuracy: float, *overrides: str, done: bool = True, split: int = 0, **result: Any
    ) -> Path:
        nonlocal made
        made += 1
        overrides = (f"model={model}", f"seed={seed}", *overrides)
        path = tmp_path / "runs/mnist" / model / f"20260101-{made:06d}-seed{seed}"
        values = figures(model, seed, accuracy, split) | {"step": None, "overrides": list(overrides)} | result
        return write_run(path, configuration(*overrides), list(overrides), values if done else None)

    return run


def ask(tmp_path: Path, **options: Any) -> CompareConfig:
    return CompareConfig(**{"runs": [str(tmp_path / "runs")], "output": str(tmp_path / "out")} | options)


def network(networks: list[Network], label: str) -> Network:
    return next(network for network in networks if network.label == label)


def test_statistics_by_hand(make: Callable[..., Path], tmp_path: Path) -> None:
    for seed, (one, other) in enumerate([(0.991, 0.993), (0.990, 0.994), (0.992, 0.993)]):
        make("baseline", seed, one)
        make("separable", seed, other)
    (section,) = compare(ask(tmp_path)).sections
    assert section.reference.label == "baseline"
    accuracy = network(section.networks, "separable").accuracy
    # t of 2 degrees of freedom at 97.5 %: 4.30265; deviations of 0.000577 and, of the differences, 0.001528
    assert accuracy.n == 3
    assert accuracy.mean == pytest.approx(0.99333, abs=1e-5)
    assert accuracy.high is not None
    assert accuracy.high - accuracy.mean == pytest.approx(4.30265 * 0.00057735 / math.sqrt(3), rel=1e-4)
    difference = network(section.networks, "separable").difference
    assert difference is not None
    assert difference.estimate.mean == pytest.approx(0.0023333, abs=1e-6)
    assert difference.estimate.low is not None
    assert difference.estimate.mean - difference.estimate.low == pytest.approx(4.30265 * 0.00152753 / 3**0.5, rel=1e-4)
    assert difference.p == pytest.approx(0.118, abs=2e-3)  # t = 2.6458
    assert section.reference.difference is None


@pytest.fixture
def predict(make: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a finished run on 1,000 images that is wrong about some of them: its directory."""

    def run(model: str, seed: int, wrong: list[int], **result: Any) -> Path:
        images = {"train": 55_000, "validation": 5_000, "test": 1_000}
        path = make(model, seed, 1 - len(wrong) / 1000, **{"images": images} | result)
        write_predictions(path, wrong, [image % 10 for image in range(1000)])
        return path

    return run


def test_networks_differ_on_images(
    predict: Callable[..., Path], make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    """Intervals know of the images, and it is told on which of them a network and the reference differ."""
    for seed in range(2):
        predict("baseline", seed, [1, 2, 3])
        predict("separable", seed, [2, 3, 4, *([5] if seed else [])])
    (section,) = compare(ask(tmp_path)).sections
    separable, baseline = (network(section.networks, label) for label in ("separable", "baseline"))
    # two equal runs; the binomial interval by Wilson is 99.12 to 99.90
    assert (baseline.accuracy.low, baseline.accuracy.high) == pytest.approx((0.9912, 0.999), abs=0.001)
    assert separable.contrast is not None
    assert (separable.contrast.images(more=True), separable.contrast.images(more=False)) == ([1], [4, 5])
    assert separable.difference is not None
    assert separable.difference.estimate.mean == pytest.approx(-0.0005)
    assert (separable.difference.estimate.low or 0) < 0 < (separable.difference.estimate.high or 0)

    out = tmp_path / "out"
    outcome = command("compare", tmp_path / "runs", f"output={out}")
    assert outcome.status == 0, outcome.err
    assert "1, 2" in outcome.out
    assert "seeds alone" not in outcome.out
    for path in (out / "report.html", out / "report.md"):
        text = path.read_text().replace("\\", "")
        assert "separable is right more often than baseline on 1 test images: 1" in text
        assert "separable is right less often than baseline on 2 test images: 4, 5" in text
    assert not (out / "mnist-differences.png").exists()  # those images are not at hand
    with (out / "mnist-images.csv").open() as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["1", "1", "2", "0"],
        ["2", "2", "0", "0"],
        ["3", "3", "0", "0"],
        ["4", "4", "0", "2"],
        ["5", "5", "1", "2"],
    ]
    with (out / "networks.csv").open() as file:
        found = {row["network"]: row for row in csv.DictReader(file)}
    assert found["separable"]["right_less_often"] == "2"
    assert {row["interval"] for row in found.values()} == {"seeds and images"}

    # a run without them: by seeds alone, where it takes part
    make("separable", 2, 0.997, images={"train": 55_000, "validation": 5_000, "test": 1_000})
    (section,) = compare(ask(tmp_path)).sections
    separable, baseline = (network(section.networks, label) for label in ("separable", "baseline"))
    assert (
        "intervals of separable are over seeds alone (Student's t): runs did not keep what they predicted"
        in section.notes
    )
    assert separable.contrast is None
    assert separable.difference is not None
    assert separable.difference.estimate.n == 2
    assert separable.accuracy.half is not None
    assert baseline.accuracy.low is not None


def test_wrong_predictions_are_refused(
    predict: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    predict("baseline", 1, [1, 2])
    path = predict("baseline", 0, [1, 2]) / "predictions.npy"
    good = np.load(path)
    other, large = good.copy(), good.copy()
    other[:, 1], large[:, 1] = [3, 4], [11, 12]
    for wrong, words in (
        (good[:, :-1], "shape (2, 1000)"),
        (good[0], "shape (2, 1000)"),
        (good.astype(np.int64), "uint8"),
        (good.astype(object), "Object arrays cannot be loaded"),
        (np.zeros((2, 100_000), np.uint8), "bytes expected"),
        (large, "class 12 is out of range"),
        (good[[1, 1]], "right about 100.0000%, and result.json has 99.8000%"),
        (other, "have other classes for the same test images"),
    ):
        np.save(path, wrong)
        refused(command("compare", tmp_path / "runs"), str(path.parent), words)
    np.savez(path.with_suffix(".npz"), good)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': "
    for content in (
        b"", b"x", path.read_bytes()[:50], path.with_suffix(".npz").read_bytes(), header.ljust(127) + b"\n",
        (header + b"(2, 10000000000000), }").ljust(127) + b"\n", (header + b"(" * 60).ljust(127) + b"\n",
    ):  # fmt: skip
        path.write_bytes(content)
        refused(command("compare", tmp_path / "runs"), f"{path} is not the run's: ", "remove that file")
    path.unlink()
    path.mkdir()
    refused(command("compare", tmp_path / "runs"), f"{path} is not the run's: ")
    path.rmdir()
    os.mkfifo(path)
    refused(command("compare", tmp_path / "runs"), f"{path} is not the run's: ")


def test_what_ran_is_taken_from_the_run(
    make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    """A row says by which code its run was begun and resumed, and the comparison warns of what was not committed."""
    later = [{"sha": "89ab", "dirty": True}]
    make("baseline", 0, 0.99, git={"sha": "4567", "dirty": False}, git_later=later, configuration="abc")
    outcome = command("compare", tmp_path / "runs", f"output={tmp_path / 'out'}")
    assert "some runs were of code that was not committed" in outcome.out
    assert "some runs were resumed by other code" in outcome.out
    with (tmp_path / "out/runs.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert [row[key] for key in ("configuration", "commit", "dirty", "resumed_by")] == [
        "abc", "4567", "False", "89ab (changed)",
    ]  # fmt: skip
    assert json.loads(row["overrides"]) == ["model=baseline", "seed=0"]


def test_one_seed_and_equal_differences_give_no_interval_and_no_p(make: Callable[..., Path], tmp_path: Path) -> None:
    make("baseline", 0, 0.99)
    make("tiny", 0, 0.98)
    (section,) = compare(ask(tmp_path)).sections
    assert network(section.networks, "tiny").accuracy.low is None
    make("baseline", 1, 0.99)
    make("tiny", 1, 0.98)
    (section,) = compare(ask(tmp_path)).sections
    difference = network(section.networks, "tiny").difference
    assert difference is not None
    assert difference.p is None


def test_pareto_fronts(make: Callable[..., Path], tmp_path: Path) -> None:
    make("baseline", 0, 0.99)  # most MACs, but fastest here
    make("separable", 0, 0.992)
    make("tiny", 0, 0.98)
    (section,) = compare(ask(tmp_path)).sections
    fronts = {network.label: set(network.front) for network in section.networks}
    assert fronts["separable"] == {"parameters", "macs", "train_images_per_second", "fit_seconds"}
    assert fronts["tiny"] == {"parameters", "macs"}
    assert fronts["baseline"] == {"train_images_per_second"}


def test_time_to_target(make: Callable[..., Path], tmp_path: Path) -> None:
    make("baseline", 0, 0.99)
    make("baseline", 1, 0.97)
    (section,) = compare(ask(tmp_path, target=0.965)).sections
    assert section.reference.target_seconds == (30.0 + 61.0) / 2
    (section,) = compare(ask(tmp_path, target=0.98)).sections
    assert (section.reference.target_seconds, section.reference.reached) == (None, 1)
    (section,) = compare(ask(tmp_path)).sections
    assert section.target == pytest.approx(0.97)  # what all reach


def test_nothing_is_dropped_in_silence(
    make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    older, newer = make("baseline", 0, 0.98), make("baseline", 0, 0.99)
    stopped = make("baseline", 1, 0, done=False)
    comparison = compare(ask(tmp_path))
    assert comparison.duplicates == [older]
    assert comparison.unfinished == [stopped]
    assert comparison.sections[0].reference.runs[0].path == newer
    outcome = command("compare", tmp_path / "runs", f"output={tmp_path / 'out'}")
    assert outcome.status == 0, outcome.err
    for text in (outcome.out, (tmp_path / "out/report.md").read_text()):
        assert str(older) in text
        assert str(stopped) in text


def test_configurations_of_one_network_are_told_apart(make: Callable[..., Path], tmp_path: Path) -> None:
    make("separable", 0, 0.99)
    make("separable", 0, 0.98, "model.width=0.5", "recipe.epochs=3", parameters=5)
    (section,) = compare(ask(tmp_path)).sections
    labels = [network.label for network in section.networks]
    assert labels == [
        "separable (model.width=0.5, recipe.epochs=3)", "separable",
    ]  # fmt: skip
    assert any("recipes differ in epochs" in note for note in section.notes)
    # asked for alike, but of another default
    path = make("separable", 1, 0.97)
    config = OmegaConf.load(path / "config.yaml")
    config.recipe.optimizer.lr = 0.5
    OmegaConf.save(config, path / "config.yaml")
    (section,) = compare(ask(tmp_path)).sections
    assert {network.label for network in section.networks} == {
        "separable (model.width=0.5, recipe.epochs=3)",
        "separable (recipe.optimizer.lr=0.006)",
        "separable (recipe.optimizer.lr=0.5)",
    }


def test_an_option_that_came_later_is_not_named(make: Callable[..., Path], tmp_path: Path) -> None:
    """A network is named by what its run recorded, also where an option has come since, with a default."""
    make("tiny", 0, 0.99, "model.width=8", "recipe.schedule=linear")
    path = make("tiny", 0, 0.98, "model.width=8", "recipe.schedule=linear")
    config = OmegaConf.load(path / "config.yaml")
    del config.model.kernels
    config.recipe.schedule = "constant"  # by a default of its day
    OmegaConf.save(config, path / "config.yaml")
    later = make("tiny", 0, 0.97, "model.width=8", "recipe.schedule=linear")
    config = OmegaConf.load(later / "config.yaml")
    config.model.kernels = "torch"
    OmegaConf.save(config, later / "config.yaml")
    (section,) = compare(ask(tmp_path)).sections
    options = "model.width=8, recipe.schedule=linear"
    assert {network.label for network in section.networks} == {
        f"tiny ({options}) (model.kernels=auto, recipe.schedule=linear)",
        f"tiny ({options}) (recipe.schedule=constant)",
        f"tiny ({options}) (model.kernels=torch, recipe.schedule=linear)",
    }


def test_what_cannot_be_compared(make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]) -> None:
    make("baseline", 0, 0.99)
    gpu = make("separable", 0, 0.99, device={"kind": "cuda", "name": "NVIDIA H100"})
    (section,) = compare(ask(tmp_path)).sections
    assert not section.timed
    assert any("AMD EPYC" in note and "NVIDIA H100" in note for note in section.notes)
    assert section.figure(section.reference, "fit_seconds") is None
    assert section.figure(section.reference, "macs") == MACS["baseline"]
    assert all("fit_seconds" not in network.front for network in section.networks)

    outcome = command("compare", tmp_path / "runs", f"output={tmp_path / 'out'}")
    assert outcome.status == 0, outcome.err
    assert "times are not compared" in outcome.out
    shutil.rmtree(gpu)
    make("separable", 0, 0.99, "data.split_seed=5", split=5)
    refused(command("compare", tmp_path / "runs"), "different images cannot be compared",
            "train images, validation images of mnist differ", "split_seed 0 and 5")  # fmt: skip


def test_runs_on_the_same_images_are_told_by_their_digests(make: Callable[..., Path], tmp_path: Path) -> None:
    """Another place, or another way to the same split, does not matter; other classes or fewer images do."""
    make("baseline", 0, 0.99)
    make("baseline", 1, 0.99, f"data.root={tmp_path}", "data.validation=6000")
    (section,) = compare(ask(tmp_path)).sections
    assert list(section.reference.runs) == [0, 1]
    for difference, word in (
        ({"classes": list("1023456789")}, "classes of mnist"),
        ({"images": {"train": 55_000, "validation": 5_000, "test": 512}}, "test images of mnist"),
    ):
        other = make("tiny", 0, 0.99, **difference)
        with pytest.raises(InputError, match=word):
            compare(ask(tmp_path))
        shutil.rmtree(other)


def test_what_differs_beside_the_network_is_named(make: Callable[..., Path], tmp_path: Path) -> None:
    make("baseline", 0, 0.99, step="graph", precision="32-true")
    make("separable", 0, 0.99)
    (section,) = compare(ask(tmp_path)).sections
    assert "trainer.step differs (eager: separable; graph: baseline)" in section.notes
    assert "precision differs (32-true: baseline; bf16-mixed: separable)" in section.notes
    assert not any("torch differs" in note for note in section.notes)


def test_paths(make: Callable[..., Path], tmp_path: Path) -> None:
    """Runs, folders, patterns and a multirun's folder."""
    runs = [make("baseline", seed, 0.99) for seed in range(3)]
    folder = tmp_path / "multirun"
    folder.mkdir()
    (folder / "runs.txt").write_text(f"{runs[0]}\n{os.path.relpath(runs[2], folder)}\n")  # older lists, and ours
    odd = tmp_path / "odd [0-9]*?"
    odd.mkdir()
    shutil.copytree(runs[1], odd / "run")
    for paths, seeds in {
        (str(runs[1]),): [1],
        (str(runs[1] / "result.json"), str(runs[1])): [1],
        (f"{tmp_path}/runs/*/*/*seed[02]",): [0, 2],
        (str(folder),): [0, 2],
        (str(tmp_path),): [0, 1, 2],
        (str(odd),): [1],
    }.items():
        (section,) = compare(ask(tmp_path, runs=list(paths))).sections
        assert list(section.reference.runs) == seeds


def test_a_reference_among_namesakes(make: Callable[..., Path], tmp_path: Path) -> None:
    """A network whose whole label is the name comes before those whose model alone has it."""
    make("separable", 0, 0.98, "model.width=0.5")
    make("separable", 0, 0.99)
    for name in ("separable", "separable (model.width=0.5)"):
        (section,) = compare(ask(tmp_path, runs=[str(tmp_path)], reference=name)).sections
        assert {network.label for network in section.networks} == {"separable", "separable (model.width=0.5)"}
        assert section.reference.label == name


def test_throughput_names_both_parts(make: Callable[..., Path], tmp_path: Path) -> None:
    """Also where the first network has no rate of training, as an exported file has none."""
    make("baseline", 0, 0.99, train_images_per_second=None)
    make("separable", 0, 0.98)
    (section,) = compare(ask(tmp_path)).sections
    _, names = draw_throughput(section).axes[0].get_legend_handles_labels()
    assert names == ["training", "evaluation"]


def test_a_multirun_that_was_moved(make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]) -> None:
    """Its runs are found where they were moved with it; one that is not there is missing, not unfinished."""
    run, gone = make("baseline", 0, 0.99), make("baseline", 1, 0.99)
    folder = tmp_path / "runs/multirun/one"
    folder.mkdir(parents=True)
    (folder / "runs.txt").write_text("".join(f"{os.path.relpath(each, folder)}\n" for each in (run, gone)))
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere" / gone.relative_to(tmp_path / "runs"))
    comparison = compare(ask(tmp_path, runs=[str(tmp_path / "elsewhere/multirun/one")]))
    assert list(comparison.sections[0].reference.runs) == [0]
    assert not comparison.unfinished
    assert [path.name for path in comparison.missing] == [gone.name]
    outcome = command("compare", tmp_path / "elsewhere/multirun/one", f"output={tmp_path / 'out'}")
    assert f"missing, left out: {comparison.missing[0]}" in outcome.out


def test_bad_input(make: Callable[..., Path], tmp_path: Path, command: Callable[..., Outcome]) -> None:
    refused(command("compare"), "give runs to compare")
    refused(command("compare", tmp_path / "nowhere"), "nowhere is not there")
    refused(command("compare", tmp_path), "no finished run")
    run = make("baseline", 0, 0.99)
    refused(command("compare", run, "reference=nonsense"), "unknown reference=nonsense", "baseline")
    refused(command("compare", run, "target=2"), "target=2", "out of range")
    refused(command("compare", run, "output=/dev/null/x"), "cannot write", "output=")
    (run / "result.json").write_text("{")
    refused(command("compare", run), f"{run}/result.json is not JSON")


def test_report_of_trained_runs(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """A multirun from the command line to the report, whose figures are the runs' own and whose page stands alone."""
    short = ["recipe.epochs=2", "trainer=cpu", "trainer.limit_batches=4", f"runs={tmp_path}/runs"]
    outcome = command("train", "-m", "model=baseline,tiny", "seed=0,1", *short)
    assert outcome.status == 0, outcome.err
    (multirun,) = (tmp_path / "runs/multirun").iterdir()
    out = tmp_path / "a report"
    outcome = command("compare", multirun, f"output={out}", "reference=tiny")
    assert outcome.status == 0, outcome.err
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    configurations = defaultdict(set)
    for row in rows:
        run = tmp_path / "runs" / row["run"]
        result = json.loads((run / "result.json").read_text())
        assert float(row["test_accuracy"]) == result["test_accuracy"]
        assert float(row["fit_seconds"]) == result["fit_seconds"]
        assert (row["torch"], row["commit"]) == (torch.__version__, result["git"]["sha"])
        assert row["dirty"] == str(result["git"]["dirty"])
        # all but where files lie on this machine
        assert [*json.loads(row["overrides"]), short[-1]] == sorted(result["overrides"], key=short[-1].__eq__)
        assert f"seed={row['seed']}" in result["overrides"]
        configurations[row["network"]].add(row["configuration"])
        predicted, labels = np.load(run / "predictions.npy")
        assert np.mean(predicted == labels) == pytest.approx(result["test_accuracy"], abs=1e-6)
        dataset = load(data_config("digits"))
        assert labels.tolist() == dataset.labels[dataset.test].tolist()
    assert [len(hashes) for hashes in configurations.values()] == [1, 1]  # one for both seeds
    assert configurations["baseline"] != configurations["tiny"]
    # as a record, they say on its page what ran
    records = tmp_path / "benchmarks"
    records.mkdir()
    shutil.copy(out / "runs.csv", records / "new-runs.csv")
    text = page(records, tmp_path)
    options = "recipe.epochs=2 trainer=cpu trainer.limit_batches=4"
    assert f"| baseline | model=baseline {options} | 2 | " in text
    assert f"| tiny | model=tiny {options} | 2 | " in text
    with (out / "networks.csv").open() as file:
        networks = {row["network"]: row for row in csv.DictReader(file)}
    values = [float(row["test_accuracy"]) for row in rows if row["network"] == "baseline"]
    assert float(networks["baseline"]["test_accuracy"]) == pytest.approx(sum(values) / 2)
    assert networks["baseline"]["reference"] == "tiny"
    report = (out / "report.html").read_text()
    assert report.count("<svg") == 4
    assert not re.search(r"(src|href)=\"https?:", report)
    links = [unquote(html.unescape(link)) for link in re.findall(r'href="([^"#]+config\.yaml)"', report)]
    assert len(links) == 4
    assert all((out / link).is_file() for link in links)
    assert "is right more often than tiny on " in report
    assert float(networks["baseline"]["low"]) < float(networks["baseline"]["high"]) <= 1
    for name in ("accuracy", "curves", "differences", "throughput"):
        assert (out / f"digits-{name}.png").stat().st_size > 10_000
        assert f"digits-{name}.png" in (out / "report.md").read_text()
    assert "baseline" in (out / "report.md").read_text()


def test_claims_take_runs_on_their_own_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "hash_code", lambda code: "of this commit")
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        claims = read(ClaimsConfig, compose("claims", ["data=digits", "trainer=cpu", f"runs={tmp_path}"]))
    dataset = load(claims.data)
    digests = dataset.digests()
    for seed, changes in enumerate(({}, {"test": "other"}, {"train": "other"})):
        result = figures(seed=seed) | {"data": "digits", "digests": digests | changes}
        write_run(tmp_path / str(seed), configuration("data=digits", f"seed={seed}"), [], result)
    assert [run.config.seed for run in Lab(claims, dataset).runs.values()] == [0]


def test_torch_is_not_waited_for() -> None:
    code = "import sepconv.study.compare, sepconv.study.report, sys; print({'torch', 'lightning'} & sys.modules.keys())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


def test_networks_that_were_not_trained(make: Callable[..., Path], tmp_path: Path) -> None:
    """A separated run, which was not trained, has no time of training to be compared."""
    make("baseline", 0, 0.99)
    make("separable", 0, 0.99, history=[], fit_seconds=0.0, train_images_per_second=None)
    (section,) = compare(ask(tmp_path)).sections
    separated = network(section.networks, "separable")
    assert section.figure(separated, "fit_seconds") is None
    assert separated.reached == 0
