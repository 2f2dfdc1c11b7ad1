import logging
import os
import socket
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_config
from PIL import Image

from sepconv import InputError
from sepconv.data.datasets import Dataset, load
from sepconv.data.images import read_image

NOISE = np.random.default_rng(0)


def write_class(folder: Path, count: int = 4, colour: int = 0, side: int = 20) -> None:
    """PNG files of noise in one colour."""
    folder.mkdir(parents=True)
    for k in range(count):
        picture = NOISE.integers(0, 60, (side, side + 4, 3), dtype=np.uint8)
        picture[..., colour] += 150
        Image.fromarray(picture).save(folder / f"{k}.png")


def write(root: Path, *classes: str) -> Path:
    """A folder with directories of images, in turn red, green and blue."""
    for i, name in enumerate(classes):
        write_class(root / name, colour=i % 3)
    return root


def read(root: Path, **changes: Any) -> Dataset:
    return load(data_config("folder", root=str(root), image_size=8, test=0.25, validation=1, **changes))


def sizes(dataset: Dataset) -> list[int]:
    return [len(rows) for rows in (dataset.train, dataset.validation, dataset.test)]


def test_folder(tmp_path: Path) -> None:
    for i, (name, count) in enumerate({"red": 30, "green": 20, "blue": 10}.items()):
        write_class(tmp_path / name, count, i)
    dataset = load(data_config("folder", root=str(tmp_path), image_size=12))
    assert dataset.shape == (3, 12, 12)
    assert dataset.classes == ("blue", "green", "red")
    assert sizes(dataset) == [43, 5, 12]
    images, labels = dataset[torch.arange(60)]
    # each class's colour came through
    channel = {0: 2, 1: 1, 2: 0}
    assert all(
        image.float().mean((1, 2)).argmax() == channel[int(label)] for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("train test", [7, 1, 8]),
        ("Train TEST", [7, 1, 8]),
        ("training testing", [7, 1, 8]),
        ("train val test", [8, 8, 8]),
        ("train_images valid-images test_images", [8, 8, 8]),
        ("trainset Dev testset", [8, 8, 8]),
        ("train2017 val2017 test2017", [8, 8, 8]),
        ("seg_train seg_test", [7, 1, 8]),
        ("training Validation", [6, 8, 2]),
        ("train", [5, 1, 2]),
        (".", [5, 1, 2]),
    ],
)
def test_parts(tmp_path: Path, parts: str, expected: list[int]) -> None:
    """By their usual names, in any case; what is there is not held out of the training part."""
    for part in parts.split():
        write(tmp_path / part, "a", "b")
    for hidden in (".git/a", "__MACOSX/train", ".ipynb_checkpoints/x"):
        write_class(tmp_path / hidden)
        write_class(tmp_path / parts.split()[0] / "a" / hidden)
    dataset = read(tmp_path)
    assert dataset.classes == ("a", "b")
    assert sizes(dataset) == expected


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["train/a", "train/b", "cat"], r"mixes parts \(train\) and classes \(cat\)"),
        (["train/a", "train/b", "eval/a"], r"mixes parts \(train\) and classes \(eval\)"),
        (["cat", "dog", "test"], "mixes parts"),
        (["Test/a", "Test/b", "val/a"], "none to train on"),
        (["train/a", "train/b", "val/a", "valid/b"], "more than one directory for validation, val, valid"),
        (["train", "test"], "train needs at least one image .*: it holds no directories"),
        (["train/a", "train/b", "test/a", "test/c"], r"classes under .* differ: only .*train has b; only .*test has c"),
        (["train/a", "train/b", "val/a"], "classes under .* differ: only .*train has b"),
        (["a/train", "a/test", "b/train"], "a holds parts, test, train"),
        (["pets/cat", "pets/dog"], "one class, pets: .*data.root=.*pets meant"),
    ],
)
def test_roots_that_cannot_be_meant(tmp_path: Path, classes: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(write(tmp_path, *classes))


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    with pytest.raises(
        InputError, match=r"needs at least one image .*: empty has none \(left out by their ending: .txt\)"
    ):
        read(tmp_path)


def test_what_may_be_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write(tmp_path, "fold1/a", "fold1/b", "fold2/a", "fold2/b"))
    assert "holds directories of the same names, a, b; if these are the classes" in caplog.text


