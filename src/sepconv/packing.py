"""Which images a network is right about, as text: bits, by zlib and Base64."""

import base64
import math
import zlib

import numpy as np
from numpy.typing import NDArray


def pack(right: NDArray[np.bool_]) -> str:
    """Truth values, (N,), in a few characters."""
    return base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode()


def unpack(text: str, images: int) -> NDArray[np.bool_]:
    """What `pack` made `text` of. Raises ValueError where it is not of so many images."""
    size = math.ceil(images / 8)
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if images < 1 or len(data) != size:
        raise ValueError(f"right is not of {images} images")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=images).astype(bool)
