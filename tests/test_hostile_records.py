"""Records and names that are wrong, or meant to do harm: a line says so, and what is shown of them is only text."""

import html
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from conftest import Outcome, refused
from recorded import configuration, figures, write_run

from sepconv import InputError
from sepconv.config.keys import CompareConfig, RecipeConfig
from sepconv.config.read import complete, read
from sepconv.study import report
from sepconv.study.compare import compare
from sepconv.tables import Column, Table, as_csv
from sepconv.text import code_span, escape_markdown, printable, tell_apart
from sepconv.training import dashboard
from sepconv.training.dashboard import draw_confusion, draw_mistakes
from sepconv.training.runs import read_config, read_result

HARM = "<img src=x>[a](javascript:b)|`$\\frac{$ [red]x[/]\x1b[31m\u202e\n\udcff"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return configuration("model=separable")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_accuracy": "0.9"}, 'test_accuracy is "0.9", not a number'),
        ({"test_accuracy": 1.5}, "test_accuracy=1.5 is out of range"),
        ({"test_accuracy": float("nan")}, "test_accuracy=nan is out of range"),
        ({"fit_seconds": float("inf")}, "fit_seconds=inf is out of range"),
        ({"parameters": True}, "parameters is true, not a whole number"),
        ({"parameters": 10**400}, "parameters is a very long number, not a whole number"),
        ({"macs": -1}, "macs=-1 is out of range"),
        ({"history": None}, "history is null, not a list"),
        ({"history": [{"epoch": 1, "seconds": 1.0, "val_loss": 0.1}]}, r"lacks history\[0\].val_accuracy"),
        ({"images": {"train": 1, "test": 1}}, "lacks images.validation"),
        ({"device": {"kind": "cpu", "name": ["x"]}}, "device"),
        ({"versions": {"cuda": None}}, "lacks versions.torch"),
        ({"data": "../../x"}, "data=../../x is out of range"),
        ({"data": "cifar10"}, "is of another run"),
        ({"seed": 1}, "is of another run"),
    ],
)
def test_a_wrong_figure_is_named(
    config: dict[str, Any], tmp_path: Path, command: Callable[..., Outcome], changes: dict[str, Any], words: str
) -> None:
    run = write_run(tmp_path / "runs/wrong", config, [], figures() | changes)
    write_run(tmp_path / "runs/right", config, [], figures())
    outcome = command("compare", tmp_path / "runs", f"output={tmp_path / 'out'}")
    refused(outcome, f"{run}/result.json")
    assert re.search(words, outcome.err)
    assert not (tmp_path / "out").exists()


def test_what_has_a_default_may_be_left_out(config: dict[str, Any], tmp_path: Path) -> None:
    record = figures()
    del record["git_later"], record["test_accuracy_tta"]
    result = read_result(write_run(tmp_path / "run", config, [], record))
    assert (result.git_later, result.test_accuracy_tta) == ([], None)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "data: {name: '${oc.env:SECRET}'}", "is an interpolation"),
        ("config.yaml", "'${oc.env:SECRET}': 1", "is an interpolation"),
        ("config.yaml", BOMB, "an alias or a tag"),
        ("config.yaml", "x: !!python/object/apply:os.getcwd []", "an alias or a tag"),
        ("config.yaml", "[" * 5000, "nested"),
        ("config.yaml", "seed: 1\nseed: 2", "stands there twice"),
        ("config.yaml", "x" * 10**6, "bytes"),
        ("overrides.yaml", "{a: 1}", "not a list of text"),
        ("result.json", "[" * 10**5, "nested too deeply"),
        ("result.json", '{"seed": 1, "seed": 1}', "stands there twice"),
        ("result.json", "9" * 10**5, "not a record"),
    ],
)
def test_a_hostile_file_is_refused_at_once(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, words: str
) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    run = write_run(tmp_path / "run", config, [], figures())
    (run / name).write_text(content)
    started = time.monotonic()
    with pytest.raises(InputError, match=words) as refusal:
        read_result(read_config(run)[0])
    assert str(run) in str(refusal.value)
    assert "swordfish" not in str(refusal.value)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("content", [b"a\0b", b"\xff", b"x\n" * 10**6, b"/etc\n.\n..\n", "\u2028\r\x1b[1m".encode()])
