"""What a rank makes of a fault: its own, which ends its work, or a lost peer, after which it waits to join again.

Between `serving.py` and `session.py`; when and how ranks join anew is the driver's decision.
"""

from __future__ import annotations

import threading

from workers import process_group
from workers.cut import Cut
from workers.engine import Engine
from workers.errors import Retreat
from workers.faults import fault_kind
from workers.mailbox import Mailbox, Outbox
from workers.messages import Fault
from workers.orders import Build, Join, Order
from workers.parcels import Failure
from workers.rank import Place
from workers.serving import Serving

__all__ = ["GRACE", "Surviving"]

GRACE = 0.15  # seconds in which a rank that waits for a lost peer may hear of it by itself


class Surviving(Serving):
    """One rank, as far as it outlives others. `Session` is the one to use; the arguments are those of `Speaking`.

    Attributes:
        error: what ended this rank, for a driver in the same process.
    """

    _cut: Cut

    def __init__(self, *, worker_id: int, place: Place, outbox: Outbox, mailbox: Mailbox) -> None:
        super().__init__(worker_id=worker_id, place=place, outbox=outbox, mailbox=mailbox)
        self.error: BaseException | None = None
        self._knife: threading.Timer | None = None  # cuts the links of a rank that does not let go by itself
        self._over = False  # the program raised: nothing but `Leave` is served
        self._wanted = 0  # the lowest generation that this rank may still join
        self._out = False  # a peer was lost: until the next `Join`, no order but that is served
        self._aborted = 0  # the highest generation that `Abort` has announced

    def _timely(self, order: Order) -> bool:
        """Whether an order is of this generation: one that was given before a fault is not."""
        if isinstance(order, Build | Join):
            return order.membership.generation >= self._wanted
        return not self._out

    def _fail(self, error: BaseException) -> None:
        if self._over:
            return  # raised by a program that stopped the first one's unwinding
        kind, self.error = fault_kind(error), error
        if kind == "communication":  # a peer is gone: the others shall hear of it, and this rank can go on
            process_group.sever(self.membership.generation)
            self._wanted, self._out = max(self._wanted, self.membership.generation + 1), True
            if self._aborted > self.membership.generation:
                raise Retreat from error
        else:
            self._over = True
        self.send(
            Fault,
            kind=kind,
            phase=self._note("failed"),
            iteration=self._reports.progress(self._engine(), self._worker)["iteration"],
            failure=Failure.of(error),
        )

    def _abort(self, generation: int) -> None:
        """Another generation is coming: let the training thread out of whatever it is in; from any thread."""
        if self._over or generation <= self._aborted:
            return
        self._aborted = generation
        self.mailbox.interrupt(Retreat)
        self._cut.cancel()
        for engine in self._engines():
            engine.set_boundary(_retreat)
        # A group that still moves is not cut: of its own the rank hears in a moment, if it hears at all.
        self._knife = threading.Timer(GRACE, process_group.sever, (generation - 1,))
        self._knife.daemon = True
        self._knife.start()


def _retreat(engine: Engine) -> None:
    """What an engine does between two iterations when another generation is coming."""
    raise Retreat
