"""A driver made by hand: gives a session its orders one by one and expects each message that it should send."""

import os
import threading

import cloudpickle

from tests.waiting import wait_until
from workers.mailbox import Mailbox, Outbox
from workers.orders import Build, Call, Evaluate, Go, Join, Leave, Order
from workers.rank import Membership, Place
from workers.session import Session

ALONE = Membership(generation=0, rank=0, world_size=1)
PLACE = Place(node="local", host="here", address="127.0.0.1", pid=os.getpid())


class HandDriver:
    """One session in a thread, and all that it has said."""

    def __init__(self, membership: Membership = ALONE) -> None:
        self.membership = membership
        self.session = Session(worker_id=membership.rank, place=PLACE, outbox=Outbox(), mailbox=Mailbox())
        self.thread = threading.Thread(target=self.session.run)
        self.heard: list[object] = []
        self._waiting: list[object] = []
        self._orders = 0

    def __enter__(self) -> "HandDriver":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.order(Leave())
        self.thread.join(timeout=30)
        assert not self.thread.is_alive(), "the session did not leave"

    def order(self, order: Order) -> None:
        self.session.mailbox.put(self._orders, order)
        self._orders += 1

    def next(self) -> object:
        """The next message of the session."""
        return wait_until(self._pop, what=f"a message after {self.heard[-1:]}", timeout=20)

    def rest(self) -> list[object]:
        """What has come and nobody asked for."""
        self._collect()
        rest, self._waiting = self._waiting, []
        return rest

    def expect(self, kind: type) -> object:
        """The next message, which is of this kind."""
        message = self.next()
        assert type(message) is kind, f"expected {kind.__name__}, came {message}"
        return message

    def build(self, build, *, gates=None, watches=None, handlers=(), seed=0, config=None) -> None:
        self.order(
            Build(
                program=cloudpickle.dumps(build), config=config or {}, seed=seed, membership=self.membership,
                gates=gates or {}, watches=watches or {}, handlers=handlers,
            )
        )  # fmt: skip

    def join(self, store=None, load=None) -> None:
        self.order(Join(membership=self.membership, store=store, timeout=20.0, load=load))

    def go(self, max_epochs=1) -> None:
        self.order(Go(max_epochs=max_epochs, max_iters=None, epoch_length=None))

    def evaluate(self, number: int, engine: str = "evaluator") -> None:
        self.order(Evaluate(order=number, engine=engine))

    def call(self, number: int, function, *args, **kwargs) -> None:
        self.order(Call(order=number, pickled=cloudpickle.dumps((function, args, kwargs))))

    def _pop(self) -> object:
        self._collect()
        return self._waiting.pop(0) if self._waiting else None

    def _collect(self) -> None:
        taken = self.session.outbox.take(timeout=0)
        self.heard += taken
        self._waiting += taken