@pytest.mark.parametrize(
    "link",
    ["a/loop -> ..", "a/loop -> .", "loop -> .", "a/deep/er/loop -> ../../../..", "a/other -> ../b",
     "a/1.png -> ../b/1.png", "a/1.png -> 0.png", "a/same -> deep"],
)  # fmt: skip
def test_each_file_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, link: str) -> None:
    """In the class that it lies in, whatever links lead to it."""
    write(tmp_path / "root", "a", "b", "a/deep/er")
    (tmp_path / "root/a/1.png").unlink()
    expected = read(tmp_path / "root")
    source, target = link.split(" -> ")
    (tmp_path / "root" / source).symlink_to(target)
    dataset = read(tmp_path / "root")
    assert dataset.classes == ("a", "b")
    assert torch.equal(dataset.pixels, expected.pixels)
    assert torch.equal(dataset.labels, expected.labels)
    assert ("left out 1 links" in caplog.text) == (not link.startswith("loop"))


def test_links_to_a_pool(tmp_path: Path) -> None:
    """Files and directories that lie elsewhere are read where they are linked to, in one class and one part."""
    write(tmp_path / "pool", "x", "y")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "b").symlink_to(tmp_path / "pool/y")
    for k in range(4):
        (root / f"a/{k}.png").symlink_to(tmp_path / f"pool/x/{k}.png")
    os.link(root / "b/0.png", root / "b/again.png")
    dataset = read(root)
    assert dataset.labels.bincount().tolist() == [4, 4]
    (root / "b/x").symlink_to(tmp_path / "pool/x")
    with pytest.raises(InputError, match="one and the same, in two classes"):
        read(root)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_file_in_train_and_test(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    write(tmp_path, "train/a", "train/b", "test/a", "test/b")
    make(tmp_path / "train/a/1.png", tmp_path / "test/a/9.png")
    with pytest.raises(
        InputError, match=r"train/a/1.png and .*test/a/9.png are one and the same, in train and in test"
    ):
        read(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a", "b")
    for name in ("a/1.gif", "a/2.GIF", "b/notes", "b/._1.png", "b/.hidden.png", "loose.png"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "b/copy.png").write_bytes((tmp_path / "a/0.png").read_bytes())
    Image.new("RGBA", (9, 9), (10, 20, 30, 0)).save(tmp_path / "a/clear.png")
    Image.new("RGBA", (9, 9), (10, 20, 30, 255)).save(tmp_path / "a/opaque.png")
    dataset = read(tmp_path)
    assert len(dataset.labels) == 11
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3, lines
    for words in ("2 hidden", "3 by their ending (.gif, none)", "1 outside the classes' directories"):
        assert words in lines[1]
    assert "a/clear.png (1 of 11): transparent, laid on white" in lines[0]
    assert "1 images look the same as another one, 1 of them in another class" in lines[2]


def test_a_class_that_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_class(tmp_path / "a", 40)
    write_class(tmp_path / "b", 1)
    load(data_config("folder", root=str(tmp_path), image_size=8, train=10))
    assert "no image is trained on of 1 of 2 classes: b" in caplog.text


NFC, NFD = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ((NFD, "b"), (NFC, "b")),
        (("a", "\u0430"), ("a", r"\u0430")),
        (("a", "a "), ("a", r"a\x20")),
        (("cat", "cat\u200b"), ("cat", r"cat\u200b")),
        (("cat", "cat\ufe0f"), ("cat", r"cat\ufe0f")),
        (("a\nb", "a\x1b[31m"), (r"a\x1b[31m", r"a\nb")),
        ((os.fsdecode(b"caf\xe9"), "b"), ("b", r"caf\udce9")),
        (("[bold]", "$x_1$"), ("$x_1$", "[bold]")),
    ],
)
def test_names_of_classes(tmp_path: Path, names: tuple[str, str], shown: tuple[str, str]) -> None:
    """They can be written anywhere, and told apart."""
    dataset = read(write(tmp_path, *names))
    assert sorted(dataset.classes) == sorted(shown)
    "".join(dataset.classes).encode()


def test_one_name_in_two_encodings(tmp_path: Path) -> None:
    """Is one class in two parts, and a mistake in one."""
    write(tmp_path, f"train/{NFC}", "train/b", f"test/{NFD}", "test/b")
    assert read(tmp_path).classes == (NFC, "b")
    write(tmp_path, f"train/{NFD}")
    with pytest.raises(InputError, match="two directories called Käfer"):
        read(tmp_path)


@pytest.fixture
def unprivileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the test as a user whom permissions hold, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    if before := os.geteuid():
        yield
    else:
        os.seteuid(65534)
        yield
        os.seteuid(before)


