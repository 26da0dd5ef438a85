"""The public face of the driver: say what to build, hang handlers on events, run, give orders while it runs.

Handlers are kept in `registrations.py`; what happens around and in a run is in `training.py` and `run.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import RankfireError, RunInterrupted, SpecError, TrainingError, explain
from orchestrator.handlers.checkpoint import Best, Checkpoint
from orchestrator.handlers.evaluate import Evaluate, refuse_slip
from orchestrator.handlers.progress import Progress
from orchestrator.limits import Limits
from orchestrator.ordering import Ordering
from orchestrator.parts import Parts
from orchestrator.ranks import Ranks
from orchestrator.result import RunResult
from orchestrator.resume import Resume, StartFrom
from orchestrator.run import Run
from orchestrator.settings import Settings
from orchestrator.spec import JobSpec, RecoverySpec, WorkersSpec
from orchestrator.specfile import load_spec
from orchestrator.target import load_target
from orchestrator.training import train
from workers.handlers.terminate_on_nan import TerminateOnNan
from workers.parcels import TRAINER
from workers.tracebacks import place_of, text_of

__all__ = ["Orchestrator", "RunResult"]


class Orchestrator(Ordering):
    """Train a program on many ranks, with events on the driver.

    Args:
        build: `build(worker) -> Program`, or `"module:function"`; runs on every rank.
        run: run id, the name of its folder in storage. The same id goes on with the same run.
        workers: how many ranks; or a mapping or `WorkersSpec` with `count, spares, min, max, cpus, gpus, resources,
            placement`. 0 runs the program in this process, for a debugger.
        spares: further workers that build the program and wait to take a lost rank's place.
        config: settings of the program, as `worker.config`.
        seed: of the data order and all random numbers.
        storage: folder, or URL such as `s3://bucket/runs`, under which each run has its folder.
        cluster: `{"address": …, "autoscale": …, "start_timeout": …}`; without an address: RAY_ADDRESS if it is set,
            else Ray on this machine.
        recovery: what happens when a rank is lost or stands still, as in a job file: a mapping or `RecoverySpec` with
            `on_loss, snapshots, hang_timeout, restarts`.

    Raises:
        SpecError: an argument can't be used; says which, and what was expected.

    Example:
        >>> orchestrator = Orchestrator(build, workers=2, config={"lr": 1e-3})  # doctest: +SKIP
        >>> @orchestrator.on(Events.EPOCH_COMPLETED)  # doctest: +SKIP
        ... def tell(run):
        ...     print(run.state.epoch, run.state.metrics)
        >>> result = orchestrator.run(max_epochs=5)  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - one keyword for each section of a job file
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
        recovery: Mapping[str, Any] | RecoverySpec | None = None,
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
                recovery=recovery,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        Ordering.__init__(self, settings)
        self._start_from: StartFrom | None = None

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
        if spec.guard is not None and spec.guard.nan is not None:
            self.attach(TerminateOnNan(every=spec.guard.nan))
        if spec.guard is not None and spec.guard.divergence is not None:
            self.check_divergence(every=spec.guard.divergence)
        if spec.handlers is not None:
            self._attach_from(spec.handlers)
        if spec.checkpoint is not None:
            best = spec.checkpoint.best
            self.attach(
                Checkpoint(
                    every=spec.checkpoint.every.model_dump(exclude_none=True),
                    keep=spec.checkpoint.keep,
                    best=None if best is None else Best(best.metric, best.mode),
                    on_save_error=spec.checkpoint.on_save_error,
                )
            )
        if spec.start_from is not None:
            self.start_from(spec.start_from.checkpoint, state=spec.start_from.state)
        return self

    def _attach_from(self, target: str) -> None:
        """Call the user's `attach(orchestrator)`."""
        attach = load_target(target, list(self.settings.roots), where="handlers")
        try:
            attach(self)
        except RankfireError:
            raise
        except (Exception, SystemExit) as error:
            text = f"handlers {target} raised {type(error).__name__}: {error}"
            raise TrainingError(text, traceback=text_of(error)) from error

    # ---------------------------------------------------------------- running
    def start_from(self, checkpoint: str, *, state: Sequence[str] = ("model",)) -> None:
        """Start a new run with a part of another run's state, as for fine-tuning.

        A run that has checkpoints of its own goes on from those.

        Args:
            checkpoint: `RUN@best`, `RUN@latest`, `RUN@STEP`, or the path or URL of a checkpoint.
            state: names of the entries of its state that are loaded; the rest of the program starts afresh.

        Example:
            >>> orchestrator.start_from("digits@best", state=["model"])  # doctest: +SKIP
        """
        self._start_from = StartFrom(checkpoint=checkpoint, state=tuple(state))

    def run(
        self,
        max_epochs: int | None = None,
        *,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        resume: Literal["auto", "never"] = "auto",
        fresh: bool = False,
        strict: bool = False,
    ) -> RunResult:
        """Train on all ranks, to the end.

        Args:
            max_epochs: epochs in all, those before a resume included. Default: as the job file says.
            max_iters: iterations in all, instead of epochs.
            epoch_length: iterations of an epoch; default: one pass over the data.
            resume: "auto" goes on from the newest checkpoint of this run id; "never" refuses if the run exists.
            fresh: move what the run has aside first, and start anew.
            strict: refuse a damaged checkpoint instead of taking the one before it.

        Raises:
            SpecError: bad arguments.
            TrainingError: a user's code raised, on a rank or in a handler.
            SystemFailure: a worker was lost, the cluster is too small, storage failed.
            RunInterrupted: Ctrl-C or SIGTERM.
        """
        if self._closed:
            expected, received = "an orchestrator that has not run", "one that has"
            raise SpecError(explain("orchestrator.run", expected=expected, received=received, mend="make another one"))
        how = Resume(mode=resume, fresh=fresh, strict=strict)
        limits = self._limits(max_epochs, max_iters, epoch_length)
        self._closed = True
        self._buses[TRAINER].state.stand(max_epochs=limits.max_epochs, max_iters=limits.max_iters)
        parts = Parts(
            settings=self.settings,
            buses=self._buses,
            handlers=tuple(self._rank_handlers),
            lease=self._lease,
            registry=self.registry,
            journal=self._journal,
            stateful=self.stateful,
            datasets=self.datasets,
            started=self._started,
            start_from=self._start_from,
            evaluated=self.evaluated,
        )
        progress = Progress(limits.max_epochs, limits.max_iters)
        progress.attach(self)
        self._progress = progress
        status = "failed"
        try:
            result = train(parts, limits, how)
            status = result.status
        except RunInterrupted:
            status = "interrupted"
            raise
        except SpecError as error:
            if place_of(error) is not None:  # a handler's line led to it
                raise
            raise error.with_traceback(None) from error.__cause__  # its text says all
        finally:
            progress.close()
            self._tell_ended(status)
            self._run = None
        return result

    def _tell_ended(self, status: str) -> None:
        """Attached handlers that hold something open let go of it."""
        for handler in self._attached:
            if (ended := getattr(handler, "ended", None)) is not None:
                ended(status)

    # ---------------------------------------------------------------- within
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
        run.stand, run.gates.came_back, run.gates.of_now = self._at_cut, self._came_back, self._of_now
        run.recovered = self._recovered
        if run.moving is not None:
            run.moving.save = self._save_where_it_stands
        run.built = partial(self._check_names, run.ranks)
        run.saver.committed, run.saver.failed = self._committed, self._save_failed
        run.saver.differing = lambda text: self.note("SETTINGS_DIFFER", text=text)
        for handler in self._attached:
            if isinstance(handler, Checkpoint):
                run.saver.on_error = handler.on_save_error
            if (tick := getattr(handler, "tick", None)) is not None:
                run.loop.on_tick.append(partial(self._call_hook, "a look at the clock", partial(tick, self)))
        self._progress.begin(run.gates, self.state.iteration)

    def _check_names(self, ranks: Ranks) -> None:
        """See that the handlers attached here name what the program has, as far as that is known before it runs."""
        for handler in self._attached:
            if isinstance(handler, Evaluate):
                handler.check(ranks.programs.engines)
        evaluated = {handler.prefix: handler.engine for handler in self._attached if isinstance(handler, Evaluate)}
        measured = {prefix: list(ranks.programs.empty_metrics(engine)) for prefix, engine in evaluated.items()}
        for handler in self._attached:
            if isinstance(handler, Checkpoint):
                handler.check(measured)
            for name in getattr(handler, "metrics_named", ()):
                refuse_slip(f"{type(handler).__name__}(metric)", name, measured)
