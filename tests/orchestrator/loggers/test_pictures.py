"""Images of every usual shape; the files are read back by torch's own decoder of pixels, zlib."""

import struct
import zlib

import numpy as np
import pytest
import torch

from orchestrator.loggers.pictures import pixels_of, png_of


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((4, 6), (4, 6, 1)),
        ((4, 6, 3), (4, 6, 3)),
        ((3, 4, 6), (4, 6, 3)),
        ((1, 4, 6), (4, 6, 1)),
        ((4, 6, 4), (4, 6, 4)),
    ],
)
def test_channels_may_stand_before_or_behind(shape: tuple[int, ...], pixels: tuple[int, ...]) -> None:
    assert pixels_of(torch.zeros(shape)).shape == pixels_of(np.zeros(shape, dtype=np.uint8)).shape == pixels


def test_numbers_from_0_to_1_become_0_to_255_and_others_are_cut_off() -> None:
    assert pixels_of([[0.0, 0.5, 1.0, 7.0, -1.0, float("nan")]]).ravel().tolist() == [0, 128, 255, 255, 0, 0]
    assert pixels_of(np.array([[0, 128, 300]])).ravel().tolist() == [0, 128, 255]


def test_a_png_file_holds_the_pixels() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    content = png_of(image)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack(">I", content[at + 8 + length : at + 12 + length]) == (zlib.crc32(name + body),)
        chunks[name], at = body, at + 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 2, 8, 2, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(2, 13)
    assert np.array_equal(rows[:, 1:].reshape(2, 4, 3), image)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 6, 3), (5, 6, 2)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log_image\(image\): expected height x width"):
        pixels_of(np.zeros(shape))
