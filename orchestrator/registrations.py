"""Which handlers hang on an orchestrator: on the driver by engine and event, on ranks ready to travel, and objects.
Also the data sets that are dealt out to the ranks.

The part of the orchestrator's face that is used before a run. What is gathered here, `training.py` takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from orchestrator.bus import EventBus
from orchestrator.errors import SpecError, explain, too_late
from orchestrator.shipping import ship, ship_itself
from workers.dispatch import RemovableEventHandle
from workers.events import EventExpression, Events
from workers.handlers.check_divergence import CheckDivergence
from workers.parcels import TRAINER, RankHandler, Where
from workers.state import State

__all__ = ["Registrations"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Registrations:
    """Handlers of a run.

    Args:
        world_size: ranks of the run; a handler for ranks must name one of them.
    """

    def __init__(self, world_size: int) -> None:
        self.stateful: dict[str, Any] = {}  # handlers whose state is in the checkpoints
        self.datasets: dict[str, Any] = {}  # Ray data sets, by name
        self._world_size = world_size
        self._closed = False  # the run has started: its ranks have been told
        self._buses: dict[str, EventBus] = {}
        self._rank_handlers: list[RankHandler] = []
        self._attached: list[object] = []
        self._sent: list[object] = []  # of those that attach themselves on the ranks; their state is there
        self._bus(TRAINER).watch(Events.EPOCH_COMPLETED)

    def on(
        self,
        event: EventExpression | str,
        *args: Any,
        rank: Where | None = None,
        engine: str = TRAINER,
        blocking: bool | None = None,
        **kwargs: Any,
    ) -> Callable[[Function], Function]:
        """Decorator: run a handler when an event of an engine fires. It gives back the function, so it stacks.

        Args:
            event: a plain, filtered or combined event.
            args: passed to every call.
            rank: where it runs. None: on the driver, once, when all ranks are there; called with the orchestrator.
                A number, several, "all" or "local_rank_0": inside those ranks; called with their engine.
            engine: name of the engine whose event it is.
            blocking: for the driver: whether the ranks wait until it returns. Default: yes at starts and ends of runs
                and epochs, no at iterations, batches and events of your own. Where they do not wait, numbers in
                `state.output` and `state.metrics` on an accelerator stay there: only those on the CPU are told.
            kwargs: passed to every call.

        Raises:
            SpecError: a handler for ranks can't be pickled, `rank` names no rank, or the run has started and its ranks
                know nothing of such a handler.
            ValueError: the handler can't be called that way.

        Example:
            >>> @orchestrator.on(Events.EPOCH_COMPLETED(every=5))  # doctest: +SKIP
            ... def validate(run):
            ...     run.evaluate("evaluator")
        """

        def register(handler: Function) -> Function:
            if rank is None:
                self.listen(event, handler, *args, engine=engine, blocking=blocking, **kwargs)
            else:
                self._ship(event, handler, args, kwargs, rank=rank, engine=engine)
            return handler

        if rank is not None and blocking is not None:
            raise SpecError(
                explain(
                    f"orchestrator.on(blocking={blocking!r}, rank={rank!r})",
                    expected="blocking for a handler on the driver only",
                    received="both",
                    mend="leave blocking out: what runs on a rank always keeps that rank waiting",
                )
            )
        return register

    def listen(
        self,
        event: EventExpression | str,
        handler: Callable[..., Any],
        *args: Any,
        engine: str = TRAINER,
        blocking: bool | None = None,
        phase: str = "user",
        **kwargs: Any,
    ) -> RemovableEventHandle:
        """Register a driver handler without a decorator.

        Args:
            event: a plain, filtered or combined event.
            handler: called as `handler(orchestrator, *args, **kwargs)`, or without the orchestrator.
            args: passed to every call.
            engine: name of the engine whose event it is.
            blocking: whether the ranks wait until it returns; default: as `on` says.
            phase: when it runs among the handlers of one firing: "metrics" first, then "user", "decision", "gate".
            kwargs: passed to every call.

        Returns:
            A handle that takes the handler off again.

        Raises:
            SpecError: the run has started, and its ranks do not report such a firing.
            ValueError: the handler can't be called that way.

        Example:
            >>> handle = orchestrator.listen(Events.COMPLETED, print, "done")  # doctest: +SKIP
            >>> handle.remove()  # doctest: +SKIP
        """
        return self._bus(engine).listen(event, handler, *args, blocking=blocking, phase=phase, **kwargs)

    def attach(self, handler: Any) -> None:
        """Attach a handler object: `Checkpoint`, `Evaluate`, or any with an `attach(orchestrator)` method.

        Args:
            handler: the object. With `state_dict()` and `load_state_dict(state)` its state, which JSON must be able to
                hold, is in the checkpoints.

        Raises:
            SpecError: it has no such method.

        Example:
            >>> orchestrator.attach(Checkpoint(every=5, keep=3))  # doctest: +SKIP
        """
        if isinstance(handler, type) or not callable(getattr(handler, "attach", None)):
            raise SpecError(
                explain(
                    "orchestrator.attach",
                    expected="an object with attach(orchestrator)",
                    received=repr(handler),
                    mend="make one of the class: orchestrator.attach(Class())"
                    if isinstance(handler, type)
                    else "a function goes to orchestrator.on(event)",
                )
            )
        handler.attach(self)
        self._attached.append(handler)
        there = any(sent is handler for sent in self._sent)
        if hasattr(handler, "state_dict") and hasattr(handler, "load_state_dict") and not there:
            name = type(handler).__name__
            number = sum(1 for known in self.stateful if known.partition("#")[0] == name)
            self.stateful[f"{name}#{number + 1}" if number else name] = handler

    def send(self, handler: Any, *args: Any, rank: Where = "all", engine: str = TRAINER, **kwargs: Any) -> None:
        """Have an object attach itself to an engine of ranks: `handler.attach(engine, *args, **kwargs)` runs there.

        For handlers that hang on several events and keep one state beside the model. With `state_dict` and
        `load_state_dict`, and kept by `engine.attach(name, handler)`, it is in each rank's part of the checkpoints.

        Args:
            handler: the object; a copy of it travels to each rank.
            args: passed on.
            rank: a number, several, "all" or "local_rank_0".
            engine: name of the engine.
            kwargs: passed on.

        Raises:
            SpecError: it can't be pickled, `rank` names no rank, or the run has started.

        Example:
            >>> orchestrator.send(Histogram(bins=20), rank=0)  # doctest: +SKIP
        """
        if self._closed:
            raise SpecError(too_late(f"orchestrator.send(rank={rank!r})", "take no more handlers"))
        call = args, kwargs
        self._rank_handlers.append(
            ship_itself(self._bus(engine), handler, call, rank=rank, world_size=self._world_size)
        )
        self._sent.append(handler)

    def check_divergence(self, every: int = 500, *, optimizer: bool = False) -> None:
        """Have the ranks compare their models bit by bit; the run ends where they differ, and names the odd ranks.

        Args:
            every: after each so many iterations; before each save as well.
            optimizer: compare what the optimizers remember, too.

        Example:
            >>> orchestrator.check_divergence(every=500)  # doctest: +SKIP
        """
        self.attach(CheckDivergence(every, optimizer=optimizer))

    def dataset(self, name: str, dataset: Any) -> None:
        """Register a Ray data set: each rank gets a part of it, as `worker.dataset(name)`.

        The parts are made when the run starts, by `dataset.streaming_split(world_size, equal=True)`: every row comes
        once a pass, except that Ray leaves out the rows (fewer than there are ranks) that would make parts unequal.

        Args:
            name: what the program calls it.
            dataset: a `ray.data.Dataset`.

        Raises:
            SpecError: the name is taken, or it is no such data set, or the run has started.

        Example:
            >>> orchestrator.dataset("train", ray.data.read_parquet("s3://..."))  # doctest: +SKIP
        """
        where = f"orchestrator.dataset({name!r})"
        if self._closed:
            raise SpecError(
                f"{where}: expected it before the run, received it when the run has started; register it before run()"
            )
        if not callable(getattr(dataset, "streaming_split", None)):
            raise SpecError(
                f"{where}: expected a ray.data.Dataset (an object with streaming_split), received "
                f"{type(dataset).__name__}; make one with ray.data, or give the data to worker.loader in build(worker)"
            )
        if name in self.datasets:
            raise SpecError(
                f"{where}: expected a name of its own for each data set, received one that is taken; choose another"
            )
        self.datasets[name] = dataset

    def state_of(self, engine: str) -> State:
        """The state over all ranks of an engine that has handlers here.

        Args:
            engine: its name.

        Raises:
            SpecError: no handler here listens to an engine of that name, so nothing is known of it.

        Example:
            >>> orchestrator.state_of("evaluator").iteration  # doctest: +SKIP
            3
        """
        if engine not in self._buses:
            expected = f"an engine that has handlers here ({', '.join(map(repr, self._buses))})"
            mend = "register one with orchestrator.on(event, engine=…) first"
            raise SpecError(explain("orchestrator.state_of", expected=expected, received=repr(engine), mend=mend))
        return self._buses[engine].state

    def _bus(self, engine: str) -> EventBus:
        if engine not in self._buses:
            if self._closed:
                raise SpecError(too_late(f"orchestrator.on(engine={engine!r})", f"do not report engine {engine!r}"))
            self._buses[engine] = EventBus(engine, self)
        return self._buses[engine]

    def _ship(
        self,
        event: EventExpression | str,
        handler: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        rank: Where,
        engine: str,
    ) -> None:
        if self._closed:
            raise SpecError(too_late(f"orchestrator.on(rank={rank!r})", "take no more handlers"))
        shipped = ship(self._bus(engine), event, handler, (args, kwargs), rank=rank, world_size=self._world_size)
        self._rank_handlers.append(shipped)
