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
    for number in range(2):
        thread = threading.Thread(target=lambda: got.extend(box.take(timeout=30)))
        thread.start()
        wait_until(lambda: box._changed._waiters, what="a taker that waits")
        box.put(joined(number))
        thread.join(timeout=30)
    assert [message.seq for message in got] == [0, 1]


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


def sent(box, number, timeout=0):
    return [number for number, _ in box.after(number, timeout)]


def test_what_a_stream_was_given_is_given_again_until_it_is_acknowledged():
    box = Outbox()
    for seq in range(3):
        box.put(joined(seq))
    assert sent(box, 0) == [1, 2, 3]
    assert sent(box, 3) == []
    assert sent(box, 1) == [2, 3]
    box.acknowledge(2)
    assert sent(box, 0) == [3]


@given(st.lists(st.sampled_from(["put", "stream", "break", "acknowledge"]), max_size=40))
def test_however_streams_break_each_message_is_heard_once_and_in_order(steps):
    """A stream's cursor runs ahead of what was heard; when it breaks, the next one begins where hearing ended."""
    box, put, heard, on_its_way, cursor = Outbox(), 0, [], [], 0
    for step in [*steps, "break", "stream"]:
        if step == "put":
            put += 1
            box.put(joined(put))
        elif step == "stream":
            heard += on_its_way
            on_its_way = sent(box, cursor)
            cursor = max([cursor, *on_its_way])
        elif step == "break":  # what was on its way may have arrived in part
            heard += on_its_way[: len(on_its_way) // 2]
            on_its_way, cursor = [], max(heard, default=0)
        else:
            box.acknowledge(max(heard, default=0))
    heard += on_its_way
    assert heard == list(range(1, put + 1))


def test_after_waits_for_the_first_message_beyond_the_number():
    box, got = Outbox(), []
    box.put(joined(1))
    thread = threading.Thread(target=lambda: got.extend(sent(box, 1, timeout=30)))
    thread.start()
    box.put(joined(2))
    thread.join(timeout=30)
    assert got == [2]


def test_who_waits_can_be_woken_without_a_message():
    box, got = Outbox(), []
    thread = threading.Thread(target=lambda: got.append(sent(box, 0, timeout=60)))
    thread.start()
    wait_until(lambda: box.wake() or got, what="the end of the wait")
    thread.join()
    assert got == [[]]


def test_a_stream_ends_at_the_last_message_of_a_closed_box():
    box = Outbox()
    box.put(joined(1))
    assert not box.ends_at(1)
    box.close()
    assert (box.ends_at(0), box.ends_at(1)) == (False, True)
    assert sent(box, 1, timeout=30) == []


def test_an_observation_that_was_sent_already_is_no_drop_when_it_is_pushed_out(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_OBSERVED", 2)
    box = Outbox()
    box.put(observed(1))
    assert sent(box, 0) == [1]
    for seq in (2, 3, 4):
        box.put(observed(seq))
    assert box.drops == 1  # the second, which nobody was given
    box.acknowledge(4)
    box.put(observed(5))
    assert box.drops == 1
