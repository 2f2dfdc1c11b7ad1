"""The page on which two networks classify a drawing or a picture: what stands behind it, and how it is served."""

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Outcome, refused, script
from PIL import Image, ImageDraw

from sepconv import InputError
from sepconv.deployment import demo, speed
from sepconv.deployment.demo import Contender

Command = Callable[..., Outcome]
ARGUMENTS = ("trainer=cpu", "trainer.limit_batches=2", "recipe.epochs=1", "model=tiny")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The directories of a run of a separable network and of its dense twin, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("separable", "dense"):
        script("train", *ARGUMENTS, f"model.conv={kind}", f"runs={folder / kind}")
    return [str(next(folder.glob(f"{kind}/digits/tiny/*"))) for kind in ("separable", "dense")]


@pytest.fixture(scope="module")
def contenders(places: list[str]) -> list[Contender]:
    return demo.read_contenders(places)


@pytest.fixture(autouse=True)
def _quick_and_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are measured over little, and what the command sets in its process is set back."""
    monkeypatch.setattr(speed, "TURN", 0.0)
    monkeypatch.setattr(speed, "WARM", 0.0)
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def seven() -> Image.Image:
    """A digit as it is drawn on the canvas."""
    canvas = Image.new("RGB", (demo.SIDE, demo.SIDE), "white")
    line = [(80, 60), (200, 60), (130, 230)]
    ImageDraw.Draw(canvas).line(line, fill="black", width=demo.STROKE, joint="curve")
    return canvas


def as_url(drawing: Image.Image) -> str:
    """A drawing as canvas.js tells of it."""
    file = io.BytesIO()
    drawing.convert("RGBA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_drawing_is_classified_as_by_predict(
    command: Command, places: list[str], contenders: list[Contender], seven: Image.Image, tmp_path: Path
) -> None:
    """By both networks, each of which says what it was given."""
    seven.save(tmp_path / "seven.png")
    drawn = demo.read_drawing(as_url(seven))
    assert drawn is not None
    for place, contender in zip(places, contenders, strict=True):
        outcome = command("predict", f"run={place}", tmp_path / "seven.png", "format=json")
        (expected,) = json.loads(outcome.out)
        answer = contender.answer(drawn)
        assert answer.probabilities == pytest.approx(expected["probabilities"], abs=2e-6)
        assert (
            answer.changes == expected["changes"] == ["inverted", "cropped to the ink", "280 x 280 x 1 to 16 x 16 x 1"]
        )
        assert 0 < answer.seconds < 1
        assert answer.pixels.shape == (1, 16, 16)
        assert demo.enlarge(answer.pixels).size == (160, 160)
    first, second = (contender.answer(drawn).probabilities for contender in contenders)
    assert first != second


def test_networks_are_told_apart(places: list[str], contenders: list[Contender]) -> None:
    separable, dense = contenders
    assert "model.conv=separable" in separable.label
    assert "model.conv=dense" in dense.label
    for place, contender in zip(places, contenders, strict=True):
        result = json.loads((Path(place) / "result.json").read_text())
        assert demo.describe(contender.run.result).splitlines()[:2] == [
            f"{result['parameters']:,} parameters  ",
            f"{result['macs']:,} MACs  ",
        ]


@pytest.mark.slow
def test_an_exported_file_beside_its_run(
    command: Command, places: list[str], seven: Image.Image, tmp_path: Path
) -> None:
    assert command("export", f"run={places[0]}", "format=torch_export", f"output={tmp_path}").status == 0
    (file,) = tmp_path.glob("*.pt2")
    run, exported = demo.read_contenders([places[0], str(file)])
    assert (run.label, exported.label) == ("tiny", "tiny, fp32 torch_export")
    assert exported.answer(seven).probabilities == pytest.approx(run.answer(seven).probabilities, abs=1e-4)


def test_nothing_to_classify(contenders: list[Contender]) -> None:
    assert demo.read_drawing("") is None
    assert demo.show(None) == [None, "", None, ""]
    blank = Image.new("RGB", (demo.SIDE, demo.SIDE), "white")
    assert "blank" in contenders[0].answer(blank).changes


def test_dropped_pictures(seven: Image.Image, tmp_path: Path) -> None:
    """One that cannot be read is named without its folder, of which the user knows nothing."""
    seven.save(tmp_path / "x.png")
    picture, remarks = demo.read_dropped(str(tmp_path / "x.png"))
    assert (picture.size, remarks) == (seven.size, [])
    (tmp_path / "y.png").write_text("no image")
    with pytest.raises(InputError, match=r"^y\.png cannot be read as an image \(it is no BMP, "):
        demo.read_dropped(str(tmp_path / "y.png"))


@pytest.mark.slow
def test_bad_arguments(command: Command, places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_gradio", lambda: None)
    stopped = tmp_path / "stopped"
    shutil.copytree(places[0], stopped)
    (stopped / "result.json").unlink()
    for arguments, words in (
        ([f"networks=[{places[0]},nowhere]"], ["nowhere is not there", "networks=[A,B]"]),
        ([f"networks=[{places[0]}]"], ["networks=", "two"]),
        (["networks=[]"], ["networks=", "two"]),
        (["networks=null"], ["networks"]),
        ([f"networks=[{places[0]},{tmp_path}]"], [f"{tmp_path} is no run"]),
        ([f"networks=[{places[0]},{stopped}]"], ["stopped/result.json cannot be read"]),
        ([f"networks=[{','.join(places)}]", "port=70000"], ["port=70000", "65535"]),
        ([f"networks=[{','.join(places)}]", "open=perhaps"], ["open"]),
    ):
        refused(command("demo", *arguments), *words)
    read = demo.run_network
    monkeypatch.setattr(demo, "run_network", lambda path: replace(read(path), classes=[path.parts[-4]] * 10))
    refused(command("demo", f"networks=[{','.join(places)}]"), "networks of other classes", *places)


def test_without_gradio(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(command("demo"), "Gradio", "make demo", "sepconv[demo]")


def test_the_page_is_served_to_this_machine_alone(contenders: list[Contender], seven: Image.Image) -> None:
    """It answers as the networks do, its files are there, and none of them is another host's."""
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    with demo.serve(contenders, None) as address:
        assert address.startswith("http://127.0.0.1:")
        port = int(address.rpartition(":")[2])
        listening = [each.laddr for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]
        assert [at.ip for at in listening if at.port == port] == ["127.0.0.1"]
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as page:
            text = page.read().decode()
        assert "Draw a digit, and two networks say what it is" in text
        assert "fonts.googleapis.com" not in text
        cells = client.Client(address, verbose=False, analytics_enabled=False).predict(as_url(seven), api_name="/draw")
        for contender, (label, time, _, changes) in zip(contenders, (cells[:4], cells[4:]), strict=True):
            expected = contender.answer(seven).probabilities
            assert label["label"] == max(expected, key=lambda name: expected[name])
            assert " ms" in time
            assert "cropped to the ink" in changes
        with pytest.raises(InputError, match=f"port={port} is in use"), demo.serve(contenders, port):
            pass
    with contextlib.closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
