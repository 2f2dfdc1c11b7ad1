"""The claims: their exact part, the verdict's logic, and, as a slow test, all of them on digits."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Outcome, data_config, refused
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from recorded import configuration, figures, write_run
from test_frontier import make_record
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sepconv import InputError, Stopped
from sepconv.config.keys import ClaimsConfig, TrainConfig
from sepconv.config.read import read
from sepconv.costs import roofline
from sepconv.costs.roofline import Machine
from sepconv.data.datasets import load
from sepconv.data.module import ImageData
from sepconv.files import lock
from sepconv.networks.blocks import ConvNormActivation, depthwise_separable
from sepconv.reading import read_json
from sepconv.study.claims import CLAIMS, arithmetic, lab, sentence
from sepconv.study.claims.finding import (
    Accuracies,
    Cell,
    Losses,
    Number,
    Paired,
    conclude,
    find_cases,
    judge,
    read_cell,
    write_cell,
)
from sepconv.study.claims.layers import CHANNELS, training_calls, training_pass
from sepconv.study.claims.report import claims_page, write_findings
from sepconv.study.frontier.record import make_training
from sepconv.study.statistics import Difference, Estimate
from sepconv.training import runs
from sepconv.training.classifier import ImageClassifier


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The code that a test runs by, which it can change: that of a commit, whatever the checkout is in."""
    state: dict[str, Any] = {"sha": "0" * 40, "dirty": False}
    monkeypatch.setattr(runs, "current_code", state.copy)
    monkeypatch.setattr(runs, "hash_code", lambda code: None if code["dirty"] is not False else code["sha"])
    return state


def test_closed_forms(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """C1 to C6 hold exactly, and the report says so in order; a later run adds to it."""
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu"]
    assert command("claims", "only=[C4,C5,C6]", *arguments).status == 0
    outcome = command("claims", "only=[C1,C2,C3]", *arguments)
    assert outcome.status == 0, outcome.err
    findings = json.loads((tmp_path / "claims/digits.json").read_text())
    assert set(findings) == {"C1", "C2", "C3", "C4", "C5", "C6"}
    for name in ("C1", "C2", "C3", "C4", "C6"):
        assert findings[name]["verdict"] == "true"
    assert findings["C5"]["verdict"].startswith("true when C_out is large")
    report = (tmp_path / "claims.md").read_text()
    places = [report.index(f"\n## {name}\n") for name in CLAIMS]
    assert places == sorted(places)
    assert report.count("not yet measured") >= 8
    assert "| standard | 108 | 972 | 108 | 972 |" in report
    assert findings["C6"]["rows"][0] == ["standard", 108, 972, 108, 972]
    assert findings["C5"]["seeds"] is None
    assert "seeds, " not in report


def test_depth_and_stem_claims_from_trained_networks(
    command: Callable[..., Outcome], tmp_path: Path, code: dict[str, Any]
) -> None:
    """A claim trains its networks once: asked again, it finds the runs. Its record has what each of them came to."""
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu", "recipe.epochs=2",
                 "stem_seeds=[0,1]", "seeds=[0,1]"]  # fmt: skip
    outcome = command("claims", "only=[C14]", *arguments)
    assert outcome.status == 0, outcome.err
    results = sorted(tmp_path.glob("runs/digits/separable/*/result.json"))
    assert len(results) == 4
    by_run = {(result["configuration"], result["seed"]): path for path in results if (result := read_json(path))}
    first = json.loads((tmp_path / "claims/digits.json").read_text())["C14"]
    assert {row[0]: row[1] for row in first["rows"]} == {"standard": 29_738, "separable": 29_493}
    right: dict[str, list[Any]] = {}
    assert len(first["runs"]) == 4
    for run in first["runs"]:
        path = by_run[run["configuration"], run["seed"]]
        result = read_json(path)
        assert {key: result[key] for key in run.keys() & result.keys() - {"model"}} == {
            key: run[key] for key in run.keys() & result.keys() - {"model"}
        }
        predicted, known = np.load(path.parent / runs.PREDICTIONS)
        right.setdefault(run["model"]["stem"], []).append(predicted == known)
        assert right[run["model"]["stem"]][-1].mean() == pytest.approx(run["test_accuracy"], abs=runs.ROUNDED)
    assert first["runs"][0]["git"] == first["git"] == code
    accuracies = {stem: Accuracies.of(seeds) for stem, seeds in right.items()}
    assert [row[3] for row in first["rows"]] == [asdict(each) for each in accuracies.values()]
    pair = first["rows"][0][4]
    assert (pair["values"], pair["references"]) == tuple(map(asdict, accuracies.values()))
    again = command("claims", "only=[C14]", *arguments)
    assert again.status == 0
    assert "4 of this code, used again; 0 of other code" in again.out
    assert sorted(tmp_path.glob("runs/digits/separable/*/result.json")) == results
    found = json.loads((tmp_path / "claims/digits.json").read_text())["C14"]
    assert found["rows"] == first["rows"]
    assert (found["seeds"], found["epochs"]) == (first["seeds"], first["epochs"]) == (2, 2)
    text = (tmp_path / "claims.md").read_text()
    assert "n = 2 seeds, 2 epochs" in text
    assert "by seeds alone" not in text.partition("| [C1]")[2]
    difference = Difference.crossed(*(each.by_image for each in accuracies.values()))
    assert f"| {write_cell(accuracies['standard'])} | {difference.points()} |" in text


