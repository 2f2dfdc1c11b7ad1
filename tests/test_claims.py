"""The claims: their exact part, the verdict's logic, and, as a slow test, all of them on digits."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Outcome, data_config, refused
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from sepconv import Stopped
from sepconv.config import ClaimsConfig, TrainConfig, read
from sepconv.data.datasets import load
from sepconv.data.module import ImageData
from sepconv.study.claims import CLAIMS, lab, sentence
from sepconv.study.claims.finding import judge
from sepconv.study.claims.report import claims_page
from sepconv.study.statistics import Difference
from sepconv.training.classifier import ImageClassifier


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
    assert "108, 972" in report
    assert findings["C5"]["seeds"] is None
    assert "seeds, " not in report


def test_depth_and_stem_claims_from_trained_networks(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """A claim trains its networks once: asked again, it finds the runs."""
    arguments = [f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu", "recipe.epochs=2", "seeds=[0,1]"]
    outcome = command("claims", "only=[C14]", *arguments)
    assert outcome.status == 0, outcome.err
    results = sorted(tmp_path.glob("runs/digits/separable/*/result.json"))
    assert len(results) == 4
    first = json.loads((tmp_path / "claims/digits.json").read_text())["C14"]
    assert {row[0]: row[1] for row in first["rows"]} == {"standard": "29,738", "separable": "29,493"}
    assert command("claims", "only=[C14]", *arguments).status == 0
    assert sorted(tmp_path.glob("runs/digits/separable/*/result.json")) == results
    again = json.loads((tmp_path / "claims/digits.json").read_text())["C14"]
    assert again["rows"] == first["rows"]
    assert (again["seeds"], again["epochs"]) == (first["seeds"], first["epochs"]) == (2, 2)
    assert "n = 2 seeds, 2 epochs" in (tmp_path / "claims.md").read_text()


def test_stopped_claims_go_on(command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found is not tested again, and a training that was stopped is continued."""
    arguments = ["only=[C2,C14]", "trainer=cpu", "recipe.epochs=2", "seeds=[0,1]", "data.train=200"]
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
    outcome = command("claims", *arguments, *stopped)
    assert outcome.status == 0, outcome.err
    assert len(list(tmp_path.glob("digits/separable/*"))) == 4
    assert not list(tmp_path.glob("claims/*.unfinished"))
    monkeypatch.undo()
    assert "found before the stop" not in command("claims", "only=[C2]", *stopped).out  # asked again, tested again


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


def test_verdicts() -> None:
    better = Difference.between([0.99, 0.98, 0.985], [0.97, 0.961, 0.964])
    worse = Difference.between([0.97, 0.961, 0.964], [0.99, 0.98, 0.985])
    alike = Difference.between([0.97, 0.98, 0.99], [0.98, 0.97, 0.99])
    assert judge({"a": better, "b": better}) == "true"
    assert judge({"a": better, "b": alike}) == "true when a; not shown when b: the interval holds 0"
    assert judge({"a": worse}) == "false when a"
    assert judge({"a": alike}) == "not shown when a: the interval holds 0"
    assert judge({"a": better, "b": worse}) == "true when a; the opposite when b"


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
    refused(command("claims", "only=[C15]", f"output={tmp_path}"), "unknown only=C15", "C14")
    refused(command("claims", "seeds=[0]"), "seeds=[0]", "two or more")
    refused(command("claims", "only=[C1]", "output=/dev/null/x"), "cannot write", "output=")
    refused(command("train", "data.train=5000"), "data.train=5000")
    refused(command("train", "data.train=0"), "data.train=0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_claim(command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = command("claims", "scale=quick", f"output={tmp_path}", f"runs={tmp_path}/runs", "trainer=cpu")
    assert outcome.status == 0, outcome.err
    findings = json.loads((tmp_path / "claims/digits.json").read_text())
    assert list(findings) == list(CLAIMS)
    report = (tmp_path / "claims.md").read_text()
    for name, finding in findings.items():
        assert finding["verdict"]
        assert finding["verdict"] in report
        assert finding["rows"]
        if finding["plot"]:
            assert (tmp_path / f"claims/digits-{name}.png").stat().st_size > 5_000
    assert "Student" in report
