"""A user's own pictures: what a network sees of them, what is printed of them, and what is refused."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, data_config, refused, script
from PIL import Image, ImageOps
from torch import Tensor

from sepconv.config.keys import SourceConfig
from sepconv.data.datasets import load
from sepconv.data.images import read_image
from sepconv.data.pictures import DRAWINGS, Preparation
from sepconv.deployment import predict, speed
from sepconv.training.recorded import load_run

Command = Callable[..., Outcome]
COUNT = 100  # images of the test set that are saved as pictures


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Speeds are measured over little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "ROUNDS", 1)
        patch.setattr(speed, "TURN", 0.02)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run trained on digits."""
    folder = tmp_path_factory.mktemp("run")
    script("train", "trainer=cpu", "model=baseline", "recipe.epochs=12", f"runs={folder}")
    (made,) = folder.glob("digits/baseline/*")
    return made


@pytest.fixture(scope="module")
def known(run: Path) -> tuple[list[Image.Image], list[str], Tensor]:
    """Images of the run's test set, their classes, and their probabilities (COUNT, classes) by its network."""
    _, _, classifier, dataset = load_run(str(run), "best", SourceConfig())
    images, labels = dataset[dataset.test[:COUNT]]
    with torch.no_grad():
        probabilities = classifier.eval()(images).softmax(1)
    return [Image.fromarray(image[0].numpy()) for image in images], [str(int(label)) for label in labels], probabilities


def on_paper(image: Image.Image, place: int) -> Image.Image:
    """A digit as blue ink on a large sheet of grey paper, somewhere."""
    ink = image.resize((96, 96), Image.Resampling.BICUBIC)
    paper = Image.new("RGB", (400, 300), (210, 205, 190))
    paper.paste(Image.new("RGB", ink.size, (20, 30, 120)), (10 + 2 * place, 5 + place), mask=ink)
    return paper


def save(images: list[Image.Image], folder: Path, make: Callable[[Image.Image, int], Image.Image]) -> Path:
    folder.mkdir()
    for place, image in enumerate(images):
        make(image, place).save(folder / f"{place:03d}.png")
    return folder


def ask(command: Command, *arguments: object) -> list[dict[str, Any]]:
    """What predict.py says in JSON."""
    outcome = command("predict", *arguments, "format=json")
    assert outcome.status == 0, outcome.err
    answers: list[dict[str, Any]] = json.loads(outcome.out)
    return answers


