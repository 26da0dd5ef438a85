"""Pictures for loggers: arrays of any usual shape as rows of pixels, and as PNG, without an imaging library."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pixels_of", "png_of", "png_of_figure"]


def pixels_of(image: Any) -> npt.NDArray[np.uint8]:
    """Rows of pixels, height x width x (1, 3 or 4), from 0 to 255.

    Args:
        image: array or tensor, height x width, height x width x channels or channels x height x width; whole numbers
            from 0 to 255, or others from 0 to 1.

    Raises:
        ValueError: it is no image.

    Example:
        >>> pixels_of([[0.0, 1.0]]).tolist()
        [[[0], [255]]]
    """
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            "log_image(image): expected height x width, or these with 1, 3 or 4 channels before or behind them, "
            f"received the shape {array.shape}; give one picture"
        )
    if array.dtype != np.uint8:
        array = np.clip(np.nan_to_num(array.astype(np.float64)) * (255 if array.dtype.kind == "f" else 1), 0, 255)
    return array.round().astype(np.uint8) if array.dtype != np.uint8 else array


def png_of(image: Any) -> bytes:
    """The PNG file of an image as `pixels_of` takes it."""
    pixels = pixels_of(image)
    height, width, channels = pixels.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]  # grey, RGB, RGBA
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # a zero before each row: it is not filtered
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def png_of_figure(figure: Any) -> bytes:
    """The PNG file of a matplotlib figure, or of whatever else has `savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
