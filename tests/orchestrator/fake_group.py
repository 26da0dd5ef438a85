"""A group of scripted ranks in this process: what the driver's loop speaks to in tests instead of Ray's actors.

Every rank answers each kind of order by a script, which may be replaced; whatever comes next is in one queue, in the
order in which it was put there. Nothing waits: an empty queue is told at once, as if the time had passed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle

from orchestrator.exchange import Incoming, Interrupt, Lost
from workers.locations import storage_at
from workers.messages import Answer, Arrived, Built, Fault, Finished, Hello, Joined, Message, Observed, Saved
from workers.orders import Build, Call, CutAt, Evaluate, FreezeSave, Go, Join, Order, PlanSave, ProposeCut, Release
from workers.parcels import Failure, GateKey, Number, Planned
from workers.rank import Place

__all__ = ["FakeGroup", "gate"]

Script = Callable[[int, Any], None]  # (worker, order)


def gate(event: str = "EPOCH_COMPLETED", count: int = 1, engine: str = "trainer", visit: int = 0) -> GateKey:
    """A gate's key."""
    return GateKey(engine=engine, event=event, count=count, visit=visit)


class FakeGroup:
    """Workers that do what the test says.

    Args:
        size: how many.
        gates: where every rank arrives, one after the other, before it finishes.
    """

    needs_store = False

    def __init__(self, size: int = 2, gates: Iterable[GateKey] = ()) -> None:
        self.size = size
        self.gates = tuple(gates)
        self.orders: list[tuple[int, Order]] = []  # everything that was ordered
        self.inbox: deque[Incoming | Callable[[], None]] = deque()
        self.short: str | None = None
        self._heard = time.monotonic()
        self.passed = [0] * size  # worker → gates behind it
        self.shares = [Share(worker) for worker in range(size)]
        self.scripts: dict[type[Order], Script] = {
            Build: lambda worker, order: self.send(
                Built,
                worker,
                device="cpu",
                seconds=0.0,
                engines=("trainer", "evaluator"),
                state_bytes={},
                metrics={},
                data={},
            ),
            Join: lambda worker, order: self.send(Joined, worker),
            Go: lambda worker, order: self.go_on(worker),
            Release: lambda worker, order: self.go_on(worker),
            Evaluate: lambda worker, order: self.answer(worker, order, {"accuracy": Number(value=float(worker))}),
            Call: lambda worker, order: self.answer(worker, order, cloudpickle.dumps(f"rank {worker}")),
            PlanSave: lambda worker, order: self.answer(worker, order, self.shares[worker].planned()),
            FreezeSave: lambda worker, order: self.freeze(worker, order),
            ProposeCut: lambda worker, order: self.answer(worker, order, 10 + worker),
            CutAt: lambda worker, order: self.arrive(worker, gate("CUT", order.iteration), iteration=order.iteration),
        }

    # ---------------------------------------------------------------- what the loop calls
    def start(self) -> None:
        """All say hello."""
        for worker in range(self.size):
            self.hello(worker)

    def address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    def shortage(self) -> str | None:
        """What the test says."""
        return self.short

    def draining(self) -> Mapping[str, float]:
        """No node goes away."""
        return {}

    def order(self, worker: int, order: Order) -> None:
        """Note it, and let the rank's script answer."""
        self.orders.append((worker, order))
        self.scripts[type(order)](worker, order)

    def take(self, timeout: float) -> Incoming | None:
        """What comes next; a function in the queue is called when it is its turn."""
        while self.inbox:
            self._heard = time.monotonic()
            came = self.inbox.popleft()
            if not callable(came):
                return came
            came()
        assert time.monotonic() < self._heard + 10.0, f"the loop waits for ever; it ordered {self.orders}"
        return None

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self.inbox.append(Interrupt())

    def tell(self, came: Incoming) -> None:
        """As another thread of the driver does."""
        self.inbox.append(came)

    def stop(self, *, grace: float) -> list[str]:
        """Nothing to end."""
        return []

    # ---------------------------------------------------------------- what ranks say
    def send(self, message: type[Message], worker: int, **fields: Any) -> None:
        """Put a message of one rank into the queue."""
        self.inbox.append(message(generation=0, worker=worker, rank=worker, seq=0, **fields))

    def hello(self, worker: int) -> None:
        """One worker is up."""
        self.send(Hello, worker, place=Place(node="node-a", host="host", address="127.0.0.1", pid=100 + worker))

    def arrive(self, worker: int, key: GateKey, **fields: Any) -> None:
        """One rank waits at a gate."""
        self.send(Arrived, worker, gate=key, **(REPORT | fields))

    def observe(self, worker: int, key: GateKey, **fields: Any) -> None:
        """One rank tells of a watched event."""
        self.send(Observed, worker, gate=key, **(REPORT | fields))

    def go_on(self, worker: int) -> None:
        """On to the next gate, or to the end."""
        number, self.passed[worker] = self.passed[worker], self.passed[worker] + 1
        if number < len(self.gates):
            loss = Number(value=1.0 + 2.0 * worker, count=1 + worker)
            self.arrive(worker, self.gates[number], packs={"loss": loss}, output={"loss": loss})
        else:
            self.finish(worker)

    def finish(self, worker: int) -> None:
        """One rank's training has ended."""
        self.send(Finished, worker, iteration=100, epoch=5)

    def answer(self, worker: int, order: Any, value: object) -> None:
        """One rank has done what was asked."""
        self.send(Answer, worker, order=order.order, value=value)

    def freeze(self, worker: int, order: FreezeSave) -> None:
        """One rank has copied its share, and writes it when the driver has gone on."""
        self.answer(worker, order, None)
        self.inbox.append(lambda: self.save(worker, order.url, self.shares[worker].written(order)))

    def save(self, worker: int, url: str, written: object = None, failure: Failure | None = None) -> None:
        """One rank has written its share, or could not."""
        self.send(Saved, worker, url=url, written=written, failure=failure)

    def fail(self, worker: int, kind: Any = "user", text: str = "boom") -> None:
        """One rank caught an exception."""
        failure = Failure(type_name="ValueError", text=text, traceback="the traceback\n")
        self.send(Fault, worker, kind=kind, phase="training", iteration=3, failure=failure)

    def lose(self, worker: int) -> None:
        """One rank's process is gone."""
        self.inbox.append(Lost(worker=worker, cause="ActorDiedError: killed"))

    # ---------------------------------------------------------------- what was ordered
    def ordered(self, kind: type[Order], worker: int = 0) -> list[Any]:
        """The orders of one kind that one worker got."""
        return [order for to, order in self.orders if to == worker and isinstance(order, kind)]


class Share:
    """What one rank saves: a model of one tensor, and its own number."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lr = 0.1
        self._shards: Any = None

    def planned(self) -> Planned:
        """As a rank answers `PlanSave`."""
        import torch

        from workers.shards import Shards

        self._shards = Shards({"model": {"w": torch.ones(3), "b": torch.zeros(2)}}, {"rank": self.rank}, self.rank)
        return Planned(
            plan=self._shards.plan(), spread=("model",), state=self._shards.sizes,
            cursor={"seed": 1, "position": 40}, data={"length": 100}, settings={"adam": {"lr": str(self.lr)}},
        )  # fmt: skip

    def written(self, order: FreezeSave) -> object:
        """As a rank tells after `FreezeSave`."""
        return self._shards.freeze(order.plan, {}).write(storage_at(order.url))


REPORT: dict[str, Any] = {
    "epoch": 1, "iteration": 10, "epoch_length": 10, "samples": 40, "packs": {}, "output": {},
}  # fmt: skip
