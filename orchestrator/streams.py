"""The streams of all workers, read by one thread into one inbox; and the beats by which workers know that we live.

The first error of a stream, of whatever kind, means that its worker is lost now, unless the connection alone broke:
then the next stream of a worker that lives begins where hearing ended. Knows nothing of Ray: `group.py` says how a
stream is opened and a beat is given.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from orchestrator.exchange import Inbox, Lost
from workers.messages import Hello, Message
from workers.rank import Place

__all__ = ["Line", "Streams"]

RETURN = 1.0  # seconds in which a broken stream must go on, or its worker is lost
UNHEARD = 256  # messages after which a worker is told that they have arrived, beside the beats

_GUESSES = " Some common causes include"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Batch = list[tuple[int, Message]]  # messages with their numbers, see `workers/mailbox.py`


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """One worker's stream, and how it is opened.

    Args:
        worker: its id.
        open: gives stream number `epoch`, which begins after message number `heard`.
        beat: tells the worker that the driver lives, and has its messages up to a number; does not wait for an answer.
        again: whether this error means that the worker never began to live, and it is started once more.
    """

    worker: int
    open: Callable[[int, int], AsyncIterator[Awaitable[Batch]]]
    beat: Callable[[int], None]
    again: Callable[[BaseException], bool] = lambda _: False
    epoch: int = 0
    heard: int = 0
    acknowledged: int = 0
    items: int = 0
    leaving: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Streams:
    """Reads what all workers say.

    Args:
        inbox: where it goes.
        beat: seconds between two signs of life for the workers.
        may_return: errors after which a worker may still be there.
        home: where a node listens, by its id, if that is known: one that refuses a connection is no node any more.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        beat: float,
        may_return: tuple[type[BaseException], ...] = (),
        home: Callable[[str], tuple[str, int] | None] = lambda _: None,
    ) -> None:
        self.ended: set[int] = set()
        self.places: dict[int, Place] = {}  # worker → where it said hello
        self._inbox = inbox
        self._beat = beat
        self._may_return = may_return
        self._home = home
        self._lines: dict[int, Line] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rankfire-streams", daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._give_beats)

    def follow(self, line: Line) -> None:
        """Read a worker's stream until it ends or breaks; from any thread."""
        assert self._loop is not None, "the streams are not started"
        self._lines[line.worker] = line
        self._loop.call_soon_threadsafe(self._begin, line)

    def expect_end(self, worker: int) -> None:
        """The worker was told to leave: that its stream ends is no loss."""
        if (line := self._lines.get(worker)) is not None:
            line.leaving = True

    def drop(self, worker: int) -> None:
        """Read nothing more of a worker."""
        line = self._lines.pop(worker, None)
        self.ended.add(worker)
        if line is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: line.task and line.task.cancel())

    def stop(self) -> None:
        """End the thread. Readers do not end with Ray, so this comes first."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(timeout=5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5.0)
        loop.close()
        self._loop = self._thread = None

    # ---------------------------------------------------------------- in the thread
    def _begin(self, line: Line) -> None:
        if self._lines.get(line.worker) is line:  # it may have been dropped meanwhile
            line.task = asyncio.get_running_loop().create_task(self.read(line))

    async def read(self, line: Line) -> None:
        """Move one worker's messages into the inbox until its stream ends, or breaks for good."""
        cause: str | None = None
        within: float | None = None
        while True:
            before = line.items
            try:
                await self._drain(line, within)
                cause = None
                break
            except Exception as error:  # of any kind: this worker can't be heard any more
                if line.items == 0 and line.again(error):
                    return
                if cause is None or not isinstance(error, asyncio.TimeoutError):  # which only says that it stayed away
                    cause = _cause(error)
                tried = within is not None and line.items == before
                if tried or not isinstance(error, self._may_return) or await self._node_is_gone(line.worker):
                    break
            line.epoch += 1
            within = RETURN
        self._end(line, cause)

    async def _drain(self, line: Line, within: float | None) -> None:
        """Move messages into the inbox; the first batch must come within so many seconds."""
        stream = line.open(line.epoch, line.heard)
        while True:
            try:
                batch = await asyncio.wait_for(_next_of(stream), within)
            except StopAsyncIteration:
                return
            within = None
            line.items += 1
            for number, message in batch:
                if isinstance(message, Hello):
                    self.places[line.worker] = message.place
                if number == 0 or number > line.heard:
                    self._inbox.put(message)
                    line.heard = max(line.heard, number)
            if line.heard - line.acknowledged >= UNHEARD:
                self._tell(line)

    async def _node_is_gone(self, worker: int) -> bool:
        place = self.places.get(worker)
        where = None if place is None else self._home(place.node)
        if where is None:
            return False
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(*where), RETURN / 4)
        except ConnectionRefusedError:
            return True
        except (OSError, asyncio.TimeoutError):  # nobody knows
            return False
        writer.close()
        return False

    def _end(self, line: Line, cause: str | None) -> None:
        """The stream is over: `cause` is None if it ended by itself, which it may only when the worker shall leave."""
        self._lines.pop(line.worker, None)  # no beat any more: if the worker lives, it shall end
        self.ended.add(line.worker)
        if cause is not None or not line.leaving:
            self._inbox.put(Lost(worker=line.worker, cause=cause or "its stream ended"))

    def _give_beats(self) -> None:
        """Tell all workers that we live; nobody waits for their answers."""
        for line in list(self._lines.values()):
            self._tell(line)
        asyncio.get_running_loop().call_later(self._beat, self._give_beats)

    def _tell(self, line: Line) -> None:
        line.acknowledged = line.heard
        line.beat(line.heard)


async def _next_of(stream: AsyncIterator[Awaitable[Batch]]) -> Batch:
    return await (await stream.__anext__())


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cause(error: BaseException) -> str:
    """The last line of Ray's error, which tells, without its guesses; before it stand tracebacks and ids."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].partition(_GUESSES)[0] if lines else ''}".rstrip(": ")