def probabilities_of(answers: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([list(answer["probabilities"].values()) for answer in answers])


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda image, _: image, []),
        (lambda image, _: ImageOps.invert(image), ["inverted"]),
        (lambda image, _: image.convert("RGB"), []),
        (lambda image, _: image.convert("RGBA"), []),
    ],
    ids=["as they are", "dark on light", "RGB", "RGBA"],
)
def test_images_of_the_data_set(
    command: Command, run: Path, known: tuple[list[Image.Image], list[str], Tensor], tmp_path: Path,
    make: Callable[[Image.Image, int], Image.Image], changes: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Are classified as their pixels are, batch by batch, however they are stored and whatever is light in them."""
    monkeypatch.setattr(predict, "BATCH", 30)
    images, _, probabilities = known
    folder = save(images, tmp_path / "pictures", make)
    answers = ask(command, f"run={run}", folder)
    assert [answer["image"] for answer in answers] == [f"{folder}/{place:03d}.png" for place in range(COUNT)]
    assert (probabilities_of(answers) - probabilities).abs().max() < 1e-5
    assert [answer["class"] for answer in answers] == [str(place) for place in probabilities.argmax(1).tolist()]
    assert all(answer["changes"] == changes for answer in answers)


def test_digits_on_paper(
    command: Command, run: Path, known: tuple[list[Image.Image], list[str], Tensor], tmp_path: Path
) -> None:
    """Are found wherever they stand on it; taken whole, or with dark ink, they look like none that it learned."""
    images, labels, probabilities = known
    folder = save(images, tmp_path / "paper", on_paper)

    def right(*arguments: str) -> float:
        answers = ask(command, f"run={run}", folder, *arguments)
        assert all("300 x 400 x 3 to 16 x 16 x 1" in answer["changes"] for answer in answers)
        return sum(answer["class"] == label for answer, label in zip(answers, labels, strict=True)) / COUNT

    original = sum(str(int(row.argmax())) == label for row, label in zip(probabilities, labels, strict=True)) / COUNT
    assert original > 0.9
    found = right()
    assert found > original - 0.05
    assert right("polarity=invert") == found
    assert max(right("crop=none"), right("crop=middle"), right("polarity=keep")) < 0.5


def test_an_exported_file_says_the_same(
    command: Command, run: Path, known: tuple[list[Image.Image], list[str], Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = save(known[0][:20], tmp_path / "paper", on_paper)
    script("export", f"run={run}", f"output={tmp_path}")
    by_run, by_file = (ask(command, given, folder) for given in (f"run={run}", f"file={tmp_path}/baseline-digits.onnx"))
    assert (probabilities_of(by_run) - probabilities_of(by_file)).abs().max() < 1e-4
    for one, other in zip(by_run, by_file, strict=True):
        assert [one[key] for key in ("image", "class", "changes")] == [
            other[key] for key in ("image", "class", "changes")
        ]


@pytest.fixture
def pictures(
    known: tuple[list[Image.Image], list[str], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder `a` of pictures, the working directory's, with folders in it and other files."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(
        ["a/2.png", "a/10.PNG", "a/b c/1.bmp", "a/.hidden.png", "a/.git/1.png", "a/x,y=z.png"]
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        known[0][place].save(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("no image")
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (["a"], ["a/10.PNG", "a/2.png", "a/b c/1.bmp", "a/x,y=z.png"]),
        (["a/2.png", "a"], ["a/2.png", "a/10.PNG", "a/b c/1.bmp", "a/x,y=z.png"]),
        (["a/*.png"], ["a/2.png", "a/x,y=z.png"]),
        (["a/b*"], ["a/b c/1.bmp"]),
        (["**/*.[bp]*"], ["a/2.png", "a/b c/1.bmp", "a/x,y=z.png"]),
        (["a/**"], ["a/10.PNG", "a/2.png", "a/b c/1.bmp", "a/x,y=z.png"]),
        (["a/x,y=z.png", "a/.hidden.png"], ["a/x,y=z.png", "a/.hidden.png"]),
    ],
)
def test_paths(command: Command, run: Path, pictures: Path, places: list[str], found: list[str]) -> None:
    answers = ask(command, f"run={run}", *places)
    assert sorted(answer["image"] for answer in answers) == sorted(found)
    assert answers[0]["image"] == found[0]


def test_formats(command: Command, run: Path, pictures: Path) -> None:
    """A table for reading; JSON with all classes and CSV with some of them, and nothing else in standard output."""
    answers = ask(command, f"run={run}", "a", "top=3")
    for answer in answers:
        probabilities = answer["probabilities"]
        assert list(probabilities) == list("0123456789")
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer["probability"] == probabilities[answer["class"]] == max(probabilities.values())
    outcome = command("predict", f"run={run}", "a", "top=3", "format=csv")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert list(rows[0]) == [
        "image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "changes",
    ]  # fmt: skip
    for row, answer in zip(rows, answers, strict=True):
        order = sorted(answer["probabilities"].values(), reverse=True)
        assert [float(row[key]) for key in ("probability", "probability_2", "probability_3")] == order[:3]
        assert answer["probabilities"][row["class_3"]] == order[2]
        assert (row["image"], row["class"], row["changes"]) == (answer["image"], answer["class"], "")
    outcome = command("predict", f"run={run}", "a", "top=99")
    lines = outcome.out.splitlines()
    assert "best checkpoint; pictures become 16 x 16 x 1: cropped to what is drawn" in lines[0]
    assert sum("probability" in line for line in lines) == 1
    assert outcome.out.count("probability") == 10
    assert [line.split()[0] for line in lines if " a/" in line] == ["a/10.PNG", "a/2.png", "a/b", "a/x,y=z.png"]


def test_images_that_cannot_be_read(
    command: Command, run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cost a line each, at the end; all others are classified."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    expected = ask(command, f"run={run}", "a")
    (pictures / "0.png").write_bytes((pictures / "2.png").read_bytes()[:60])
    (pictures / "5.jpg").write_text("no image")
    Image.new("1", (400, 300)).save(pictures / "large.png")
    outcome = command("predict", f"run={run}", "a", "a/notes.txt", "format=json")
    assert outcome.status == 2
    assert json.loads(outcome.out) == expected
    lines = outcome.err.splitlines()
    for line, words in zip(lines, ["a/0.png", "a/5.jpg", "a/large.png", "a/notes.txt"], strict=False):
        assert line.startswith(f"error: {words} cannot be read as an image (")
    assert "more than" in lines[2]
    assert lines[4:] == ["error: 4 of 8 images could not be read"]
    outcome = command("predict", f"run={run}", "a/0.png", "a/5.jpg", "format=csv")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1] == "error: 2 of 2 images could not be read"


def test_bad_arguments(command: Command, run: Path, pictures: Path) -> None:
    (pictures / "none").mkdir()
    for arguments, words in (
        ([], ["give images to classify", "predict.py run=RUN"]),
        (["a"], ["give run=", "file="]),
        ([f"run={run}"], ["give images to classify"]),
        ([f"run={run}", "file=x.onnx", "a"], ["give run=", "file="]),
        ([f"run={run}", "a", "nowhere.png"], ["nowhere.png is not there", "image files, folders of them, or patterns"]),
        ([f"run={run}", "a/*.gif"], ["a/*.gif is not there"]),
        ([f"run={run}", "a/*.txt"], ["a/*.txt has no images", ".png"]),
        ([f"run={run}", "a", "a/none"], ["a/none has no images", ".png"]),
        (["run=a", "a"], ["a is no run"]),
        (["file=a/2.png", "a"], ["a/2.png is no exported network", ".onnx"]),
        ([f"run={run}", "a", "top=0"], ["top=0", "1 or more"]),
        ([f"run={run}", "a", "format=xml"], ["unknown format=xml", "table, json, csv"]),
        ([f"run={run}", "a", "crop=all"], ["unknown crop=all", "auto, middle, none"]),
        ([f"run={run}", "a", "polarity=light"], ["unknown polarity=light", "auto, keep, invert"]),
    ):
        refused(command("predict", *arguments), *words)


@pytest.mark.parametrize("data", ["folder", "cifar10"])
def test_photographs_are_read_as_a_folder_is(tmp_path: Path, data: str) -> None:
    """The largest square in the middle of each, whatever its ground."""
    pixels = np.random.default_rng(0).integers(200, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for channels in (1, 3):
        found, changes = Preparation(data, (channels, 8, 8))(tmp_path / "x.png")
        expected, _ = read_image(tmp_path / "x.png", 8, channels)
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))
        assert changes == [f"30 x 50 x 3 to 8 x 8 x {channels}"]
        inverted, changes = Preparation(data, (channels, 8, 8), polarity="invert")(tmp_path / "x.png")
        np.testing.assert_allclose(inverted, 255 - found.astype(int), atol=1)
        assert changes[0] == "inverted"


def test_ink_is_placed_as_in_mnist(tmp_path: Path) -> None:
    """In a box of 20 x 20 pixels, its centre of mass in the middle, white on black, however faint it is."""
    sheet = np.full((300, 500), 180, np.uint8)
    sheet[40:140, 300:340] = 90  # 100 x 40
    sheet[120:140, 300:360] = 90  # a foot, which draws the centre of mass
    Image.fromarray(sheet).save(tmp_path / "x.png")
    pixels, changes = Preparation("mnist", (1, 28, 28))(tmp_path / "x.png")
    assert changes == ["inverted", "cropped to the ink", "300 x 500 x 1 to 28 x 28 x 1"]
    image = pixels[0].astype(float)
    rows, columns = (np.flatnonzero(image.sum(axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == (20, 12)
    assert image.max() == 255
    for axis, places in ((1, rows), (0, columns)):
        along = image.sum(axis)
        assert along @ (np.arange(28) + 0.5) / along.sum() == pytest.approx(14, abs=0.5)
        assert (places[0] + places[-1] + 1) / 2 != 14  # which the middle of the box is not


def test_blank_sheets_and_slivers(tmp_path: Path) -> None:
    for size in ((300, 200), (1, 5000)):
        Image.new("L", size, 250).save(tmp_path / "x.png")
        pixels, changes = Preparation("digits", (1, 16, 16))(tmp_path / "x.png")
        assert (pixels == 5).all()
        assert changes == ["inverted", "blank", f"{size[1]} x {size[0]} x 1 to 16 x 16 x 1"]


def test_padding_has_the_colour_of_the_border(tmp_path: Path) -> None:
    picture = Image.new("RGB", (100, 60), (30, 200, 90))
    picture.paste((255, 0, 0), (40, 20, 60, 40))
    picture.save(tmp_path / "x.png")
    pixels, changes = Preparation("cifar10", (3, 20, 20), crop="none")(tmp_path / "x.png")
    assert changes == ["60 x 100 x 3 to 20 x 20 x 3"]
    assert (pixels[:, [0, 3, 16, 19]] == np.array([30, 200, 90])[:, None, None]).all()
    assert pixels[:, 10, 10].tolist() == [255, 0, 0]


def test_digits_are_light_on_black_and_fill_their_box() -> None:
    """As DRAWINGS says of them."""
    dataset = load(data_config("digits"))
    images = dataset.pixels[..., 0]
    border = torch.cat([images[:, [0, -1]].flatten(1), images[:, :, [0, -1]].flatten(1)], dim=1)
    assert border.median(1).values.max() < 128
    heights = (images.amax(2) > 32).sum(1)
    assert (heights == DRAWINGS["digits"].box * images.shape[1]).float().mean() > 0.95
