"""Decoding image files, which may be damaged."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from .limits import check_limit

# Pillow's names of what is decoded. It knows more, some of which start programs (EPS: Ghostscript)
# or are hardly used but by attacks.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

# What Pillow raises, depending on where a file is damaged.
IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def open_image(
    data: bytes, formats: tuple[str, ...] = FORMATS, shape: tuple[int, ...] | None = None
) -> Image.Image:
    """A decoded image of at most 8 bits per channel.

    Args:
        formats: Pillow's names of the formats allowed.
        shape: `(c, h, w)` that is expected: an image of another height or width is not decoded.

    Raises:
        ValueError: It cannot be decoded, has another size or more pixels than are allowed, or has
            more bits, which converting would clip.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except IMAGE_ERRORS as error:
        raise _undecodable(error) from None
    with image:
        if shape is not None and (image.height, image.width) != shape[1:]:
            found = (shape[0], image.height, image.width)
            raise ValueError(f"has shape {found}, expected {shape}")
        check_pixels(image)
        try:
            image.load()
        except IMAGE_ERRORS as error:
            raise _undecodable(error) from None
    if image.mode.startswith(("I", "F")):
        bits = 16 if image.mode.startswith("I;16") else 32
        raise ValueError(f"has {bits}-bit mode {image.mode}; convert to 8 bits")
    return image


def check_pixels(image: Image.Image) -> None:
    """Raises TooLargeError for an image that has not been decoded and should not be."""
    check_limit("IMAGE_PIXELS", image.width * image.height, "it")


def _undecodable(error: Exception) -> ValueError:
    return ValueError(f"cannot be decoded ({str(error).split(' <')[0]})")
