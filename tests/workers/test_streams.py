"""Every byte of a file goes by once, in its order, whatever is looked at in between."""

import contextlib
import io
import os
import random
import threading
from hashlib import sha256

import pytest

from workers.folder import Folder
from workers.streams import AHEAD, BLOCK, EDGE, Stream, Sum, Window

CONTENT = random.Random(0).randbytes(3 * BLOCK + 5)


def test_what_is_taken_filled_and_skipped_is_hashed_in_the_order_of_the_file():
    room = bytearray(BLOCK + 1)
    with Sum.of(True) as total:
        stream = Stream(io.BytesIO(CONTENT), total)
        assert stream.take(7) == CONTENT[:7]
        assert stream.look(20, 5) == CONTENT[27:32]
        stream.fill(memoryview(room))
        assert room == CONTENT[7 : BLOCK + 8]
        stream.skip_to(2 * BLOCK)
        stream.pass_over(stream.look(0, 3))
        assert stream.take(4) == CONTENT[2 * BLOCK + 3 : 2 * BLOCK + 7]
        assert stream.skip_to_end() == len(CONTENT)
        assert total.hexdigest() == sha256(CONTENT).hexdigest()


def test_without_a_sum_nothing_is_read_on_the_way():
    class File(io.BytesIO):
        def read(self, size=-1):
            read.append((self.tell(), size))
            return super().read(size)

    read = []
    with Sum.of(False) as total:
        stream = Stream(File(CONTENT), total)
        stream.skip_to(BLOCK)
        assert stream.take(3) == CONTENT[BLOCK : BLOCK + 3]
    assert read == [(BLOCK, 3)]


@pytest.mark.parametrize(
    "read",
    [
        lambda stream: stream.take(9),
        lambda stream: stream.fill(memoryview(bytearray(9))),
        lambda stream: stream.look(5, 4),
        lambda stream: stream.skip_to(9),
    ],
)
def test_more_than_there_is_is_an_error(read):
    with Sum.of(True) as total, pytest.raises(EOFError, match="the file ends before it does"):
        read(Stream(io.BytesIO(bytes(8)), total))


def test_nothing_lies_behind():
    stream = Stream(io.BytesIO(bytes(8)), None)
    stream.take(5)
    with pytest.raises(ValueError, match=r"^it begins at byte 4, in the middle of another one$"):
        stream.skip_to(4)


def test_memory_is_not_given_back_before_it_is_hashed_also_after_an_error():
    hashing, told = threading.Event(), []

    class Slow:
        def update(self, block):
            hashing.wait(20)
            told.append(bytes(block[:1]))

    class Short(io.BytesIO):
        def readinto(self, block):
            if self.tell():
                hashing.set()
                return 0
            return super().readinto(block)

    with Sum.of(True) as total:
        total._digest = Slow()
        with pytest.raises(EOFError):
            Stream(Short(CONTENT), total).fill(memoryview(bytearray(2 * BLOCK)))
        assert told == [CONTENT[:1]]


def test_not_more_than_a_few_blocks_wait_to_be_hashed():
    with Sum.of(True) as total:
        for _ in range(3 * AHEAD):
            total.add(bytes(BLOCK))
            assert len(total._waiting) <= AHEAD
        assert total.hexdigest() == sha256(bytes(3 * AHEAD * BLOCK)).hexdigest()


# ---------------------------------------------------------------- a window for torch
@pytest.fixture
def window(tmp_path):
    """A window on a file of 6 edges, its content, and the sum of what goes by."""
    content = random.Random(0).randbytes(6 * EDGE)
    (tmp_path / "file").write_bytes(content)
    with Folder(tmp_path).open("file") as file, Sum.of(True) as total:
        yield Window(Stream(file, total), len(content)), content, total


def test_what_torch_leaves_out_is_hashed_too(window):
    view, content, total = window
    with view.plain_errors():
        view.seek(EDGE - 3)
        assert view.read(10) == content[EDGE - 3 : EDGE + 7]
        view.seek(-5, os.SEEK_END)
        assert view.read() == content[-5:]
        view.seek(2 * len(content))
        assert view.read(1) == b""
    assert total.hexdigest() == sha256(content).hexdigest()


def test_what_goes_by_but_once_can_not_be_read_twice(window):
    view, *_ = window

    def read_twice():
        with view.plain_errors():
            view.seek(EDGE)
            view.read(3)
            view.seek(EDGE)
            with contextlib.suppress(ValueError):  # as if torch tried something else
                view.read(3)

    with pytest.raises(ValueError, match=rf"^byte {EDGE} was asked for, where {EDGE + 3} is the next one$"):
        read_twice()