@pytest.mark.slow
def test_loss_in_int8(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """Of networks of equal widths and of equal parameters, with both kinds of scales; what is lost adds up."""
    pytest.importorskip("onnxruntime")
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu", "recipe.epochs=2", "seeds=[0,1]"]
    outcome = command("claims", "only=[C15]", *arguments)
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "claims/digits.json").read_text())["C15"]
    names, parameters, scales, fp32, int8, lost, more = zip(*found["rows"], strict=True)
    assert names == ("separable", "dense, as wide", "dense, of as many parameters") * 2
    assert parameters[:3] == (29_738, 223_530, pytest.approx(29_738, rel=0.05))
    assert scales == ("for each layer",) * 3 + ("for each channel",) * 3
    assert fp32[:3] == fp32[3:]
    assert [(pair["values"], pair["references"]) for pair in lost] == list(zip(fp32, int8, strict=True))
    for place, pair in enumerate(more):
        if place % 3:
            assert (pair["values"], pair["references"]) == (lost[place - place % 3], lost[place])
    trained = [run["test_accuracy"] for run in found["runs"]]
    alike = [accuracy for each in fp32[:3] for accuracy in Accuracies(**each).by_image.mean(1)]
    assert trained == pytest.approx(alike, abs=0.02)  # those are in bf16, where there is it


