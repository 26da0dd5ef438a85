"""The job's description as frozen values: what a YAML job file says, checked.

What a single value may be is said in `spec_values.py`; lines of files, the wording of problems and `--set` live in
`specfile.py` and `spec_problems.py`. The driver is built from a `JobSpec`; editors read its JSON schema.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, GetJsonSchemaHandler, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.spec_recovery import RecoverySpec, RestartsSpec, SnapshotsSpec
from orchestrator.spec_values import (
    Config,
    Count,
    Cpus,
    Gpus,
    Labels,
    Resources,
    RunId,
    Seconds,
    Section,
    Storage,
    Target,
    Text,
    Workers,
    refuse,
)

__all__ = [
    "BestSpec",
    "CheckpointSpec",
    "ClusterSpec",
    "EvaluateSpec",
    "EverySpec",
    "GuardSpec",
    "JobSpec",
    "RecoverySpec",
    "RestartsSpec",
    "SnapshotsSpec",
    "StartFromSpec",
    "TrainSpec",
    "WorkersSpec",
]


class TrainSpec(Section):
    """How long to train: `max_epochs` or `max_iters`, one of the two."""

    max_epochs: Count | None = None
    """Epochs to train; give this or max_iters."""
    max_iters: Count | None = None
    """Iterations to train, over all epochs; give this or max_epochs."""
    epoch_length: Count | None = None
    """Iterations of one epoch; null: one pass over the data."""

    @model_validator(mode="after")
    def check_one_limit(self) -> TrainSpec:
        """Accept exactly one of the two limits."""
        if (self.max_epochs is None) == (self.max_iters is None):
            refuse("exactly one of max_epochs and max_iters", "write for example max_epochs: 5")
        return self


class WorkersSpec(Section):
    """The ranks: how many, and what each one needs. A whole number alone is short for `count`."""

    count: Workers
    """Ranks at the start (the world size), between min and max if given; 0: the program runs in the calling process."""
    spares: Workers = 0
    """Further workers that are built and wait to take a lost rank's place."""
    min: Count | None = None
    """Ranks with which training goes on when lost ones can't be replaced; null: as many as count."""
    max: Count | None = None
    """Ranks up to which the run grows when there is room; null: as many as count."""
    cpus: Cpus = 1.0
    """CPUs reserved for each worker."""
    gpus: Gpus = 0.0
    """GPUs reserved for each worker: a share below 1, or a whole number."""
    resources: Resources = Field(default_factory=dict)
    """Custom Ray resources reserved for each worker, by name."""
    labels: Labels = Field(default_factory=dict)
    """Labels that the workers' nodes must have: VALUE, "!VALUE", "in(A,B)" or "!in(A,B)", by name of the label."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How the workers are laid over the nodes: Ray's placement group strategy."""

    @model_validator(mode="before")
    @classmethod
    def expand_count(cls, given: object) -> object:
        """Read a whole number alone as the count."""
        return {"count": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def check_spares(self) -> WorkersSpec:
        """Accept spares only where there are worker processes."""
        if self.spares and not self.count:
            refuse("no spares where count is 0 (the calling process can't be replaced)", "write spares: 0")
        return self

    @model_validator(mode="after")
    def check_range(self) -> WorkersSpec:
        """Accept a range of world sizes around the count, and only where there are worker processes."""
        if not self.count and (self.min, self.max) != (None, None):
            refuse("neither min nor max where count is 0 (the calling process is the only rank)", "leave them out")
        if not self.fewest <= self.count <= self.most:
            refuse("min <= count <= max", "write for example {count: 4, min: 2, max: 8}")
        return self

    @property
    def fewest(self) -> int:
        """The smallest world size with which training goes on."""
        return self.count if self.min is None else self.min

    @property
    def most(self) -> int:
        """The largest world size to which the run grows."""
        return self.count if self.max is None else self.max

    @property
    def elastic(self) -> bool:
        """Whether the world size may change within a run."""
        return self.fewest < self.most

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show editors the short form too."""
        section = handler.resolve_ref_schema(handler(core_schema))
        number = {"type": "integer", "minimum": 0, "description": "Number of ranks."}
        return {"anyOf": [number, section], "description": section.get("description", "")}


class EvaluateSpec(Section):
    """A shared evaluation on the epoch boundary; its metrics appear as `validation/NAME`."""

    engine: Text = "evaluator"
    """Name of the program's engine that evaluates."""
    every: Count = 1
    """Evaluate after each so many epochs."""


class BestSpec(Section):
    """Which checkpoint is the best one; it is never pruned."""

    metric: Text
    """Name of the reduced metric to compare, such as validation/accuracy."""
    mode: Literal["max", "min"] = "max"
    """Whether a greater (max) or a smaller (min) value is better."""


class EverySpec(Section):
    """How often to save: after so many epochs, iterations or seconds, one of the three."""

    epochs: Count | None = None
    """Save at the end of each so many epochs. A whole number alone is short for this."""
    iterations: Count | None = None
    """Save after each so many iterations, in the middle of epochs too."""
    seconds: Seconds | None = None
    """Save when so many seconds have gone since the last save, at the next iteration that all ranks reach."""

    @model_validator(mode="before")
    @classmethod
    def expand_epochs(cls, given: object) -> object:
        """Read a whole number alone as epochs."""
        return {"epochs": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def check_one(self) -> EverySpec:
        """Accept exactly one of the three."""
        if sum(value is not None for value in (self.epochs, self.iterations, self.seconds)) != 1:
            refuse("exactly one of epochs, iterations and seconds", "write for example every: {iterations: 500}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show editors the short form too."""
        section = handler.resolve_ref_schema(handler(core_schema))
        number = {"type": "integer", "minimum": 1, "description": "Number of epochs."}
        return {"anyOf": [number, section], "description": section.get("description", "")}


class CheckpointSpec(Section):
    """When to save a checkpoint, and how many are kept."""

    every: EverySpec = EverySpec(epochs=1)
    """Save after each so many epochs; or a mapping with epochs, iterations or seconds."""
    keep: Count = 3
    """Newest checkpoints to keep, beside the best one."""
    best: BestSpec | None = None
    """Keep the best checkpoint by this metric; null: only the newest are kept."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What a save that failed means for the run: it stops, or it goes on and tries again when the next one is due."""


class GuardSpec(Section):
    """When to look whether what is trained is worth anything; the run ends where it is not, and saves nothing of it."""

    nan: Count | None = 1
    """Look for NaN and infinity in what the step returns after each so many iterations; null: never."""
    divergence: Count | None = 500
    """Compare the ranks' models, bit by bit, after each so many iterations; null: never."""


class StartFromSpec(Section):
    """What a new run takes from a checkpoint of another one; one that has checkpoints of its own goes on from those."""

    checkpoint: Text
    """RUN@best, RUN@latest, RUN@STEP, or the path or URL of a checkpoint."""
    state: list[Text] = Field(default=["model"], min_length=1)
    """Names of the entries of its state that are loaded; the rest of the program starts afresh."""

    @model_validator(mode="before")
    @classmethod
    def expand_checkpoint(cls, given: object) -> object:
        """Read a text alone as the checkpoint."""
        return {"checkpoint": given} if isinstance(given, str) else given


class ClusterSpec(Section):
    """Where the run's workers live."""

    address: Text | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if it is set, else Ray is started on this machine."""
    autoscale: bool = False
    """Whether the cluster grows on demand, so that a run may wait for nodes that are not there yet."""
    insecure: bool = False
    """Whether a cluster that asks for no token is used, though others than this machine can reach it."""
    start_timeout: Seconds = 60.0
    """Seconds within which all workers must be up, and then joined; building and loading may take longer."""


class JobSpec(Section):
    """One training job: everything that `rankfire run job.yaml` needs to know."""

    run: RunId
    """Run id, the name of the run's folder in storage; the same id continues the same run."""
    program: Target
    """module:function of build(worker) -> Program, which runs on every rank."""
    handlers: Target | None = None
    """module:function of attach(orchestrator), which runs on the driver and registers handlers."""
    config: Config = Field(default_factory=dict)
    """The program's own settings, handed to it as worker.config: plain YAML values."""
    train: TrainSpec
    """How long to train."""
    workers: WorkersSpec
    """The ranks: a whole number, or a mapping with count and what each rank needs."""
    evaluate: EvaluateSpec | None = None
    """Evaluate on epoch boundaries; null: never."""
    checkpoint: CheckpointSpec | None = None
    """Save checkpoints; null: never."""
    recovery: RecoverySpec = RecoverySpec()
    """What happens when a rank is lost or stands still."""
    guard: GuardSpec | None = None
    """End the run where numbers are not finite, or ranks hold different models; null: nobody looks."""
    start_from: StartFromSpec | None = None
    """Start a new run with a part of another run's state, as for fine-tuning; null: start afresh."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the data order and of all random numbers."""
    storage: Storage = "runs"
    """Folder (or URL) under which each run has its folder."""
    cluster: ClusterSpec = ClusterSpec()
    """Where the workers live."""
    logs: Literal["plain", "json"] = "plain"
    """Form of the lines in the run's logs: plain for people, json for machines, one object a line."""

    @field_validator("storage")
    @classmethod
    def check_reach(cls, storage: str, given: ValidationInfo) -> str:
        """Accept the memory of this process only where it is the only one."""
        workers = given.data.get("workers")
        if storage.startswith("memory://") and workers is not None and workers.count:
            refuse("a folder or URL that every worker reaches", "write for example runs, or workers: 0")
        return storage
