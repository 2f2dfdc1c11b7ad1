"""Image files to uint8 arrays, all on one scale: 0 is black, 255 is white, whatever a file stores."""

import contextlib
import ctypes
import logging
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from sepconv import InputError
from sepconv.files import open_file
from sepconv.text import printable

ENDINGS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow: those that start no other program
MOST_BYTES = 2**30  # of a file
DARK = 32  # of 256 levels: a picture of 12 bits in 16 has half as many
MOST_SIDE = 2**16 - 1  # in pixels, as in a JPEG; how many pixels an image may have, Pillow says

# what they say on standard error, Pillow raises too
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # of libtiff

# fields of a TIFF, and values of theirs
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2


def read_image(path: str | Path, side: int, channels: int) -> tuple[np.ndarray, list[str]]:
    """The square in the middle of an image file, resized (bilinear, antialiased); raises what `decode` raises.

    Args:
        side: height and width of the result, in pixels.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        uint8 (side, side, channels), and what the user should know of the image, if anything.
    """
    picture, remarks = decode(path)
    picture = square(picture, side)
    pixels = np.array(picture.convert("L") if channels == 1 else picture)
    return pixels.reshape(side, side, channels), remarks


def decode(path: str | Path) -> tuple[Image.Image, list[str]]:
    """An image file in RGB, and what the user should know of it, if anything.

    It is turned upright as its EXIF orientation says, and laid on white where it is transparent. Of several frames, it
    is the first. Integers of more than 8 bits are scaled by the range of their type, floats from 0 to 1.

    Raises:
        InputError: the file cannot be read, is damaged, too large or no image of FORMATS, or has values that have no
            place on the scale.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_file(path) as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
                with Image.open(file, formats=FORMATS) as image:
                    check(image)
                    image.load()
                    picture = grey(image)
                    ImageOps.exif_transpose(picture, in_place=True)
                    picture = rgb(picture)
    except Exception as error:  # Pillow raises whatever its parsers do
        raise InputError(
            f"{printable(path)} cannot be read as an image ({explain(error)}): repair or remove it"
        ) from error
    return picture, [printable(warning.message) for warning in caught]


def explain(error: Exception) -> str:
    """Why an image is refused, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or is damaged"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(reason.split()))


def check(image: ImageFile.ImageFile) -> None:
    """Raises ValueError where Pillow would decode `image`, of which only the header is read, into other values.

    Warns of frames that are left out.
    """
    if max(image.size) > MOST_SIDE:
        raise ValueError(f"it has {image.width} x {image.height} pixels: at most {MOST_SIDE} a side")
    if image.format == "TIFF" and image.mode == "L" and field(image, SAMPLE_FORMAT, UNSIGNED) == SIGNED:
        raise ValueError("it has signed values of 8 bits")
    one_colour = isinstance(image.info.get("transparency"), int | tuple) and image.mode not in ("1", "P")
    if one_colour and image.tile[0].args != image.mode:  # it is not scaled to 8 bits as the pixels are
        raise ValueError("a colour of it is transparent, and it has not 8 bits a channel")
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a JPEG with a preview
        warnings.warn("of several frames, the first is taken", stacklevel=1)


def field(image: Image.Image, tag: int, default: int) -> int:
    """The field `tag` of a TIFF, of its first channel."""
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    return value[0] if isinstance(value, tuple) else value


def grey(image: Image.Image) -> Image.Image:
    """`image`; one of grey values of more than 8 bits with 8 of them. Raises ValueError for values beyond its scale."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    tiff = image.format == "TIFF"
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"its values reach from {values.min():g} to {values.max():g}: floats go from 0 to 1")
        levels = values * 255
        np.rint(levels, out=levels)
    else:
        bits = field(image, BITS, 1) if tiff else 16
        signed = tiff and field(image, SAMPLE_FORMAT, UNSIGNED) == SIGNED
        if bits == 32 and not signed:
            values = values.view(np.uint32)
        if values.min() < 0:
            raise ValueError("it has values below 0")
        levels = values >> (bits - signed - 8)
        reach = f"its values reach {values.max()} of {2 ** (bits - signed) - 1}"
        if values.any() and not levels.any():
            raise ValueError(f"{reach}: it would be black")
        if 0 < levels.max() < DARK:
            warnings.warn(f"{reach}, so it is dark", stacklevel=1)
    if tiff and field(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO:
        levels = 255 - levels
    converted = Image.fromarray(levels.astype(np.uint8))
    converted.info = image.info
    return converted


def rgb(image: Image.Image) -> Image.Image:
    """`image`, of 8 bits a channel, in RGB and on white."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            warnings.warn("transparent, laid on white", stacklevel=1)
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of `image`, resized to `side` x `side`."""
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + least, top + least))
