"""A file that is read once, from its beginning to its end, and hashed meanwhile; and a window on it for `torch.load`.

What is verified is then what was read, not what a second look at the disk finds. Used by `parts.py`.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

__all__ = ["BLOCK", "EDGE", "Stream", "Sum", "Window"]

BLOCK = 1 << 20  # bytes that are read, then hashed while the next are read
EDGE = 16 << 10  # bytes at both ends of a window that are kept
AHEAD = 4  # blocks that may wait to be hashed


class Sum:
    """The sha256 of blocks that are given one after the other, computed in a thread of its own."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rankfire-hash")
        self._waiting: deque[Future[None]] = deque()

    @classmethod
    @contextmanager
    def of(cls, hashed: bool) -> Iterator[Sum | None]:
        """A sum where one is wanted; its thread ends with the block."""
        if not hashed:
            yield None
            return
        total = cls()
        try:
            yield total
        finally:
            total._pool.shutdown(cancel_futures=True)

    def add(self, block: bytes | memoryview) -> None:
        """The next block, which must stay as it is until `settle` returns."""
        self._waiting.append(self._pool.submit(self._digest.update, block))
        if len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def settle(self) -> None:
        """Wait until all that was added is in the sum."""
        while self._waiting:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        """Of all that was added."""
        self.settle()
        return self._digest.hexdigest()


class Stream:
    """A file that is read from its beginning to its end; where a sum is wanted, no byte is left out.

    Attributes:
        seeks: whether going to and fro costs nothing; a file of an object store would be fetched anew each time.
    """

    def __init__(self, file: BinaryIO, total: Sum | None) -> None:
        self.seeks = isinstance(file, io.BufferedReader)
        self._file = file
        self._total = total
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes, exactly so many."""
        content = self._file.read(count)
        if len(content) < count:
            raise EOFError("the file ends before it does")
        self._passed(content)
        return content

    def fill(self, room: memoryview) -> None:
        """The next bytes, as many as there is room for, into memory."""
        file: Any = self._file
        try:
            for start in range(0, len(room), BLOCK):
                block = room[start : start + BLOCK]
                if file.readinto(block) < len(block):
                    raise EOFError("the file ends before it does")
                self._passed(block)
        finally:
            if self._total is not None:
                self._total.settle()  # before anybody can change or free what was read

    def look(self, ahead: int, count: int) -> bytes:
        """Bytes that begin further on; the place in the file stays."""
        self._file.seek(self._at + ahead)
        content = self._file.read(count)
        self._file.seek(self._at)
        if len(content) < count:
            raise EOFError("the file ends before it does")
        return content

    def pass_over(self, content: bytes) -> None:
        """Go on behind what is next, and was looked at already."""
        self._file.seek(self._at + len(content))
        self._passed(content)

    def skip_to(self, place: int) -> None:
        """Go forward to a place in the file."""
        if place < self._at:
            raise ValueError(f"it begins at byte {place}, in the middle of another one")
        if self._total is None:
            self._at = self._file.seek(place)
        while self._at < place:
            self.take(min(BLOCK, place - self._at))

    def skip_to_end(self) -> int:
        """Go to the end of the file; returns its size."""
        while content := self._file.read(BLOCK):
            self._passed(content)
        return self._at

    def _passed(self, content: bytes | memoryview) -> None:
        self._at += len(content)
        if self._total is not None:
            self._total.add(content)


class Window(io.RawIOBase):
    """The next bytes of a stream as a file of their own, for `torch.load`.

    torch looks at both ends again and again, and reads what is between them once: the tensor, into its memory. So the
    ends are kept here, and the rest is read when torch asks for it.
    """

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._at = 0
        self._tail_at = size - EDGE
        self._tail = stream.look(self._tail_at, EDGE)
        self._head = stream.take(EDGE)
        self._read = EDGE  # so many bytes have gone by
        self._failure: Exception | None = None

    @contextmanager
    def plain_errors(self) -> Iterator[Window]:
        """What went wrong here is told as that; torch makes another error of it. At the end all has gone by."""
        try:
            yield self
        finally:
            if self._failure is not None:
                raise self._failure from None
        while self._read < self._tail_at:
            self._read += len(self._stream.take(min(BLOCK, self._tail_at - self._read)))
        self._stream.pass_over(self._tail)

    def readable(self) -> bool:  # noqa: D102 - said in io, as for all that follow
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:  # noqa: D102
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        room = memoryview(buffer).cast("B")[: max(self._size - self._at, 0)]
        try:
            self._give(room, self._at, self._at + len(room))
        except Exception as error:
            self._failure = error
            raise
        self._at += len(room)
        return len(room)

    def _give(self, room: memoryview, begin: int, end: int) -> None:
        if begin < (until := min(end, EDGE)):
            room[: until - begin] = self._head[begin:until]
        if (middle := max(begin, EDGE)) < (until := min(end, self._tail_at)):
            if middle != self._read:
                raise ValueError(f"byte {middle} was asked for, where {self._read} is the next one")
            self._stream.fill(room[middle - begin : until - begin])
            self._read = until
        if (tail := max(begin, self._tail_at)) < end:
            room[tail - begin :] = self._tail[tail - self._tail_at : end - self._tail_at]
