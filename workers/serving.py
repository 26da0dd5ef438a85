"""What a rank does for the driver while it waits at a gate: evaluate, call a function, plan and copy a checkpoint.

Between `speaking.py`, by which it answers, and `surviving.py`; `session.py` decides when an order is served.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import TYPE_CHECKING

import cloudpickle

from workers.errors import LeaveNow
from workers.evaluating import evaluate
from workers.faults import fault_kind
from workers.mailbox import Mailbox, Outbox
from workers.messages import Answer, Saved
from workers.orders import Call, Evaluate, FreezeSave, PlanSave
from workers.parcels import Failure, FaultKind, Writing
from workers.rank import Place
from workers.speaking import Speaking

if TYPE_CHECKING:
    from workers.saving import RankSaver

__all__ = ["Serving"]


class Serving(Speaking):
    """One rank, as far as it serves. `Session` is the one to use; the arguments are those of `Speaking`."""

    def __init__(self, *, worker_id: int, place: Place, outbox: Outbox, mailbox: Mailbox) -> None:
        super().__init__(worker_id=worker_id, place=place, outbox=outbox, mailbox=mailbox)
        self._visits: dict[str, int] = {}
        self._saver: RankSaver | None = None  # from the first save on

    def _writing(self) -> Writing | None:
        return None if self._saver is None else self._saver.writing

    def _evaluate(self, order: Evaluate) -> None:
        before = self._note(f"evaluating with {order.engine}")
        self._visits[order.engine] = order.order
        engine = evaluate(self.worker, self.program, order.engine)
        self._note(before)
        self.send(Answer, order=order.order, value=self._reports.packs(engine))

    def _call(self, order: Call) -> None:
        function, args, kwargs = pickle.loads(order.pickled)
        kind: FaultKind = "user"
        before = self._note(f"calling {getattr(function, '__qualname__', function)}")
        try:
            value, failure = cloudpickle.dumps(function(self.worker, *args, **kwargs)), None
        except LeaveNow:
            raise
        except BaseException as error:  # the caller on the driver gets it, as from any function
            value, failure, kind = None, Failure.of(error), fault_kind(error)
        self._note(before)
        self.send(Answer, order=order.order, value=value, failure=failure, kind=kind)

    def _plan_save(self, order: PlanSave) -> None:
        from workers.saving import RankSaver  # a second of imports, at the first save

        before = self._note("planning a checkpoint")
        if self._saver is None:
            self._saver = RankSaver(self.worker, self.program, partial(self.send, Saved))
        self.send(Answer, order=order.order, value=self._saver.plan())
        self._note(before)

    def _freeze_save(self, order: FreezeSave) -> None:
        assert self._saver is not None, "FreezeSave came before PlanSave"
        before = self._note("copying the state for a checkpoint")
        self._saver.freeze(order.plan, order.url, order.given_up)
        self.send(Answer, order=order.order)
        self._note(before)
