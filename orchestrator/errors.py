"""The driver's exceptions, as one tree that grows from the root in `workers/errors.py`.

Every class carries the exit code with which the `rankfire` command ends, and every one can be pickled.
The constructors take a finished text; where a text is composed of facts, a classmethod composes it.
Raised all over the driver; caught by `orchestrator/cli/main.py` and by users.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from orchestrator.wording import explain, name_ranks, no_engine, too_late
from workers.errors import RankfireError

__all__ = [
    "CapacityError",
    "CheckpointError",
    "DivergenceError",
    "FencedError",
    "GateMismatchError",
    "HandlerError",
    "HeadLostError",
    "NotFiniteError",
    "RankfireError",
    "RecoveryError",
    "RunHeldError",
    "RunInterrupted",
    "SpecError",
    "StartError",
    "SystemFailure",
    "TrainingError",
    "WorkerLostError",
    "exit_code_of",
    "explain",
    "name_ranks",
    "no_engine",
    "too_late",
]


def exit_code_of(error: RankfireError) -> int:
    """Give the exit code of an error; one raised on the ranks' side (`workers.errors`) is a user's, so 1."""
    code = getattr(error, "exit_code", 1)
    assert isinstance(code, int), f"exit_code of {type(error).__name__} must be an int, is {code!r}"
    return code


class SpecError(RankfireError):
    """A job's description can't be used: its YAML, its values, or the functions that it names.

    Attributes:
        problems: one line of text for each problem found, in the order of the file.
    """

    exit_code: ClassVar[int] = 2
    refusal = True

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class TrainingError(RankfireError):
    """A user's code raised while training, on some ranks or on the driver.

    Attributes:
        ranks: the ranks that raised it; empty when it was raised on the driver.
        traceback: the user's traceback as text, or empty.
        refusal: whether no line of the user's raised, but the ranks can't run the program as it is.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, text: str, *, ranks: Iterable[int] = (), traceback: str = "", refusal: bool = False) -> None:
        super().__init__(text)
        self.ranks = tuple(sorted(set(ranks)))
        self.traceback = traceback
        self.refusal = refusal


class HandlerError(TrainingError):
    """A user's handler raised on the driver."""

    @classmethod
    def in_handler(cls, handler: str, event: str, what: str, *, traceback: str = "") -> HandlerError:
        """Compose the error of the driver handler called `handler` that raised `what` at `event`."""
        return cls(f"driver handler {handler} at {event} raised {what}", traceback=traceback)


class NotFiniteError(TrainingError):
    """Numbers of the training became NaN or infinite; nothing raised, but what it trains is worth nothing any more."""

    @classmethod
    def at(cls, iteration: int, found: Mapping[int, str]) -> NotFiniteError:
        """Compose the error from the iteration, and what was found on which rank, in words."""
        ranks: dict[str, list[int]] = {}
        for rank, what in sorted(found.items()):
            ranks.setdefault(what, []).append(rank)
        received = "; ".join(f"on {name_ranks(those)}: {what}" for what, those in ranks.items())
        return cls(
            explain(
                f"iteration {iteration}",
                expected="finite numbers",
                received=received,
                mend="look at the data of that iteration, lower the learning rate, or clip gradients",
            ),
            ranks=found,
        )


class GateMismatchError(TrainingError):
    """Ranks wait at different gates, so no roll call can ever be full."""

    @classmethod
    def at(cls, places: Mapping[str, Iterable[int]]) -> GateMismatchError:
        """Compose the error from each place (such as `EPOCH_COMPLETED 3`) and the ranks that are there."""
        known = {place: tuple(ranks) for place, ranks in places.items()}
        who = ", ".join(f"{name_ranks(ranks)} at {place}" for place, ranks in known.items())
        mend = "give every rank the same number of iterations and fire events outside rank-dependent branches"
        return cls(
            explain("gate", expected="all ranks at the same event", received=who, mend=mend),
            ranks=[rank for ranks in known.values() for rank in ranks],
        )


class SystemFailure(RankfireError):  # noqa: N818 - "failure" is the word of the exit code table
    """What the run stands on (processes, cluster, storage) failed; no user's code is to blame."""

    exit_code: ClassVar[int] = 3


class WorkerLostError(SystemFailure):
    """A rank's process is gone."""

    @classmethod
    def of(cls, rank: int, *, pid: int | None, node: str, cause: str) -> WorkerLostError:
        """Compose the error from the rank, its process id, its node's name and how the loss was seen."""
        process = "pid unknown" if pid is None else f"pid {pid}"
        return cls(f"rank {rank} ({process} on node {node}) was lost: {cause}")


class HeadLostError(SystemFailure):
    """The head of the cluster (GCS) is gone, without which nothing can be started or ended there."""

    @classmethod
    def at(cls, address: str, *, seconds: float) -> HeadLostError:
        """Compose the error from the head's address, and for how long it did not answer."""
        return cls(
            explain(
                "cluster",
                expected=f"its head (GCS) to answer at {address}",
                received=f"nothing for {seconds:.0f} s",
                mend="start the cluster anew; for a head that comes back give it a storage (RAY_gcs_storage), and "
                "raise RAY_gcs_rpc_server_reconnect_timeout_s on all nodes and here to three times what that takes",
            )
        )


