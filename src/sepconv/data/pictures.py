"""A user's own pictures, brought to what the images of a data set are like."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from sepconv.data.images import decode, square

BILINEAR = Image.Resampling.BILINEAR  # antialiased: as data=folder resizes
LIGHT = 128  # of 256 levels: a ground from which on is light
INK = 1 / 4  # of the strongest ink: from there on a pixel is taken to be drawn
FAINT = 32  # of 256 levels: a picture whose strongest ink is fainter is blank
STRIP = 28  # as wide as this part of the shorter side is the strip along the border that tells the ground


class Drawing(NamedTuple):
    """How the images of a data set lie on their black ground."""

    box: float | None  # side of the square that holds what is drawn, as a share of the image's; None: of no fixed size
    by_mass: bool = False  # the centre of the ink's mass is the image's, not that of its bounding box


# The data sets whose images are light on black. MNIST's digits fill a box of 20 x 20 pixels in 28 x 28 (LeCun et al.
# 1998, section III.A), those of digits their whole height.
DRAWINGS = {"digits": Drawing(1), "mnist": Drawing(20 / 28, by_mass=True), "fashion_mnist": Drawing(None)}


class Preparation:
    """Makes pictures like the images that a network was trained on.

    A picture becomes grey where those have one channel. Where they are light on black, one of a light ground is
    inverted. One that has not their size is brought to it (bilinear, antialiased) in one of three ways:

    - `ink`: the box around what is drawn gets the size and place that it has in DRAWINGS, its ground becomes black and
      its strongest ink white. A blank picture is taken whole.
    - `middle`: the largest square in the middle, as data=folder reads images.
    - `none`: all of it, in its own proportions, padded to a square in the colour of its border.

    Args:
        data: name of the data set.
        shape: channels, height and width of its images; they are square.
        crop: `middle`, `none`, or `auto`: `ink` where DRAWINGS has a box, `none` for its other sets, else `middle`.
        polarity: `auto`, `keep` (nothing is inverted) or `invert` (everything is).
    """

    def __init__(self, data: str, shape: Sequence[int], crop: str = "auto", polarity: str = "auto") -> None:
        self.channels, self.side, _ = shape
        self.polarity, self.drawing = polarity, DRAWINGS.get(data)
        self.box = round(self.side * ((self.drawing and self.drawing.box) or 0))  # its side in pixels; 0: there is none
        automatic = "ink" if self.box else "none" if self.drawing else "middle"
        self.crop = automatic if crop == "auto" else crop

    def __str__(self) -> str:
        """What is done, in words."""
        size = f"{self.side} x {self.side} x {self.channels}"
        ways = {
            "ink": f"cropped to what is drawn, which fits into {self.box} x {self.box} pixels",
            "middle": "the largest square in the middle",
            "none": "all of it, padded in the border's colour",
        }
        inverted = {
            "invert": ", inverted",
            "auto": ", inverted where the ground is light" if self.drawing else "",
            "keep": "",
        }
        return f"pictures become {size}: {ways[self.crop]}{inverted[self.polarity]}"

    def __call__(self, path: str | Path) -> tuple[NDArray[np.uint8], list[str]]:
        """The picture of a file, uint8 (C, H, W), and what was changed of it. Raises InputError as `decode` does."""
        picture, remarks = decode(path)
        pixels, changes = self.apply(picture)
        return pixels, [*remarks, *changes]

    def apply(self, picture: Image.Image) -> tuple[NDArray[np.uint8], list[str]]:
        """The same of a picture in memory, which is in RGB."""
        changes: list[str] = []
        before = f"{picture.height} x {picture.width} x {1 if is_grey(picture) else 3}"
        if self.crop == "middle":
            picture = square(picture, self.side)
        if self.channels == 1:
            picture = picture.convert("L")
        if self.polarity == "invert" or (self.polarity == "auto" and self.drawing and border(picture)[0] >= LIGHT):
            picture = ImageOps.invert(picture)
            changes.append("inverted")
        if picture.size != (self.side, self.side):
            box = find_ink(picture) if self.crop == "ink" else None
            if self.crop == "ink":
                changes.append("cropped to the ink" if box else "blank")
            picture = self.place(picture, box) if box else pad(picture, self.side)
        pixels = np.array(picture).reshape(self.side, self.side, self.channels).transpose(2, 0, 1)
        after = f"{self.side} x {self.side} x {self.channels}"
        return pixels, [*changes, *([f"{before} to {after}"] if before != after else [])]

    def place(self, picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """The `box` of a grey picture (left, top, right, bottom), as DRAWINGS has it."""
        assert self.drawing is not None
        size = fit((box[2] - box[0], box[3] - box[1]), self.box)
        ink = np.asarray(take_ground(picture).resize(size, BILINEAR, box=box), np.float32)
        ink *= 255 / max(ink.max(), 1)
        corner = []
        for axis, length in enumerate(size):
            along = ink.sum(axis)
            places = np.arange(length) + 0.5
            centre = float(along @ places / along.sum()) if self.drawing.by_mass else length / 2
            corner.append(min(max(round(self.side / 2 - centre), 0), self.side - length))
        placed = Image.new("L", (self.side, self.side))
        placed.paste(Image.fromarray(np.rint(ink).astype(np.uint8)), (corner[0], corner[1]))
        return placed


def is_grey(picture: Image.Image) -> bool:
    """Whether a picture in RGB is grey all over."""
    red, green, blue = picture.split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def border(picture: Image.Image) -> tuple[int, ...]:
    """The colour of a picture's ground: of each channel, the median along the border."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    width = max(1, min(picture.size) // STRIP)
    strips = pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:]
    along = np.concatenate([strip.reshape(-1, pixels.shape[2]) for strip in strips])
    return tuple(int(level) for level in np.median(along, axis=0))


def take_ground(picture: Image.Image) -> Image.Image:
    """A grey picture with the level of its ground, and what is darker, at 0."""
    (ground,) = border(picture)
    return picture.point([max(0, level - ground) for level in range(256)])


def find_ink(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) around what is lighter than the ground of a grey picture; None for a blank."""
    ink = take_ground(picture)
    strongest = int(np.asarray(ink).max())
    if strongest < FAINT:
        return None
    return ink.point([255 * (level >= INK * strongest) for level in range(256)]).getbbox()


def fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height in the same proportions, the longer of them `side`, in pixels."""
    width, height = (max(1, round(length * side / max(size))) for length in size)
    return width, height


def pad(picture: Image.Image, side: int) -> Image.Image:
    """All of a picture in the middle of `side` x `side` pixels, on the colour of its border."""
    width, height = fit(picture.size, side)
    padded = Image.new(picture.mode, (side, side), border(picture))
    padded.paste(picture.resize((width, height), BILINEAR), ((side - width) // 2, (side - height) // 2))
    return padded