def test_a_list_of_runs_may_name_anything(config: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runs.txt").write_bytes(content)
    write_run(tmp_path / "run", config, [], figures())
    with pytest.raises(InputError, match=r"runs.txt|no finished run \(\d missing\)"):
        compare(CompareConfig(runs=[str(tmp_path)]))


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_what_is_no_file_is_refused(config: dict[str, Any], tmp_path: Path, kind: str) -> None:
    run = write_run(tmp_path / "run", config, [])
    path = run / "result.json"
    {"pipe": os.mkfifo, "directory": Path.mkdir, "link": lambda path: path.symlink_to("nowhere")}[kind](path)
    with pytest.raises(InputError, match="cannot be read"):
        read_result(run)


def test_arguments_are_not_resolved(config: dict[str, Any], tmp_path: Path) -> None:
    """What was typed may have an interpolation; it stays as it was typed."""
    run = write_run(tmp_path / "run", config, [])
    (run / "overrides.yaml").write_text("['seed=${oc.env:HOME}']")
    assert read_config(run)[2] == ["seed=${oc.env:HOME}"]


def test_a_checkpoints_values_are_plain(config: dict[str, Any]) -> None:
    for model in ({}, {"name": ["x"]}, {"name": "separated"}, {"name": "separated", "base": {"name": 1}}, 5):
        with pytest.raises(InputError, match="a network"):
            complete(model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="interpolation"):
        read(RecipeConfig, config["recipe"] | {"schedule": "${oc.env:HOME}"})


def test_text_is_shown_as_it_is() -> None:
    assert printable("Käfer\x1b[1m\u202e\n\udcff") == "Käfer\\x1b[1m\\u202e\\n\\udcff"
    assert tell_apart(["cat", "c\u0430t", "Käfer"]) == ["cat", "c\\u0430t", "Käfer"]
    assert tell_apart(["\u00e9", "e\u0301"]) == ["\\xe9", "e\\u0301"]
    assert escape_markdown("<b>[a](b) mobilenet_v2 _c_ < 1") == "\\<b>\\[a\\](b) mobilenet_v2 \\_c\\_ < 1"
    assert code_span("a`b") == "`` a`b ``"
    cells = as_csv([{"a": text} for text in ("=1+1", "-2.5", "@x", -1, "a\tb", "-")]).split()
    assert cells == ["a", "'=1+1", "-2.5", "'@x", "-1", "a\\tb", "'-"]
    assert Table("", [Column("a|b", str)], ["c|d"]).markdown() == ["| a\\|b |", "| --- |", "| c\\|d |"]


def test_a_report_obeys_nothing(config: dict[str, Any], tmp_path: Path, command: Callable[..., Outcome]) -> None:
    folder = tmp_path / "runs" / "javascript:alert(1)" / os.fsdecode(b"[b]\xff\n$x$")
    for name, accuracy in ((HARM[:20], 0.98), (HARM[::-1], 0.99)):
        names = {"device": {"kind": "cpu", "name": name + HARM}, "versions": {"torch": HARM}, "precision": HARM}
        model = config["model"] | {"width": accuracy}
        run = folder / str(accuracy)
        result = figures(accuracy=accuracy) | names | {"overrides": [HARM], "step": HARM}
        write_run(run, config | {"model": model}, [f"x={name}{HARM}"], result)
    out = tmp_path / "runs" / "javascript:alert(1)" / ".." / "out"
    outcome = command("compare", str(folder.parent), f"output='{out}'")
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    texts = {path.name: path.read_text() for path in out.iterdir() if path.suffix != ".png"}
    assert all(text.replace("\n", "").isprintable() for text in (outcome.out, *texts.values()))
    assert not re.search(r"<img|href=\"javascript", texts["report.html"])
    assert not re.search(r"(?<!\\)<img|(?<!\\)\]\(javascript", texts["report.md"])
    links = [unquote(html.unescape(link), errors="surrogateescape") for link in
             re.findall(r'href="([^"#]+)"', texts["report.html"])]  # fmt: skip
    assert len(links) == 2
    assert all((out / link).is_file() for link in links)
    assert (out / "mnist-accuracy.png").is_file()


def test_tables_outlive_a_picture(
    config: dict[str, Any], tmp_path: Path, command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = write_run(tmp_path / "run", config, [], figures())

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("sepconv.study.plots.draw_curves", fail)
    outcome = command("compare", run, f"output={tmp_path / 'out'}")
    assert outcome.status == 0
    assert "the picture of curves on mnist could not be written (RuntimeError: no ink)" in caplog.messages
    assert (tmp_path / "out/report.html").read_text().count("<svg") == 2
    monkeypatch.setattr(report, "draw_section", fail)
    with pytest.raises(RuntimeError):
        command("compare", run, f"output={tmp_path / 'later'}")
    assert {path.name for path in (tmp_path / "later").iterdir()} == {
        "networks.csv", "report.html", "report.md", "runs.csv",
    }  # fmt: skip
    monkeypatch.setattr("sepconv.costs.plots.draw_receptive_fields", fail)
    with pytest.raises(RuntimeError):
        command("cost", "model=tiny", f"receptive_field={tmp_path / 'field.png'}")


def test_class_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = [printable(name) for name in ("$x_", "$\\frac{1}{$", "_a", "[b]", HARM)]
    labels = torch.arange(5).repeat(2)
    probabilities = torch.eye(5)[[1, 2, 3, 4, 0] * 2]
    draw_confusion(probabilities.argmax(1), labels, names).savefig(tmp_path / "confusion.png")
    images = torch.zeros(10, 8, 8, 1, dtype=torch.uint8)
    draw_mistakes(probabilities, images, labels, names).savefig(tmp_path / "mistakes.png")


def test_a_training_outlives_its_pictures(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    for name in ("draw_confusion", "grid", "layer_markdown"):
        monkeypatch.setattr(dashboard, name, fail)
    run = train("recipe.epochs=2", "trainer.limit_batches=2", "model=tiny")
    assert json.loads((run / "result.json").read_text())["epochs"] == 2
    lines = [line for line in (run / "train.log").read_text().splitlines() if "no ink" in line]
    assert [re.sub(r".*terminal: ", "", line) for line in lines] == [
        f"{what} could not be written (RuntimeError: no ink)" for what in (
            "the cost of each layer", "the pictures of training images", "the pictures of filters",
            "the confusion matrix",
        )
    ]  # fmt: skip
