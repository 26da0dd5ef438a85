"""The public face of the driver: say what to build, hang handlers on events, run, give orders while it runs.

Handlers are kept in `registrations.py`; what happens around and in a run is in `training.py` and `run.py`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import RankfireError, SpecError, TrainingError, explain
from orchestrator.handlers.checkpoint import Best, Checkpoint
from orchestrator.handlers.evaluate import Evaluate
from orchestrator.handlers.progress import Progress
from orchestrator.journal import Journal
from orchestrator.limits import Limits
from orchestrator.registrations import Registrations
from orchestrator.run import Run
from orchestrator.saving import manifest_of, save, states_of
from orchestrator.settings import Settings
from orchestrator.shipping import check_ranks
from orchestrator.spec import JobSpec, WorkersSpec
from orchestrator.specfile import load_spec
from orchestrator.target import load_target
from orchestrator.training import Parts, RunResult, train
from workers.parcels import TRAINER
from workers.state import State

__all__ = ["Orchestrator", "RunResult"]


class Orchestrator(Registrations):
    """Train a program on many ranks, with events on the driver.

    Args:
        build: `build(worker) -> Program`, or `"module:function"`; runs on every rank.
        run: run id, the name of its folder in storage. The same id goes on with the same run.
        workers: how many ranks; or a mapping or `WorkersSpec` with `count, spares, cpus, gpus, resources, placement`.
            0 runs the program in this process, for a debugger.
        spares: further workers that build the program and wait.
        config: settings of the program, as `worker.config`.
        seed: of the data order and all random numbers.
        storage: folder under which each run has its folder.
        cluster: `{"address": …, "autoscale": …, "start_timeout": …}`; without an address: RAY_ADDRESS if it is set,
            else Ray on this machine.

    Raises:
        SpecError: an argument can't be used; says which, and what was expected.

    Example:
        >>> orchestrator = Orchestrator(build, workers=2, config={"lr": 1e-3})  # doctest: +SKIP
        >>> @orchestrator.on(Events.EPOCH_COMPLETED)  # doctest: +SKIP
        ... def tell(run):
        ...     print(run.state.epoch, run.state.metrics)
        >>> result = orchestrator.run(max_epochs=5)  # doctest: +SKIP
    """

    def __init__(
        self,
        build: Callable[..., Any] | str,
        *,
        run: str = "run",
        workers: int | Mapping[str, Any] | WorkersSpec = 2,
        spares: int = 0,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        storage: str | os.PathLike[str] = "runs",
        cluster: Mapping[str, Any] | None = None,
    ) -> None:
        self._set_up(
            Settings.of(
                build,
                run=run,
                workers=workers,
                spares=spares,
                config=config,
                seed=seed,
                storage=storage,
                cluster=cluster,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        super().__init__(settings.world_size)
        self.settings = settings
        self.registry = Registry(settings.folder / "checkpoints")
        self._journal = Journal(settings.folder / "journal.jsonl")
        self._run: Run | None = None
        self._saved_at: int | None = None  # iteration of this run's last checkpoint

    @classmethod
    def from_spec(cls, spec: JobSpec | str | os.PathLike[str], *, roots: Sequence[str] = ()) -> Orchestrator:
        """Make the orchestrator of a job file.

        Args:
            spec: the file's path, or what was read from it.
            roots: folders in which the job's functions are searched; default: the current one, and the file's.

        Raises:
            SpecError: the file can't be used, or names functions that are not there.
        """
        if not isinstance(spec, JobSpec):
            roots = list(roots) or [os.getcwd(), str(Path(spec).resolve().parent)]
            spec = load_spec(str(spec), roots=roots)
        self = cls.__new__(cls)
        self._set_up(Settings.from_spec(spec, roots))
        if spec.evaluate is not None:
            self.attach(Evaluate(spec.evaluate.engine, every=spec.evaluate.every))
        if spec.handlers is not None:
            self._attach_from(spec.handlers)
        if spec.checkpoint is not None:
            best = spec.checkpoint.best
            self.attach(
                Checkpoint(
                    every=spec.checkpoint.every,
                    keep=spec.checkpoint.keep,
                    best=None if best is None else Best(best.metric, best.mode),
                )
            )
        return self

    def _attach_from(self, target: str) -> None:
        """Call the user's `attach(orchestrator)`."""
        attach = load_target(target, list(self.settings.roots), where="handlers")
        try:
            attach(self)
        except RankfireError:
            raise
        except Exception as error:
            text = f"handlers {target} raised {type(error).__name__}: {error}"
            raise TrainingError(text, traceback="".join(traceback.format_exception(error))) from error

    # ---------------------------------------------------------------- running
    def run(
        self,
        max_epochs: int | None = None,
        *,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        resume: Literal["auto", "never"] = "auto",
    ) -> RunResult:
        """Train on all ranks, to the end.

        Args:
            max_epochs: epochs in all, those before a resume included. Default: as the job file says.
            max_iters: iterations in all, instead of epochs.
            epoch_length: iterations of an epoch; default: one pass over the data.
            resume: "auto" goes on from the newest checkpoint of this run id; "never" refuses if there is one.

        Raises:
            SpecError: bad arguments.
            TrainingError: a user's code raised, on a rank or in a handler.
            SystemFailure: a worker was lost, the cluster is too small, storage failed.
            RunInterrupted: Ctrl-C or SIGTERM.
        """
        self._check_run(resume)
        limits = self._limits(max_epochs, max_iters, epoch_length)
        self._closed = True
        self.state.max_epochs, self.state.max_iters = limits.max_epochs, limits.max_iters
        parts = Parts(
            settings=self.settings,
            buses=self._buses,
            handlers=tuple(self._rank_handlers),
            registry=self.registry,
            journal=self._journal,
            stateful=self.stateful,
            started=self._started,
        )
        progress = Progress(limits.max_epochs, limits.max_iters)
        progress.attach(self)
        self._progress = progress
        try:
            return train(parts, limits, resume)
        finally:
            progress.close()
            self._run = None

    @property
    def state(self) -> State:
        """The trainer's state over all ranks: epoch, iteration, reduced metrics and output."""
        return self._buses[TRAINER].state

    @property
    def metrics(self) -> dict[str, Any]:
        """The reduced metrics."""
        return self.state.metrics

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
        run = self._running("evaluate")
        metrics = run.asking.evaluate(engine)
        prefix = prefix if prefix is not None else ("validation" if engine == "evaluator" else engine)
        self.state.metrics.update({f"{prefix}/{name}": value for name, value in metrics.items()})
        self.note("EVALUATION_COMPLETED", engine=engine, metrics=metrics)
        return metrics

    def checkpoint(self) -> str:
        """Save and commit the state as it is now; returns the checkpoint's path.

        Raises:
            CheckpointError: the storage refuses; nothing of it is left.
            SpecError: no gate is open, an iteration is in progress, or a handler's state is not what JSON can hold.
        """
        run = self._running("checkpoint")
        run.gates.refuse_within_iteration("orchestrator.checkpoint")
        driver = {"handlers": states_of(self.stateful)}
        manifest = manifest_of(self.settings.run, self.settings.world_size, self.state, driver)
        committed = save(run.asking, self.registry, manifest)
        self._saved_at = manifest.iteration
        size = sum(entry.size for entry in committed.manifest.files)
        self.note("CHECKPOINT_COMMITTED", checkpoint=committed.name, bytes=size)
        return str(committed.folder)

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
        asked = check_ranks(rank, self.settings.world_size, "orchestrator.call", words=("all",))
        ranks = None if isinstance(asked, str) else [asked] if isinstance(asked, int) else asked
        values = run.asking.call(function, args, kwargs, ranks)
        return values[rank] if isinstance(rank, int) else list(values.values())

    def terminate(self, reason: str = "terminated by a handler") -> None:
        """End training: at the gate that is open, else at the next iteration boundary common to all ranks.

        Raises:
            SpecError: nothing runs.
        """
        self._running("terminate").terminate(reason)

    def note(self, event: str, **fields: object) -> None:
        """Write a line of your own into the run's journal; what JSON does not know becomes text."""
        self._journal.write(event, **fields)

    # ---------------------------------------------------------------- within
    def _check_run(self, resume: str) -> None:
        if self._closed:
            expected, received = "an orchestrator that has not run", "one that has"
            raise SpecError(explain("orchestrator.run", expected=expected, received=received, mend="make another one"))
        if resume not in ("auto", "never"):
            expected, mend = "'auto' or 'never'", "write 'auto' to go on from the newest checkpoint"
            raise SpecError(explain("orchestrator.run(resume)", expected=expected, received=repr(resume), mend=mend))

    def _limits(self, max_epochs: int | None, max_iters: int | None, epoch_length: int | None) -> Limits:
        train = self.settings.train
        if train is not None and max_epochs is None and max_iters is None:
            max_epochs, max_iters = train.max_epochs, train.max_iters
            epoch_length = train.epoch_length if epoch_length is None else epoch_length
        return Limits(
            max_epochs=max_epochs,
            max_iters=max_iters,
            epoch_length=epoch_length,
            start_timeout=self.settings.cluster.start_timeout,
        )

    def _started(self, run: Run) -> None:
        self._run = run
        self.state.seed = self.settings.seed
        run.loop.on_pulse = self._progress.pulse
        run.gates.at_cut = self._at_cut
        self._progress.begin(run.gates)

    def _at_cut(self) -> None:
        """All ranks stand at an iteration boundary because they shall end there: save, if Ctrl-C was the reason."""
        run = self._running("checkpoint")
        configured = any(isinstance(handler, Checkpoint) for handler in self._attached)
        if run.interrupted and configured and self._saved_at != self.state.iteration:
            self.checkpoint()

    def _running(self, what: str) -> Run:
        if self._run is None:
            expected, mend = "a run in progress", "call it inside a handler"
            raise SpecError(explain(f"orchestrator.{what}", expected=expected, received="none", mend=mend))
        return self._run
