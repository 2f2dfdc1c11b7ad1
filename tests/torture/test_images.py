"""Image files that are damaged, or made to do harm."""

import io
import json
import os
import random
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trials import PROCESSES, trials

from sepconv import InputError
from sepconv.data.images import read_image

pytestmark = pytest.mark.timeout(1800)

BATCH = 1000  # images of a process
SECONDS = 10  # at most, of an image
MEMORY = 2**30  # bytes at most, of a process beyond what it has without an image


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, kind: int = 0, data: bytes = b"\0" * 9) -> bytes:
    """A PNG with this header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int], after: int = 0) -> bytes:
    """A TIFF of one directory with `tags` (number, type, count, value), and the place of a directory `after` it."""
    fields = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + struct.pack("<I", after)


def bmp(width: int, height: int) -> bytes:
    """The header of a BMP."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def hostile() -> dict[str, bytes]:
    """Files that must be refused, by what they are."""
    grey = Image.new("L", (9, 9))
    others = {}
    for kind in ("EPS", "PDF", "GIF", "ICO", "PCX", "TGA", "SGI", "JPEG2000", "MSP", "DDS", "XBM", "SPIDER"):
        file, mode = io.BytesIO(), {"MSP": "1", "XBM": "1", "DDS": "RGB", "SPIDER": "F"}.get(kind, "L")
        grey.convert(mode).save(file, kind)
        others[kind] = file.getvalue()
    lines = ((256, 4, 1, 99_999), (257, 4, 1, 99_999), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9))
    return others | {
        "nothing": b"",
        "text": b"this is no image\n" * 100,
        "zeros": bytes(10_000),
        "HTML": b"<html><body>404</body></html>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "PostScript in a DOS header": struct.pack("<8IH", 0xC6D3D0C5, 32, 9, 0, 0, 0, 0, 65_535, 0) + b"%!PS EPSF",
        "a PNG of 1,000,000 x 1": png(1_000_000, 1),
        "a PNG of 65,535 x 65,535": png(65_535, 65_535),
        "a PNG of 2,147,483,647 x 2,147,483,647": png(2**31 - 1, 2**31 - 1),
        "a PNG without height": png(9, 0),
        "a PNG with 9,400 x 9,400 colours, and few of them": png(9_400, 9_400, kind=6),
        "a PNG whose text is 256 MiB": png(9, 9, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**28)))),
        "a PNG whose profile is 256 MiB": png(9, 9, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**28)))),
        "a PPM of 99,999 x 99,999": b"P6 99999 99999 255\n\0",
        "a PPM of 9,400 x 9,400, cut off": b"P6 9400 9400 255\n" + bytes(100),
        "a PPM of words": b"P3 3 3 255\n" + b"one " * 27,
        "a PPM of one long number": b"P2 " + b"9" * 100_000,
        "a PGM of values beyond its range": b"P2 2 2 9\n 99 99 99 99",
        "a PFM of NaN": b"Pf\n2 2\n-1.0\n" + np.full(4, np.nan, "<f4").tobytes(),
        "a PFM of infinite values": b"Pf\n2 2\n-1.0\n" + np.full(4, np.inf, "<f4").tobytes(),
        "a BMP of 2,000,000,000 x 1": bmp(2 * 10**9, 1),
        "a BMP of 60,000 x -60,000": bmp(60_000, -60_000),
        "a TIFF of 99,999 x 99,999": tiff(*lines),
        "a TIFF whose directory follows itself": tiff(*lines[2:], after=8),
        "a TIFF of 65,535 fields": tiff(*[(270, 2, 2**31, 8)] * 65_535),
        "a WebP of 16,384 x 16,384": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\x3f\0\xff\x3f\0VP8L\0\0\0\0",
    }  # fmt: skip