@pytest.mark.parametrize("what", [".", "a", "a/deep", "a/1.png"])
def test_permissions(tmp_path: Path, request: pytest.FixtureRequest, what: str) -> None:
    write(tmp_path / "images", "a", "b", "a/deep")
    (tmp_path / "images" / what).chmod(0)
    request.getfixturevalue("unprivileged")
    with pytest.raises(InputError, match=rf"{Path('images') / what} cannot be read.*Permission denied"):
        read(Path("images"))
    if os.geteuid() != 0:
        os.seteuid(os.getuid())
        (tmp_path / "images" / what).chmod(0o755)


def harm(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "itself":
        path.symlink_to(path.name)
    elif kind == "wide":
        Image.new("L", (1_000_000, 1)).save(path)
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    elif kind == "truncated":
        path.write_bytes(path.with_name("0.png").read_bytes()[:300])
    elif kind == "empty":
        path.touch()
    else:
        Image.new("L", (9, 9)).save(path, kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("pipe", "no regular file"), ("socket", ""), ("device", "no regular file"), ("dangling", "No such file"),
     ("itself", "symbolic links"), ("wide", "1000000 x 1 pixels"), ("bomb", "more than .* pixels"), ("truncated", ""),
     ("empty", "no BMP"), ("EPS", "no BMP, JPEG, PNG, PPM, TIFF or WEBP"), ("GIF", "no BMP"), ("PDF", "no BMP")],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    write(tmp_path, "a", "b")
    harm(tmp_path / "a/bad.png", kind)
    with pytest.raises(InputError, match=rf"a/bad.png cannot be read.*{words}"):
        read(tmp_path)


GREY = np.full((8, 8), 200, np.uint8)
GREY[:4] = 100
CLEAR = np.where(GREY == 100, 0, 255).astype(np.uint8)  # the upper half is transparent
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(CLEAR)])
WHITE_IS_ZERO = (Image.fromarray(65535 - GREY.astype(np.uint16) * 257), {"fields": {262: 0}})


def save(image: Image.Image, path: Path, fields: dict[int, int] | None = None, **options: Any) -> None:
    """Writes an image file; `fields` of a TIFF get values that Pillow does not write."""
    image.save(path, **options)
    for field, value in (fields or {}).items():
        content = path.read_bytes()
        begin = content.index(struct.pack("<HHI", field, 3, 1)) + 8
        path.write_bytes(content[:begin] + struct.pack("<I", value) + content[begin + 4 :])


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("grey.png", Image.fromarray(GREY), {}),
        ("grey.bmp", Image.fromarray(GREY), {}),
        ("grey.webp", Image.fromarray(GREY), {"lossless": True}),
        ("rgb.jpg", Image.fromarray(GREY).convert("RGB"), {"quality": 100}),
        ("palette.png", Image.fromarray(GREY).convert("P"), {}),
        ("cmyk.jpg", Image.fromarray(GREY).convert("CMYK"), {"quality": 100}),
        ("cmyk.tif", Image.fromarray(GREY).convert("CMYK"), {}),
        ("16.png", Image.fromarray(GREY.astype(np.uint16) * 257), {}),
        ("16.tif", Image.fromarray(GREY.astype(np.uint16) * 257), {}),
        ("16.pgm", Image.fromarray(GREY.astype(np.int32) * 257), {}),
        ("int32.tif", Image.fromarray(GREY.astype(np.int32) << 23), {}),
        ("uint32.tif", Image.fromarray((GREY.astype(np.uint32) << 24).view(np.int32)), {"fields": {339: 1}}),
        ("white_is_zero.tif", *WHITE_IS_ZERO),
        ("float.tif", Image.fromarray(GREY.astype(np.float32) / 255), {}),
        ("la.png", LA, {}),
        ("la.tif", LA, {}),
        ("rgba.png", LA.convert("RGBA"), {}),
        ("rgba.tif", LA.convert("RGBA"), {}),
        ("rgba.webp", LA.convert("RGBA"), {"lossless": True}),
        ("key.png", Image.fromarray(GREY), {"transparency": 100}),
        ("palette_key.png", Image.fromarray(GREY).convert("P"), {"transparency": 100}),
        ("palette_keys.png", Image.fromarray(GREY).convert("P"), {"transparency": bytes(150)}),
    ],
)
def test_one_scale(tmp_path: Path, name: str, image: Image.Image, options: dict[str, Any]) -> None:
    """Whatever a file stores, a grey of 100 or 200 of 255 becomes that, and what is transparent white."""
    save(image, tmp_path / name, **options)
    upper = 255 if name.startswith(("la", "rgba")) or "key" in name else 100
    for channels in (1, 3):
        pixels, _ = read_image(tmp_path / name, 8, channels)
        assert pixels.shape == (8, 8, channels)
        np.testing.assert_allclose(pixels[:4], upper, atol=1)
        np.testing.assert_allclose(pixels[4:], 200, atol=1)


