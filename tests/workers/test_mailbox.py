"""Orders in their order, messages that are never lost unless they only observe."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from workers import mailbox
from workers.mailbox import Mailbox, Outbox
from workers.messages import Joined, Observed
from workers.orders import Evaluate
from workers.parcels import GateKey


def order(number: int) -> Evaluate:
    return Evaluate(order=number, engine="evaluator")


def joined(seq: int) -> Joined:
    return Joined(generation=0, worker=0, rank=0, seq=seq)


def observed(seq: int) -> Observed:
    gate = GateKey(engine="trainer", event="ITERATION_COMPLETED", count=seq)
    return Observed(
        generation=0, worker=0, rank=0, seq=seq, gate=gate, epoch=1, iteration=seq, epoch_length=None, samples=0,
        packs={}, output={},
    )  # fmt: skip


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4))
def test_orders_come_out_by_number_however_they_were_delivered(sequence, repeated):
    box = Mailbox()
    for number in [*sequence, *repeated]:
        box.put(number, order(number))
    assert [box.get().order for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    assert box.take() is None


def test_an_order_waits_for_the_one_before_it():
    box = Mailbox()
    box.put(1, order(1))
    assert box.take() is None
    box.put(0, order(0))
    assert [box.take().order, box.take().order] == [0, 1]


def test_an_order_that_was_taken_is_not_taken_again():
    box = Mailbox()
    box.put(0, order(0))
    box.get()
    box.put(0, order(0))
    assert box.take() is None


def test_a_second_delivery_of_a_waiting_order_is_ignored():
    box = Mailbox()
    box.put(0, order(7))
    box.put(0, order(8))
    assert box.get().order == 7
    assert box.take() is None


def test_get_waits_for_another_thread():
    box, got = Mailbox(), []
    thread = threading.Thread(target=lambda: got.append(box.get()))
    thread.start()
    box.put(1, order(1))
    box.put(0, order(0))
    wait_until(lambda: got, what="the order")
    thread.join()
    assert got[0].order == 0


def test_an_idle_box_works_instead_of_waiting():
    called = []

    def idle():
        called.append(1)
        if len(called) == 3:
            box.put(0, order(0))

    box = Mailbox(idle=idle)
    assert box.get().order == 0
    assert len(called) == 3


def test_messages_come_out_in_the_order_in_which_they_were_put():
    box = Outbox()
    for seq in range(3):
        box.put(joined(seq))
    assert [message.seq for message in box.take(timeout=0)] == [0, 1, 2]
    assert box.take(timeout=0) == []


def test_take_waits_for_the_first_message():
    box, got = Outbox(), []
    thread = threading.Thread(target=lambda: got.extend(box.take(timeout=30)))
    thread.start()
    box.put(joined(0))
    thread.join(timeout=30)
    assert [message.seq for message in got] == [0]


def test_take_gives_nothing_when_its_time_is_over():
    assert Outbox().take(timeout=0.001) == []


def test_observations_push_out_the_oldest_one_and_are_counted(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_OBSERVED", 2)
    box = Outbox()
    for message in (observed(0), joined(1), observed(2), observed(3), joined(4), observed(5)):
        box.put(message)
    assert box.drops == 2
    assert [message.seq for message in box.take(timeout=0)] == [1, 3, 4, 5]


def test_what_steers_is_never_dropped(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_OBSERVED", 1)
    box = Outbox()
    for seq in range(5):
        box.put(joined(seq))
    assert len(box.take(timeout=0)) == 5
    assert box.drops == 0


def test_the_room_for_observations_is_free_again_after_a_take(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_OBSERVED", 1)
    box = Outbox()
    box.put(observed(0))
    box.take(timeout=0)
    box.put(observed(1))
    assert box.drops == 0


def test_a_closed_box_is_closed_once_its_last_message_is_taken():
    box = Outbox()
    box.put(joined(0))
    box.close()
    assert not box.closed
    assert len(box.take(timeout=30)) == 1
    assert box.closed


@pytest.mark.parametrize("timeout", [0, 30])
def test_a_closed_box_does_not_wait(timeout):
    box = Outbox()
    box.close()
    assert box.take(timeout=timeout) == []


def test_closing_wakes_the_stream():
    box, got = Outbox(), []
    thread = threading.Thread(target=lambda: got.append(box.take(timeout=60)))
    thread.start()
    box.close()
    thread.join(timeout=30)
    assert got == [[]]
