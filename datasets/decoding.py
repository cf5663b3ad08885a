"""Decoding image files, which may be damaged."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

# What Pillow raises, depending on where a file is damaged.
IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_image(data: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """A decoded image of at most 8 bits per channel.

    Args:
        formats: Pillow's names of the formats allowed; None: all that it knows.

    Raises:
        ValueError: It cannot be decoded, or has more bits, which converting would clip.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            image.load()
    except IMAGE_ERRORS as error:
        raise ValueError(f"cannot be decoded ({str(error).split(' <')[0]})") from None
    if image.mode.startswith(("I", "F")):
        bits = 16 if image.mode.startswith("I;16") else 32
        raise ValueError(f"has {bits}-bit mode {image.mode}; convert to 8 bits")
    return image