@pytest.mark.parametrize(
    ("name", "image", "options", "words"),
    [
        ("float.tif", GREY.astype(np.float32), {}, "from 100 to 200"),
        ("nan.tif", np.full((8, 8), np.nan, np.float32), {}, "nan"),
        ("negative.tif", GREY.astype(np.int32) - 150, {}, "below 0"),
        ("dark.tif", GREY.astype(np.int32), {}, "reach 200 of 2147483647"),
        ("signed.tif", GREY // 2, {"tiffinfo": {339: 2}}, "signed"),
        ("key.png", GREY.astype(np.uint16) * 257, {"transparency": 100 * 257}, "transparent"),
    ],
)
def test_values_without_a_place_on_the_scale(
    tmp_path: Path, name: str, image: np.ndarray, options: dict[str, Any], words: str
) -> None:
    save(Image.fromarray(image), tmp_path / name, **options)
    with pytest.raises(InputError, match=f"{name} cannot be read as an image .*{words}"):
        read_image(tmp_path / name, 8, 3)


@pytest.mark.parametrize(
    ("ending", "deep"), [("jpg", False), ("webp", False), ("png", False), ("png", True), ("tif", False), ("tif", True)]
)
def test_orientation(tmp_path: Path, ending: str, deep: bool) -> None:
    """A picture that lies on its side comes out upright, once."""
    upright = np.kron(NOISE.integers(0, 2, (4, 4)), np.full((4, 4), 255)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on its right
    stored = Image.fromarray(np.rot90(upright).astype(np.uint16) * 257 if deep else np.rot90(upright).copy())
    stored.save(tmp_path / f"x.{ending}", exif=exif, **({"lossless": True} if ending == "webp" else {}))
    pixels, _ = read_image(tmp_path / f"x.{ending}", 16, 1)
    np.testing.assert_allclose(pixels[..., 0], upright, atol=20)


def test_a_damaged_tiff_says_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Than the error's line: libtiff would write to standard error."""
    path, noise = tmp_path / "x.tif", NOISE.integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(noise).save(path, compression="tiff_adobe_deflate")
    content = bytearray(path.read_bytes())
    content[content.index(b"x\x9c") + 30] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x.tif cannot be read"):
        read_image(path, 8, 1)
    assert capfd.readouterr().err == ""


def test_dark_images(tmp_path: Path) -> None:
    """12 bits in 16 are dark, which is said."""
    Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / "x.png")
    pixels, remarks = read_image(tmp_path / "x.png", 8, 1)
    assert pixels.max() == 12
    assert remarks == ["its values reach 3200 of 65535, so it is dark"]


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("x.png", "x.webp", "x.tif"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "w" in name else {})
        )
        pixels, remarks = read_image(tmp_path / name, 4, 3)
        assert (pixels == [255, 0, 0]).all()
        assert remarks == ["of several frames, the first is taken"]


def test_a_sliver_takes_no_memory(tmp_path: Path) -> None:
    """The middle is cut out before it is enlarged."""
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "x.png")
    pixels, _ = read_image(tmp_path / "x.png", 200, 3)
    assert (pixels == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("modes", "given", "channels"),
    [(("L", "L"), None, 1), (("L", "RGBA"), None, 1), (("I;16", "1"), None, 1), (("L", "colour"), None, 3),
     (("L", "L"), 3, 3), (("L", "colour"), 1, 1)],
)  # fmt: skip
def test_channels(tmp_path: Path, modes: tuple[str, str], given: int | None, channels: int) -> None:
    """One where all images are grey, however they are stored; classes of different modes look alike."""
    for name, mode in zip("ab", modes, strict=True):
        (tmp_path / name).mkdir()
        for k in range(4):
            values = NOISE.integers(0, 2, (8, 8), dtype=np.uint8) * 255
            image = Image.fromarray(values.astype(np.uint16) * 257 if mode == "I;16" else values)
            if mode == "colour":
                image = Image.merge("RGB", [image, image, Image.new("L", (8, 8))])
            elif mode != "I;16":
                image = image.convert(mode)
            image.save(tmp_path / name / f"{k}.png")
    dataset = read(tmp_path, channels=given)
    assert dataset.shape == (channels, 8, 8)
    if channels == 3 or "colour" not in modes:
        assert dataset.pixels.unique().tolist() == [0, 255]
    else:
        assert dataset.pixels.unique().tolist() == [0, 226, 255]  # the luma of yellow


def test_nothing_is_said_of_good_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read(write(tmp_path, "a", "b"))
    assert not caplog.records
