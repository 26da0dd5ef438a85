"""The orders that a driver handler may give while a run is on: evaluate, save, call, terminate, wait for a boundary.

The part of the orchestrator's face that is used during a run. Who carries them out: `asking.py`, `saving.py`, `run.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from orchestrator.bus import users_code
from orchestrator.checkpoints.draft import manifest_of
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.cluster_events import EvaluationCompleted
from orchestrator.contents import as_told, check_boundary, check_fields, check_names, digests_of, of_now, states_of
from orchestrator.errors import CheckpointError, NotFiniteError, RankfireError, SpecError, explain
from orchestrator.guard import divergence, not_finite, unfit
from orchestrator.handlers.checkpoint import Checkpoint
from orchestrator.handlers.evaluate import Evaluate
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from orchestrator.notice import notice
from orchestrator.registrations import Registrations
from orchestrator.run import Run
from orchestrator.settings import Settings
from orchestrator.shipping import check_ranks
from workers.events import Events
from workers.handlers.check_divergence import DIVERGED
from workers.handlers.terminate_on_nan import NOT_FINITE
from workers.parcels import TRAINER, GateKey
from workers.state import State
from workers.storage import Storage

__all__ = ["Ordering"]


class Ordering(Registrations):
    """What handlers are called with. `Orchestrator` is the one to use.

    Args:
        settings: the run's settings.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.world_size)
        self.settings = settings
        self._lease = Lease(settings.home, settings.run)
        self.registry = Registry(settings.home.child("checkpoints"), self._lease.check, lambda: self._lease.token)
        self._journal = Journal(settings.home, self._lease.check)
        self._run: Run | None = None
        self.evaluated: dict[str, int] = {}  # metric of an evaluation → iteration at which it was measured last
        self._at_boundary: list[Callable[[], None]] = []  # what waits for the next cut
        for event, found in ((NOT_FINITE, self._not_finite), (DIVERGED, self._diverged)):  # whoever looks for it
            self.listen(event, found, blocking=True, phase="metrics")

    @property
    def state(self) -> State:
        """The trainer's state over all ranks: epoch, iteration, reduced metrics and output."""
        return self._buses[TRAINER].state

    @property
    def metrics(self) -> dict[str, Any]:
        """The reduced metrics."""
        return self.state.metrics

    @property
    def home(self) -> Storage:
        """The run's folder in storage."""
        return self.settings.home

    # ---------------------------------------------------------------- orders, inside a blocking handler
    def evaluate(self, engine: str = "evaluator", *, prefix: str | None = None) -> dict[str, Any]:
        """Have all ranks evaluate, each its share of the data; exact over all of them.

        Args:
            engine: name of the engine.
            prefix: the metrics also appear in `state.metrics` as `prefix/NAME`. Default: "validation" for the engine
                called "evaluator", else the engine's name.

        Returns:
            metric name → value.

        Raises:
            SpecError: no gate is open, or the program has no such engine.
            TrainingError: a user's code raised on a rank.
        """
        run, began = self._running("evaluate"), time.monotonic()
        metrics = run.asking.evaluate(engine)
        prefix = prefix if prefix is not None else ("validation" if engine == "evaluator" else engine)
        named = {f"{prefix}/{name}": value for name, value in metrics.items()}
        self.state.metrics.update(named)
        self.evaluated.update(dict.fromkeys(named, self.state.iteration))
        self.note("EVALUATION_COMPLETED", engine=engine, metrics=metrics)
        seconds = time.monotonic() - began
        run.gates.tell(EvaluationCompleted(engine=engine, metrics=dict(metrics), seconds=seconds))
        return metrics

    def per_rank(self, metric: str, *, engine: str = TRAINER) -> list[Any]:
        """A metric as each rank has it of its own share, beside the reduced one, as of the last event or evaluation.

        Args:
            metric: its name, as the engine has it: "loss", not "validation/loss".
            engine: the engine's.

        Returns:
            The values in the order of ranks; None for a rank whose share is too small to tell.
        """
        return self._running("per_rank").asking.per_rank(metric, engine)

    def checkpoint(self, *, wait: bool = False) -> str | None:
        """Save the state as it is now. The ranks wait while it is copied; it is written while training goes on.

        Args:
            wait: return only when it is committed. Else a line in the journal tells, CHECKPOINT_COMMITTED, and handlers
                with a method `committed(orchestrator, checkpoint)` are called.

        Returns:
            The path or URL that the checkpoint will have; None if it could not be begun, or was waited for and failed,
            and the run goes on without; or if the state is not finite, which ends training.

        Raises:
            CheckpointError: the storage refused, for this save or for the one before.
            DivergenceError: the ranks hold different models; asked where `check_divergence` is on.
            SpecError: no gate is open, or an iteration or an evaluation is in progress.
        """
        run = self._running("checkpoint")
        check_boundary(run.gates.open, run.gates.asked)
        if not self._fit_to_save(run):
            self.note("CHECKPOINT_LEFT_OUT", text=str(run.failure))
            return None
        check_names(self.metrics)
        driver = {
            "handlers": states_of(self.stateful),
            "evaluated": dict(self.evaluated),
            "config": digests_of(self.settings.config),
        }
        manifest = manifest_of(self.settings.run, run.ranks.world_size, self.state, driver)
        manifest = replace(manifest, metrics=self._of_now(manifest.metrics))
        rules = [handler.best for handler in self._attached if isinstance(handler, Checkpoint) and handler.best]
        best = {"metric": rules[0].metric, "mode": rules[0].mode} if rules else None
        manifest = replace(manifest, best=best, token=self._lease.token, spec=self.settings.digest)
        url = run.saver.begin(manifest)
        if not wait:
            return url
        run.saver.wait()
        last = run.saver.last
        return url if last is not None and last.url == url else None

    def saved_at(self) -> int | None:
        """Wait until no save is in flight; iteration of this run's last checkpoint, None if there is none.

        Raises:
            CheckpointError: the storage refused what was in flight, and the run shall stop at that.
            SpecError: nothing runs.
        """
        saver = self._running("saved_at").saver
        saver.wait()
        return None if saver.last is None else saver.last.manifest.iteration

    def at_boundary(self, function: Callable[[], None]) -> None:
        """Call a function as soon as all ranks stand after one common iteration; then training goes on.

        For what must not wait for a gate, such as a checkpoint that is due by the clock. May be called from any driver
        handler, or by what looks at the clock.
        """
        run = self._running("at_boundary")
        if function not in self._at_boundary:
            self._at_boundary.append(function)
            run.cut()

    def call(
        self,
        function: Callable[..., Any],
        *args: Any,
        rank: int | Sequence[int] | Literal["all"] = "all",
        **kwargs: Any,
    ) -> Any:
        """Call `function(worker, *args, **kwargs)` on ranks.

        Args:
            function: must be picklable, and so must what it returns; may use collectives if it goes to all ranks.
            args: passed on.
            rank: a number, several, or "all".
            kwargs: passed on.

        Returns:
            The value of the one rank, or a list of values in the order of ranks.

        Raises:
            SpecError: no gate is open, `rank` names no rank, or something can't be pickled.
            TrainingError: it raised on a rank.

        Example:
            >>> orchestrator.call(lambda worker: worker.device.type, rank=0)  # doctest: +SKIP
            'cpu'
        """
        run = self._running("call")
        asked = check_ranks(rank, run.ranks.world_size, "orchestrator.call", words=("all",))
        ranks = None if isinstance(asked, str) else [asked] if isinstance(asked, int) else asked
        values = run.asking.call(function, args, kwargs, ranks)
        return values[rank] if isinstance(rank, int) else list(values.values())

    def terminate(self, reason: str = "terminated by a handler") -> None:
        """End training: at the gate that is open, else at the next iteration boundary common to all ranks.

        Raises:
            SpecError: nothing runs.
        """
        self._running("terminate").terminate(reason)

    def note(self, event: str, /, **fields: object) -> None:
        """Write a line of your own into the run's journal; what JSON does not know becomes text.

        Raises:
            SpecError: a field has a name that every line of the journal has.
        """
        check_fields(event, fields)
        self._journal.write(event, **fields)

    # ---------------------------------------------------------------- within
    def _of_now(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        prefixes = {handler.prefix for handler in self._attached if isinstance(handler, Evaluate)}
        return of_now(metrics, self.evaluated, prefixes, self.state.iteration)

    def _fit_to_save(self, run: Run) -> bool:
        """Whether the state at the open gate may become a checkpoint; if not, the run ends."""
        if run.failure is None:
            error = unfit(self._attached, self.call, self.state.iteration, run.loop.facts)
            if isinstance(error, NotFiniteError):
                self._condemn(run, error)
            elif error is not None:
                raise run.loop.end(error)
        return run.failure is None

    def _not_finite(self) -> None:
        """All ranks wait at NOT_FINITE."""
        run = self._running("state")
        self._condemn(run, not_finite(self.call, self.state.iteration))

    def _condemn(self, run: Run, error: NotFiniteError) -> None:
        self.note("NOT_FINITE", ranks=error.ranks, text=str(error))
        run.condemn(error)

    def _diverged(self) -> None:
        """All ranks wait at DIVERGED."""
        run = self._running("state")
        error = divergence(self.call, self.state.iteration, run.loop.facts)
        assert error is not None, "digests of all differed, but those of none"
        raise run.loop.end(error)

    def _at_cut(self) -> None:
        """All ranks stand at an iteration boundary because they shall end there: save, if Ctrl-C was the reason."""
        run = self._running("checkpoint")
        waiting, self._at_boundary = self._at_boundary, []
        for function in waiting:
            self._call_hook("a boundary", function)
        if run.interrupted:
            self._save_where_it_stands()

    def _save_where_it_stands(self) -> None:
        """Save at a cut, if the job saves at all and this is not saved yet."""
        configured = any(isinstance(handler, Checkpoint) for handler in self._attached)
        if configured and self.saved_at() != self.state.iteration:
            self.checkpoint()

    def _recovered(self) -> None:
        """The ranks are whole again after a fault: a save that was lost with one of them is made up for soon."""
        if self._running("checkpoint").saver.again:
            self.at_boundary(self._save_again)

    def _came_back(self, key: GateKey) -> None:
        """Ranks pass a gate once more; it may be their last. What was saved there, or since, may be lost by now."""
        self._running("checkpoint").saver.make_again(key)
        if key.engine == TRAINER and key.event in (Events.EPOCH_COMPLETED.key, Events.COMPLETED.key):
            self._save_again()
            for handler in self._attached:
                if isinstance(handler, Checkpoint) and key.event == Events.COMPLETED.key:
                    handler.at_end(self)

    def _save_again(self) -> None:
        if self._running("checkpoint").saver.again:
            self.checkpoint()

    def _committed(self, checkpoint: Committed) -> None:
        self.note("CHECKPOINT_COMMITTED", checkpoint=checkpoint.name, bytes=checkpoint.manifest.size)
        for handler in self._attached:
            if (tell := getattr(handler, "committed", None)) is not None:
                with users_code(f"the commit of {checkpoint.name}"):  # the saver ends the run, if it shall end
                    tell(self, checkpoint)
        self._running("checkpoint").gates.tell(as_told(checkpoint))

    def _save_failed(self, error: CheckpointError) -> None:
        self.note("CHECKPOINT_FAILED", text=str(error))
        run = self._running("checkpoint")
        if run.saver.on_error == "continue":
            notice(f"{error}; training goes on")

    def _call_hook(self, where: str, function: Callable[[], None]) -> None:
        """Call a user's function beside the handlers: what it raises ends the run, whoever would swallow it."""
        try:
            with users_code(where):
                function()
        except RankfireError as error:
            ended = self._running(where).loop.end(error)
            if ended is error:
                raise
            raise ended from error

    def _running(self, what: str) -> Run:
        if self._run is None:
            expected, mend = "a run in progress", "call it inside a handler"
            raise SpecError(explain(f"orchestrator.{what}", expected=expected, received="none", mend=mend))
        return self._run