class RecoveryError(SystemFailure):
    """The run was recovered as often as it may be, or got nowhere by it, and failed again."""

    @classmethod
    def spent(cls, cause: str, *, allowed: int, seconds: float, story: str) -> RecoveryError:
        """Compose the error from the cause, how many recoveries it is allowed in so many seconds, and the last loss."""
        return cls(
            explain(
                f"recovery.restarts.{cause}",
                expected=f"at most {allowed} within {seconds:g} s",
                received=f"one more: {story}",
                mend="mend the cause, or allow more; the same command goes on from the newest checkpoint",
            )
        )

    @classmethod
    def stuck(cls, where: str, *, times: int, story: str, samples: str = "") -> RecoveryError:
        """Compose the error from the place that fails each time, how often it did, the last loss, and its samples."""
        look = f"look at what it is given: {samples}" if samples else "look at what happens there"
        return cls(
            explain(
                "recovery",
                expected=f"{where} to succeed in one of {times} attempts",
                received=f"its failure number {times}: {story}",
                mend=f"{look}; the same command goes on from the newest checkpoint",
            )
        )

    @classmethod
    def no_progress(cls, recoveries: int, *, story: str) -> RecoveryError:
        """Compose the error from the number of recoveries after which training came no farther, and the last loss."""
        return cls(
            explain(
                "recovery",
                expected=f"training to come farther after one of {recoveries} recoveries",
                received=f"another failure: {story}",
                mend="mend the cause; the same command goes on from the newest checkpoint",
            )
        )


class DivergenceError(SystemFailure):
    """Ranks that should hold the same model do not: memory or a device failed, or code changed it on some of them."""

    @classmethod
    def at(cls, iteration: int, *, odd: Iterable[str], what: str, agreed: int | None) -> DivergenceError:
        """Compose the error.

        Args:
            iteration: at which they were compared.
            odd: the ranks that are not as the others, in words.
            what: which tensors differ, in words.
            agreed: iteration after which they were equal, if they were ever compared before.
        """
        before = "" if agreed is None else f"; they were equal after iteration {agreed}"
        return cls(
            explain(
                f"iteration {iteration}",
                expected="the same model on all ranks, bit by bit",
                received=f"another one on {', '.join(odd)}: {what}{before}",
                mend="test the memory and device there, and look for code that changes a model on some ranks only",
            )
        )


class CapacityError(SystemFailure):
    """The cluster can't ever hold the workers that the spec asks for."""

    refusal = True

    @classmethod
    def of(cls, *, asked: str, there: str, mend: str = "ask for fewer workers or add nodes") -> CapacityError:
        """Compose the error from what is asked and what the cluster has in all, both in words."""
        return cls(explain("cluster", expected=f"room for {asked}", received=there, mend=mend))


class StartError(SystemFailure):
    """Ranks did not start or join in time."""

    @classmethod
    def late(cls, ranks: Iterable[int], *, step: str, seconds: float, free: str | None = None) -> StartError:
        """Compose the error from the ranks that did not finish a step (`start`, `join`) in time, and what is free."""
        return cls(
            explain(
                "cluster.start_timeout",
                expected=f"all ranks to {step} within {seconds:g} s",
                received=f"nothing from {name_ranks(ranks)}" + ("" if free is None else f", with {free} free"),
                mend="see that their nodes are up and have room, or raise cluster.start_timeout",
            )
        )


class CheckpointError(SystemFailure):
    """A checkpoint could not be written, read or verified."""

    @classmethod
    def at(cls, path: str, what: str) -> CheckpointError:
        """Compose the error from the checkpoint's path and what is wrong with it."""
        return cls(f"checkpoint {path}: {what}")


class RunHeldError(SystemFailure):
    """Another process owns the run."""

    @classmethod
    def by(cls, run: str, owner: str) -> RunHeldError:
        """Compose the error from the run's id and its owner in words."""
        return cls(
            f"run {run!r}: expected nobody to be running it, received {owner}; wait for it to end, stop it, or choose "
            "another run id"
        )


class FencedError(SystemFailure):
    """This process owned the run and has lost it: nothing that it does may become durable any more."""

    @classmethod
    def by(cls, run: str, owner: str) -> FencedError:
        """Compose the error from the run's id and its new owner in words."""
        return cls(
            f"run {run!r} was taken over by {owner}: this process was silent for longer than its lease, "
            "so it ends here and writes nothing more"
        )

    @classmethod
    def removed(cls, run: str) -> FencedError:
        """Compose the error of a run whose lease is not in the storage any more."""
        return cls(
            f"run {run!r}: its lease was removed from the storage, so this process can't know that it still owns the "
            "run: it ends here and writes nothing more"
        )


class RunInterrupted(RankfireError):  # noqa: N818 - an interruption is no error of anyone's
    """The user stopped the run (Ctrl-C or SIGTERM)."""

    exit_code: ClassVar[int] = 130

    def __init__(self, text: str = "interrupted") -> None:
        super().__init__(text)