def samples() -> dict[str, bytes]:
    """Whole images, of every format that is read and of many modes."""
    noise = np.random.default_rng(0)
    values = noise.integers(0, 256, (30, 40), dtype=np.uint8)
    values[8:20, 8:20] = 77  # something to compress
    grey = Image.fromarray(values)
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.ROTATE_180), Image.new("L", grey.size, 99)])
    deep, real = Image.fromarray(values.astype(np.uint16) * 257), Image.fromarray(values.astype(np.float32) / 255)
    whole = Image.fromarray(values.astype(np.int32) << 23)
    clear = colour.convert("RGBA")
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    frames = {"save_all": True}
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *(("PNG", image, {}) for image in (grey.convert("1"), grey, clear.convert("LA"), colour, clear, deep)),
        ("PNG", colour.quantize(16), {"transparency": 3}), ("PNG", grey, {"transparency": 77}),
        ("PNG", colour, {"exif": exif, "dpi": (72, 72), "icc_profile": bytes(300)}), ("PNG", colour, frames),
        *(("JPEG", image, {}) for image in (grey, colour, colour.convert("CMYK"))),
        ("JPEG", colour, {"progressive": True, "exif": exif}), ("MPO", colour, frames),
        *(("TIFF", image, {}) for image in (grey, colour, clear, deep, real, whole, colour.convert("LAB"),
                                            colour.convert("CMYK"), colour.quantize(16), colour.convert("YCbCr"))),
        *(("TIFF", colour, {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        ("TIFF", grey.convert("1"), {"compression": "group4"}), ("TIFF", deep, {"compression": "tiff_lzw"}),
        ("TIFF", colour, {"exif": exif, "big_tiff": True}), ("TIFF", colour, frames),
        ("WEBP", colour, {}), ("WEBP", clear, {"lossless": True}), ("WEBP", colour, {"exif": exif}),
        ("WEBP", clear, frames),
        *(("BMP", image, {}) for image in (grey.convert("1"), grey, colour.quantize(16), colour, clear)),
        *(("PPM", image, {}) for image in (grey.convert("1"), grey, colour, whole, real)),
    ]  # fmt: skip
    found = {}
    for kind, image, options in made:
        file = io.BytesIO()
        # copies: Pillow would pass the options of a JPEG on
        more = {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
        image.copy().save(file, kind, **options, **more)
        found[f"{kind} {image.mode} {len(found)}"] = file.getvalue()
    text = " ".join(map(str, values.ravel())).encode()
    return found | {"PPM P2": b"P2 40 30 255\n" + text, "PPM P1": b"P1 40 30\n" + b"01" * 600}


def mutate(content: bytes, draw: random.Random) -> bytes:
    """`content` with damage of one kind."""
    changed = bytearray(content)
    kind = draw.choice(["bits", "bits", "bytes", "cut", "zeros", "header", "header", "field", "copy", "more"])
    if kind == "bits":
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == "bytes":
        for _ in range(draw.choice([1, 4, 64])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    elif kind == "cut":
        del changed[draw.randrange(len(changed)) :]
    elif kind == "zeros":
        begin, size = draw.randrange(len(changed)), draw.choice([16, 512, 4096])
        changed[begin : begin + size] = bytes(len(changed[begin : begin + size]))
    elif kind == "header":
        begin = draw.randrange(min(len(changed), 200))
        extreme = draw.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, draw.getrandbits(32)])
        size = max(1, draw.choice([1, 2, 4]))
        changed[begin : begin + size] = (extreme & (256**size - 1)).to_bytes(size, draw.choice(["little", "big"]))  # type: ignore[arg-type]
    elif kind == "field" and changed.startswith(b"\x89PNG"):  # one of the header, with its checksum made right
        begin, size = draw.choice([(16, 4), (20, 4), (24, 1), (25, 1), (28, 1)])
        changed[begin : begin + size] = (
            draw.choice([0, 1, 3, 4, 16, 9_000, 70_000, 2**31]) & (256**size - 1)
        ).to_bytes(size, "big")
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif kind == "copy":
        begin, to, size = (draw.randrange(len(changed)) for _ in range(3))
        changed[to : to + size] = changed[begin : begin + size]
    else:
        changed += draw.randbytes(draw.choice([1, 100, 10_000]))
    return bytes(changed)


def mutants(first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged images from number `first` on, each with what it was."""
    whole = list(samples().items())
    for number in range(first, first + count):
        name, content = whole[number % len(whole)]
        yield name, mutate(content, random.Random(number))


def read_all(images: list[tuple[str, bytes]], folder: Path) -> None:
    """Reads images, in a process of their own, and writes what came of it to `folder`/result.json."""
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 2)
    read_image(write(folder, samples()["PNG RGB 3"]), 32, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, wrong, longest = {"read": 0, "refused": 0}, [], 0.0
    refused = []
    for name, content in images:
        path, began = write(folder, content), time.monotonic()
        try:
            pixels, _ = read_image(path, 32, 3)
            assert pixels.shape == (32, 32, 3)
            counts["read"] += 1
        except InputError as error:
            counts["refused"] += 1
            refused.append(name)
            if not str(error).startswith(str(path)) or len(str(error).splitlines()) != 1:
                wrong.append(f"{name}: {error}")
        except BaseException as error:
            wrong.append(f"{name}: {error!r}")
        longest = max(longest, time.monotonic() - began)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = counts | {"wrong": wrong, "refused names": refused, "longest": longest, "memory": kibibytes * 1024}
    (folder / "result.json").write_text(json.dumps(result))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "image.png"
    path.write_bytes(content)
    return path


def read_apart(images: list[tuple[str, bytes]], folder: Path) -> dict[str, Any]:
    """What comes of reading `images` in a process of their own, which says nothing, ends and keeps within MEMORY."""
    folder.mkdir()
    process = PROCESSES.Process(target=read_all, args=(images, folder))
    process.start()
    process.join(300)
    assert process.exitcode == 0, f"a process {'hangs' if process.is_alive() else 'ended'} ({process.exitcode})"
    result = json.loads((folder / "result.json").read_text())
    assert not result["wrong"]
    assert not (folder / "said").read_text()
    assert result["longest"] < SECONDS
    assert result["memory"] < MEMORY
    return result


def test_damaged_images(tmp_path: Path, figures: dict[str, Any]) -> None:
    """A damaged image, of any format that is read, is read or refused with one line that names the file: in seconds, in bounded memory, and nothing else is raised or written."""  # noqa: E501
    count = trials(8000)
    results = []
    for first in range(0, count, BATCH):
        images = list(mutants(first, min(BATCH, count - first)))
        results.append(read_apart(images, tmp_path / str(first)))
    figures.update({
        "images": count,
        "read": sum(result["read"] for result in results),
        "refused with a line": sum(result["refused"] for result in results),
        "longest, seconds": round(max(result["longest"] for result in results), 2),
        "most memory, MiB": max(result["memory"] for result in results) // 2**20,
    })  # fmt: skip


def test_hostile_images(tmp_path: Path, figures: dict[str, Any]) -> None:
    """A file named as an image that is none, that would start another program, or that claims to be huge, is refused with one line that names it."""  # noqa: E501
    images = list(hostile().items())
    result = read_apart(images, tmp_path / "hostile")
    assert set(result["refused names"]) == set(hostile())
    figures.update({"images": len(images), "refused with a line": result["refused"],
                    "most memory, MiB": result["memory"] // 2**20})  # fmt: skip
