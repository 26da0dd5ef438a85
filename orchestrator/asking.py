"""Orders that are answered: evaluate, call, plan and write a save; and the agreement on where to cut.

An order goes out while the ranks wait at a gate; the loop is pumped until every rank asked has answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle

from orchestrator.errors import SpecError, TrainingError, explain, name_ranks, no_engine
from orchestrator.gatekeeper import Gatekeeper
from orchestrator.loop import Loop
from orchestrator.passed import Given, OpenGate
from orchestrator.ranks import Ranks
from orchestrator.roll_call import Asked
from orchestrator.settings import pickled
from orchestrator.verdict import by_failure, tell_failures
from workers.messages import Answer
from workers.orders import Call, CutAt, Evaluate, Order, ProposeCut
from workers.parcels import CUT, TRAINER, Failure, GateKey

__all__ = ["Asking", "RegroupedError"]


class RegroupedError(Exception):
    """The ranks went back to a snapshot before all had answered."""


class Asking:
    """The questions of a run.

    Args:
        loop: where answers come from.
        ranks: whom to ask.
        gates: tells whether the ranks wait.
    """

    def __init__(self, loop: Loop, ranks: Ranks, gates: Gatekeeper) -> None:
        self._loop = loop
        self._ranks = ranks
        self._gates = gates
        self._numbers = itertools.count(1)
        self._given: list[Given] = []  # orders that are waited for, outermost first
        self._cut: int | None = None  # order id of a cut that is being agreed on, or was
        self._proposals: dict[int, int] = {}  # rank → the iteration that it answered
        loop.handle({Answer: self._on_answer})
        self._back_to: int | None = None  # iteration of a cut to which ranks that went back shall come again
        self._next = False  # whether another cut is wanted after the one to which ranks are on their way
        gates.cut = self.cut
        gates.cut_reached, gates.cut_reached_again = self.cut_reached, self.cut_reached_again

    def ask(
        self,
        what: str,
        make: Callable[[int, int], Order],
        ranks: Iterable[int] | None = None,
        *,
        lasting: bool = False,
        once: bool = False,
    ) -> dict[int, Answer]:
        """Give ranks an order with an id, and wait until all have answered.

        Args:
            what: its name, for the error of ranks that part over it.
            make: (order id, rank) → the order.
            ranks: whom to ask; None: all.
            lasting: it may change the ranks' state: ranks that go back after a fault carry it out once more.
            once: it is not given again to ranks that go back before all have answered.

        Returns:
            rank → its answer, in the order of ranks.

        Raises:
            GateMismatchError: ranks wait at a gate within it that others will never reach.
            RegroupedError: the ranks went back, and the order was to be given once.
            SpecError: no gate is open.
        """
        if not self._gates.open:
            raise SpecError(
                explain(
                    "orchestrator: evaluate, checkpoint, call",
                    expected="ranks that wait at a gate",
                    received="ranks that train on",
                    mend="give the order inside a blocking driver handler, such as one of EPOCH_COMPLETED, or register "
                    "yours with blocking=True",
                )
            )
        self._gates.wait_present()
        world = self._ranks.world_size
        asked = list(range(world)) if ranks is None else sorted(set(ranks))
        assert all(0 <= rank < world for rank in asked), f"asked {name_ranks(asked)} in a world of {world}"
        gate = self._gates.open[-1]
        given = Given(
            number=next(self._numbers),
            what=what,
            make=make,
            asked=asked,
            everyone=ranks is None,
            lasting=lasting,
            once=once,
        )
        gate.given.append(given)
        self._given.append(given)
        self._gates.asked.append(Asked(what=what, ranks=asked, answered=given.answers.keys(), outer=gate.key))
        try:
            self._gates.give(given)
            while len(given.answers) < len(asked) and not given.void:
                self._loop.pump()
        finally:
            self._gates.asked.pop()
            self._given.remove(given)
        given.done = True
        if given.void:
            raise RegroupedError
        return {rank: given.answers[rank] for rank in asked}

    @property
    def gate(self) -> OpenGate:
        """The gate of the trainer at which the ranks wait."""
        return [gate for gate in self._gates.open if gate.key.engine == TRAINER][-1]

    def evaluate(self, engine: str) -> dict[str, Any]:
        """Have all ranks evaluate their share; the metrics over all of them, by name.

        Raises:
            SpecError: no gate is open, or there is no such engine.
        """
        if engine not in self._ranks.programs.engines:
            raise SpecError(no_engine("orchestrator.evaluate", engine, self._ranks.programs.engines))
        from orchestrator.reduce import reduce_packs  # imported by `Run` while the ranks start

        answers = self.ask(
            f"evaluate({engine!r})", lambda number, _: Evaluate(order=number, engine=engine), lasting=True
        )
        packs: list[Any] = [answer.value for answer in answers.values()]
        self._gates.packs[engine] = packs
        return reduce_packs(packs, self._ranks.programs.empty_metrics(engine))

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        ranks: Iterable[int] | None,
    ) -> dict[int, Any]:
        """Have ranks call a function; what it returned, by rank.

        Args:
            function: called as `function(worker, *args, **kwargs)`.
            args: passed on.
            kwargs: passed on.
            ranks: whom to ask; None: all.

        Raises:
            SpecError: no gate is open, or something can't be pickled.
            TrainingError: it raised on a rank, or returned what can't be pickled.
        """
        call = pickled((function, args, dict(kwargs)), "orchestrator.call")
        answers = self.ask("call", lambda number, _: Call(order=number, pickled=call), ranks, lasting=True)
        failed = {rank: answer.failure for rank, answer in answers.items() if answer.failure is not None}
        if failed:
            raise _of_call(failed)
        return {rank: cloudpickle.loads(answer.value) for rank, answer in answers.items()}

    def per_rank(self, metric: str, engine: str) -> list[Any]:
        """A metric as each rank told it last.

        Raises:
            SpecError: no rank has told of it.
        """
        from orchestrator.reduce import each_rank

        packs = self._gates.packs.get(engine, [])
        if not any(metric in pack for pack in packs):
            there = ", ".join(map(repr, sorted({name for pack in packs for name in pack}))) or "none"
            where, expected = "orchestrator.per_rank", f"a metric that ranks have told of engine {engine!r}"
            raise SpecError(explain(where, expected=expected, received=repr(metric), mend=f"there are {there}"))
        return each_rank(metric, packs, self._ranks.programs.empty_metrics(engine))

    def see_failures(self) -> None:
        """The ranks stop for a fault: an order that failed on one of them is not given again.

        Raises:
            TrainingError: there is one; a user's exception ends the run, whatever else happened.
        """
        answers = [answer for given in self._given for answer in given.answers.values()]
        if failed := {one.rank: one.failure for one in answers if one.of_user and one.failure is not None}:
            raise self._loop.end(_of_call(failed))

    def cut(self) -> None:
        """Have all ranks arrive at a gate of its own after one common iteration. Two cuts at once are one."""
        if self._back_to is not None:
            self._next = True
        elif self._cut is None:
            self._cut = next(self._numbers)
            self._proposals.clear()
            self._ranks.order_all(ProposeCut(order=self._cut))

    def regroup(self, at: GateKey | None) -> int | None:
        """The ranks have gone back, and what they had agreed on is void; `agree` follows when they train again.

        Args:
            at: the gate to which they come at once; None: there is none.

        Returns:
            The iteration of a cut to which they must come again.
        """
        ways = [self._gates.ended_at, *(gate.key for gate in self._gates.open)]
        cuts = [key for key in ways if key is not None and key.event == CUT]
        fresh = at is not None and at.event == CUT and at not in cuts and self._gates.passed.get(at) is None
        if not fresh:  # else they come to the cut that was agreed on
            self._next |= self._cut is not None
            self._cut = None
        self._back_to = cuts[-1].count if cuts and cuts[-1] != at else None
        return self._back_to

    def agree(self) -> None:
        """Agree on the cut that is wanted, if one is, and none is in the way."""
        if self._next and self._back_to is None:
            self._next = False
            self.cut()

    def cut_reached(self) -> None:
        """All ranks stand at a cut: the next one is another."""
        self._cut = None

    def cut_reached_again(self, iteration: int) -> None:
        """Ranks that went back are at a cut once more: if another one was wanted, it is agreed on now."""
        if self._back_to == iteration:
            self._back_to = None
            self.agree()

    def _on_answer(self, message: Answer) -> None:
        if message.order == self._cut:
            self._propose(message)
        for given in (*self._given, *self._gates.repeated):
            if given.number == message.order:
                given.answers[message.rank] = message
        if message.generation != self._ranks.generation:  # given before a fault, and heard for what it tells
            self.see_failures()
        else:
            self._gates.check()

    def _propose(self, message: Answer) -> None:
        assert isinstance(message.value, int), f"rank {message.rank} proposed {message.value!r} for a cut"
        self._proposals[message.rank] = message.value
        if len(self._proposals) == self._ranks.world_size:
            self._ranks.order_all(CutAt(iteration=max(self._proposals.values())))


def _of_call(failures: Mapping[int, Failure]) -> TrainingError:
    """The error of a call that raised on these ranks."""
    ranks, first = by_failure(failures)[0]
    text = f"orchestrator.call: {tell_failures(failures)}"
    return TrainingError(text, ranks=ranks, traceback=first.traceback)
