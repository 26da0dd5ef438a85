"""What came from workers, as it is taken: in order, and nothing of a worker that is done with."""

from __future__ import annotations

import threading

from orchestrator.exchange import Inbox, Interrupt, Lost
from workers.messages import Joined


def joined(worker: int, seq: int = 0) -> Joined:
    return Joined(generation=0, worker=worker, rank=worker, seq=seq)


def test_things_are_taken_in_the_order_in_which_they_came() -> None:
    inbox = Inbox()
    came = [joined(0), Interrupt(), Lost(worker=1, cause="killed"), joined(0, 1)]
    for one in came:
        inbox.put(one)
    assert [inbox.take(0) for _ in came] == came
    assert inbox.take(0) is None


def test_take_waits_for_another_thread_and_not_for_ever() -> None:
    inbox, got = Inbox(), []
    assert inbox.take(0.001) is None
    thread = threading.Thread(target=lambda: got.append(inbox.take(30)))
    thread.start()
    inbox.put(joined(0))
    thread.join(30)
    assert got == [joined(0)]


def test_nothing_is_taken_of_a_worker_that_was_closed_be_it_older_or_newer() -> None:
    inbox = Inbox()
    inbox.put(joined(1))
    inbox.put(joined(0))
    inbox.close(1)
    inbox.put(Lost(worker=1, cause="killed"))
    inbox.put(Interrupt())
    assert [inbox.take(0), inbox.take(0), inbox.take(0)] == [joined(0), Interrupt(), None]