def test_depth_is_read_off_the_frontier(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """Of a record that has all of both kinds; its accuracies are kept as they are there."""
    arguments = ["only=[C7]", f"output={tmp_path}", f"runs={tmp_path}/runs", f"frontier={tmp_path}", "trainer=cpu"]
    refused(command("claims", *arguments), "digits.json is not there", "python scripts/frontier.py data=digits")
    outcome = command("claims", "only=[C7,C2]", *arguments[1:])
    refused(outcome, "digits.json is not there")
    assert "C2" in (tmp_path / "claims/digits.json").read_text()  # what comes after it is tested all the same
    make_record(dense=0.0).write(tmp_path / "digits.json")  # without the deeper networks
    refused(command("claims", *arguments), "is not complete", "python scripts/frontier.py data=digits")
    record = make_record(dense=0.05, deep_separable=-0.05)
    row = record.rows.pop(make_training(record.of_kind("dense")[0], 0.01, 2))
    record.write(tmp_path / "digits.json")
    refused(command("claims", *arguments), "is not complete", "python scripts/frontier.py data=digits")
    record.rows[row.training] = row
    record.write(tmp_path / "digits.json")
    assert command("claims", *arguments).status == 0
    found = json.loads((tmp_path / "claims/digits.json").read_text())["C7"]
    assert "at equal MACs, deeper separable is better at 1 k to 100 k parameters" in found["verdict"]
    assert [cells[0] for cells in found["rows"]] == ["deeper separable"] * 3 + ["dense"] * 3
    assert Accuracies(**found["rows"][3][3]).by_image.mean(1) == pytest.approx([0.548, 0.55, 0.552])


@pytest.mark.parametrize("change", [{"sha": "1" * 40}, {"dirty": True}])
def test_runs_of_other_code_are_left_aside(
    command: Callable[..., Outcome], tmp_path: Path, code: dict[str, Any], change: dict[str, Any]
) -> None:
    """Nor is a stopped one continued, and what the same command found by it is found anew."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = read(ClaimsConfig, compose("claims", ["data=digits", "trainer=cpu", f"runs={tmp_path}/runs"]))
    dataset = load(config.data)
    finished = figures() | {"data": "digits", "digests": dataset.digests()}
    for seed, (git, later) in enumerate([(code, []), (code | change, []), (code, [code | change])]):
        result = finished | {"seed": seed, "git": git, "git_later": later}
        write_run(tmp_path / "runs" / str(seed), configuration("data=digits", f"seed={seed}"), [], result)
    for seed, git in ((3, code), (4, code | change)):
        path = write_run(tmp_path / "runs" / str(seed), configuration("data=digits", f"seed={seed}"), [])
        runs.write_code(path, [git])
    subject = lab.Lab(config, dataset)
    assert [run.config.seed for run in subject.runs.values()] == [0]
    assert [path.name for path in subject.stopped.values()] == ["3"]

    arguments = ["only=[C2]", f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu"]
    outcome = command("claims", *arguments)
    assert "1 of this code, used again; 2 of other code" in outcome.out
    marker = {"command": f"python scripts/claims.py {shlex.join(arguments)}", "code": code["sha"], "claims": ["C2"]}
    for state, words in ((code | change, "true ("), (code.copy(), "found before the stop")):
        code |= state
        (tmp_path / "claims/digits.unfinished").write_text(json.dumps(marker))
        assert words in command("claims", *arguments).out
    # code that was not committed is like no other, not even itself
    code["dirty"] = True
    assert not lab.Lab(config, dataset).runs


def test_stopped_claims_go_on(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: dict[str, Any]
) -> None:
    """What was found is not tested again, and a training that was stopped is continued."""
    arguments = ["only=[C2,C14]", "trainer=cpu", "recipe.epochs=2", "stem_seeds=[0,1]", "data.train=200"]
    stopped = [f"output={tmp_path}", f"runs={tmp_path}"]
    epochs = []

    def interrupt(self: ImageClassifier) -> None:
        epochs.append(self.current_epoch)
        if len(epochs) == 6:  # the third training's second
            raise Stopped(status=143)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_end", interrupt)
        outcome = command("claims", *arguments, *stopped)
    assert outcome.status == 143, outcome
    assert "the same command goes on" in outcome.err
    assert json.loads((tmp_path / "claims/digits.json").read_text())["C2"]["verdict"] == "true"
    monkeypatch.setitem(CLAIMS, "C2", lambda lab: pytest.fail("tested again"))
    with lock(tmp_path / "claims", "written"):  # two commands at once would drop each other's findings
        refused(command("claims", *arguments, *stopped), "is being written by another process")
    outcome = command("claims", *arguments, *stopped)
    assert outcome.status == 0, outcome.err
    assert len(list(tmp_path.glob("digits/separable/*"))) == 4
    assert not list(tmp_path.glob("claims/*.unfinished"))
    monkeypatch.setitem(CLAIMS, "C2", arithmetic.depthwise_cost)
    assert "found before the stop" not in command("claims", "only=[C2]", *stopped).out  # asked again, tested again


def test_a_stop_while_a_picture_is_drawn(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: dict[str, Any]
) -> None:
    """The claim has its picture when the command has gone on."""

    def stop(*_: object, **__: object) -> None:
        raise Stopped(status=143)

    arguments = ["only=[C11]", f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", stop)
        assert command("claims", *arguments).status == 143
    assert command("claims", *arguments).status == 0
    assert json.loads((tmp_path / "claims/digits.json").read_text())["C11"]["plot"]
    assert (tmp_path / "claims/digits-C11.png").is_file()


def test_a_picture_that_fails_is_a_line(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu"]
    assert command("claims", "only=[C11]", *arguments).status == 0
    assert "the picture of C11 could not be written (ZeroDivisionError" in caplog.text
    finding = json.loads((tmp_path / "claims/digits.json").read_text())["C11"]
    assert finding["rows"]
    assert not finding["plot"]
    assert ".png" not in (tmp_path / "claims.md").read_text()


# of two networks: what each of three seeds is right about
RIGHT = np.random.default_rng(0).random((2, 3, 400)) < np.array([0.9, 0.8])[:, None, None]


def test_accuracies_know_their_images() -> None:
    """What depends on which images they are counts, also in a difference of differences, which goes from -2 to 2."""
    ours, theirs = map(Accuracies.of, RIGHT)
    assert ours.by_image.mean(1) == pytest.approx(RIGHT[0].mean(1))
    pair, swapped = Paired(ours, theirs), Paired(theirs, ours)
    seeds = Difference.between(*(each.by_image.mean(1).tolist() for each in (ours, theirs)))
    assert pair.difference.estimate.mean == pytest.approx(seeds.estimate.mean)
    assert pair.difference.estimate.arms != pytest.approx(seeds.estimate.arms)
    double = Paired(pair, swapped)
    assert (pair.limits, double.limits) == ((-1, 1), (-2, 2))
    assert double.difference.estimate.mean == pytest.approx(2 * seeds.estimate.mean)
    assert read_cell(json.loads(json.dumps(asdict(double)))) == double
    everything, nothing = (Accuracies.of(np.full((2, 9), value)) for value in (True, False))
    most = Paired(Paired(everything, nothing), Paired(nothing, everything)).difference.estimate
    assert most.mean == 2
    assert most.high == 2
    with pytest.raises(InputError):
        _ = Paired(ours, [0.9, 0.8, 0.7]).difference


def test_cells() -> None:
    """They are written the same once they were kept in a file."""
    cells: dict[str, Cell] = {
        "as it is": "as it is", "29,738": 29_738, "45.1%": Number(0.4512, ".1%"),
        "78.00 ± 12.71 %": [0.77, 0.79], "98.00 % (85.29 to 100.00)": [0.97, 0.99],
        "+1.00, p -": Paired([0.98], [0.97], "it is so"),
        Estimate.crossed(RIGHT[0]).percent(): Accuracies.of(RIGHT[0]),
        Difference.crossed(*RIGHT).points(): Paired(Accuracies.of(RIGHT[0]), Accuracies.of(RIGHT[1])),
        "0.110 ± 0.127": Losses([0.1, 0.12]), "+0.110, p -": Paired([0.21, 0.22], [0.1, 0.11], losses=True),
    }  # fmt: skip
    for text, cell in cells.items():
        kept = asdict(cell) if isinstance(cell, Number | Losses | Accuracies | Paired) else cell
        assert write_cell(read_cell(json.loads(json.dumps(kept)))) == text
    pair, other = Paired([0.99, 0.98], [0.97, 0.961], "a"), Paired([0.9, 0.8], [0.97, 0.2])
    assert find_cases([["x", pair], [other]]) == {"a": pair}


@pytest.mark.parametrize("change", [{"runs": None}, {"git": 5}, {"rows": [[{"values": [0.5], "references": []}]]}])
def test_what_is_no_record_of_findings(tmp_path: Path, change: dict[str, Any]) -> None:
    """One that has formatted text alone, as they had before, does not say what it rests on."""
    record = {"how": "", "headings": [""], "rows": [["98.90 ± 0.15 %"]], "verdict": "true", "plot": False,
              "seeds": None, "epochs": None, "runs": [], "git": {"sha": "a", "dirty": False}, "date": "",
              "device": "", "torch": "", "command": ""}  # fmt: skip
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/digits.json").write_text(json.dumps({"C1": record}))
    assert "98.90 ± 0.15 %" in claims_page(tmp_path, {"C1": "It is so."})
    broken = {key: value for key, value in (record | change).items() if value is not None or key in ("seeds", "epochs")}
    (tmp_path / "claims/digits.json").write_text(json.dumps({"C1": broken}))
    with pytest.raises(InputError, match=r"digits.json is not a record of its kind"):
        claims_page(tmp_path, {"C1": "It is so."})


class Counter(TorchDispatchMode):
    """Adds up torch's own count of each operation; FlopCounterMode does not take torch.autograd.grad."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def test_layers_in_training_count_what_is_timed() -> None:
    """C12: the input's gradient is computed, as within a network, so that it is counted; torch's counter agrees."""
    cpu, ratios = torch.device("cpu"), []
    for channels in CHANNELS:
        flops = {}
        for name, block in (("dense", ConvNormActivation), ("separable", partial(depthwise_separable, between=False))):
            net = block(channels, channels, norm_layer=None, activation_layer=None)
            calls = training_calls(net, channels, 2, "fp32", cpu)
            flops[name] = sum(call.flop for call in calls)
            if name == "dense" and channels <= 32:
                timed = training_pass(net, channels, 2, "fp32", cpu)
                with Counter() as counter:
                    timed()
                assert counter.flops == flops[name]
        ratios.append(round(flops["dense"] / flops["separable"], 2))
    assert ratios == [4.24, 5.76, 7.02, 7.89, 8.41, 8.69, 8.84]  # 1 / (1/C + 1/9)


def test_a_share_above_a_peak_is_no_finding(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Machine({"kind": "cpu", "name": "paper", "threads": 1}, {1: 1.0}, {"fp32": 1.0, "bf16": 1.0})
    monkeypatch.setattr(roofline, "measure_machine", lambda device: slow)
    monkeypatch.setattr(roofline, "REPEATS", 1)
    monkeypatch.setattr("sepconv.study.claims.layers.CHANNELS", (8,))
    outcome = command("claims", "only=[C12]", f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu")
    refused(outcome, "the measurement is wrong", "measure again")
    assert "C12" not in "".join(path.read_text() for path in tmp_path.glob("claims/*.json"))


BETTER = Paired([0.99, 0.98, 0.985], [0.97, 0.961, 0.964])
WORSE = Paired([0.97, 0.961, 0.964], [0.99, 0.98, 0.985])
ALIKE = Paired([0.97, 0.98, 0.99], [0.98, 0.97, 0.99])
SAME = Paired([0.98, 0.97, 0.96], [0.9801, 0.9699, 0.96])


def test_verdicts() -> None:
    """True, false and equal by corrected p-values; losses are never called equal."""
    cases = {"a": BETTER, "b": ALIKE, "c": WORSE, "d": SAME, "e": Paired(SAME.values, SAME.references, losses=True)}
    assert judge(cases) == {"a": "true", "b": "not shown", "c": "false", "d": "equal", "e": "not shown"}
    assert judge({"d": SAME}) == {"d": "equal"}
    assert judge({}) == {}


def test_verdicts_are_corrected_for_all_claims_of_a_data_set() -> None:
    """What a case alone shows is not shown among many, whichever claims they are of."""
    assert BETTER.difference.p is not None
    others = round(0.05 / BETTER.difference.p) + 1

    def write(name: str, *pairs: Paired) -> dict[str, Any]:
        rows = [[asdict(Paired(pair.values, pair.references, f"{name}{i}"))] for i, pair in enumerate(pairs)]
        return {"how": "", "headings": [""], "rows": rows, "verdict": "{cases}", "plot": False, "seeds": None,
                "epochs": None, "runs": [], "git": {"sha": "a", "dirty": False}, "date": "", "device": "", "torch": "",
                "command": ""}  # fmt: skip

    assert write_findings({"C9": write("a", BETTER)})["C9"].verdict == "true"
    both = write_findings({"C9": write("a", BETTER), "C10": write("b", *[ALIKE] * others)})
    assert both["C9"].verdict == "not shown"


def test_conclusions() -> None:
    assert conclude("less: {cases}; more: false", {"a": "true", "b": "true"}) == "less: true; more: false"
    assert conclude("{cases}", {"a": "true", "b": "not shown"}) == "true when a; not shown when b"
    assert conclude("{cases}", {"a": "false", "b": "equal"}) == "false when a; equal to within 0.1 point when b"
    assert conclude("{cases}", {"a": "true", "b": "false"}) == "true when a; the opposite when b"
    assert conclude("{cases}", {"a": "not shown", "b": "not shown"}) == "not shown"
    assert conclude("true", {}) == "true"


def test_training_on_a_part_keeps_the_rest_as_it_is() -> None:
    whole, part = load(data_config("digits")), load(data_config("digits", train=100))
    assert len(part.train) == 100
    assert set(part.train.tolist()) < set(whole.train.tolist())
    assert part.validation.tolist() == whole.validation.tolist()
    assert part.test.tolist() == whole.test.tolist()
    counts = part.labels[part.train].bincount(minlength=10)
    assert counts.min() >= 9
    assert counts.max() <= 11


def test_parts_of_the_images_get_as_many_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = read(ClaimsConfig, compose("claims", ["trainer=cpu", f"runs={tmp_path}"]))
    trained: list[TrainConfig] = []

    def train(config: TrainConfig, *_: Any) -> tuple[Path, SimpleNamespace]:
        trained.append(config)
        return tmp_path, SimpleNamespace(test_accuracy=0.0)

    monkeypatch.setattr(lab, "train", train)
    subject = lab.Lab(config, load(config.data))
    for size in (50, 150, 450, None):
        subject.train({"name": "separable"}, 0, size=size)
    steps = {ImageData(load(run.data), run.recipe, torch.device("cpu")).steps * run.recipe.epochs for run in trained}
    assert len(steps) == 1


def test_page_is_written_from_the_findings_alone() -> None:
    sentences = {name: sentence(test) for name, test in CLAIMS.items()}
    assert claims_page(REPOSITORY / "docs", sentences) == (REPOSITORY / "docs/claims.md").read_text()


def test_bad_input(command: Callable[..., Outcome], tmp_path: Path) -> None:
    refused(command("claims", "scale=huge"), "unknown scale=huge", "quick")
    refused(command("claims", "only=[C16]", f"output={tmp_path}"), "unknown only=C16", "C15")
    refused(command("claims", "seeds=[0]"), "seeds=[0]", "two or more")
    refused(command("claims", "only=[C1]", "output=/dev/null/x"), "cannot write", "output=")
    refused(command("train", "data.train=5000"), "data.train=5000")
    refused(command("train", "data.train=0"), "data.train=0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_claim(command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "frontier").mkdir()
    make_record(dense=0.05, deep_separable=0.0).write(tmp_path / "frontier/digits.json")
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", f"frontier={tmp_path}/frontier", "lengths=[20]"]
    outcome = command("claims", "scale=quick", *arguments, "trainer=cpu")
    assert outcome.status == 0, outcome.err
    findings = json.loads((tmp_path / "claims/digits.json").read_text())
    assert list(findings) == list(CLAIMS)
    report = (tmp_path / "claims.md").read_text()
    written = write_findings(findings)
    for name, finding in findings.items():
        assert finding["verdict"]
        assert f"**digits**: {written[name].verdict}." in report
        assert finding["rows"]
        if finding["plot"]:
            assert (tmp_path / f"claims/digits-{name}.png").stat().st_size > 5_000
    assert "Student" in report
