"""Saves, as the driver leads them: plans from the ranks, one global plan, their copies, their files, the commit.

The ranks wait only while they plan and copy; they write while training goes on, and tell when they have. One save is in
flight at a time: the next one waits for it. What is written where is decided in `checkpoints/`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

from orchestrator.asking import Asking, RegroupedError
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Committed, Registry, Staging
from orchestrator.contents import differing
from orchestrator.errors import CheckpointError, RankfireError, name_ranks
from orchestrator.flight import Flight
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from workers.failpoints import failpoint
from workers.messages import Saved
from workers.orders import FreezeSave, PlanSave
from workers.parcels import Failure, GateKey, LoadPoint, Planned, SnapshotLabel
from workers.retry import retrying

__all__ = ["OnSaveError", "Saver"]

OnSaveError = Literal["stop", "continue"]
ONE_RANKS = "a checkpoint holds what rank 0 has; reduce a number over ranks before anything is set by it"
REMOVING = 10.0  # seconds in which a storage must have removed what was given up


class Saver:
    """The saves of one run.

    Args:
        loop: where the ranks' words come from.
        asking: how to reach the ranks, which wait at a gate when a save begins.
        registry: where checkpoints go.
        ranks: who writes.
        patience: seconds without progress after which a save in flight is given up.

    Attributes:
        again: set when a save was lost with a rank: it is to be made anew at the next gate.
        last: the last checkpoint that this run made, as long as it is there.
        committed: called with each checkpoint when it is one.
        failed: called with each error of a save.
        differing: called, once, with what is not set alike in the optimizers and schedulers of the ranks.
        on_error: what an error means for the run.
    """

    def __init__(
        self, loop: Loop, asking: Asking, registry: Registry, ranks: Ranks, *, patience: float = float("inf")
    ) -> None:
        self.committed: Callable[[Committed], None] = lambda _: None
        self.failed: Callable[[CheckpointError], None] = lambda _: None
        self.differing: Callable[[str], None] = lambda _: None
        self.on_error: OnSaveError = "stop"
        self._loop = loop
        self._asking = asking
        self._registry = registry
        self._ranks = ranks
        self._patience = patience
        self._labels: dict[str, SnapshotLabel] = {}  # URL → where this run made it
        self._stale: list[Staging] = []  # given up; somebody may still be writing there
        self.again = False
        self.last: Committed | None = None
        self._gone: tuple[GateKey, Manifest] | None = None  # a lost checkpoint: where it was made, and what it was
        self._flight: Flight | None = None
        self._compared = False  # and what differs was told
        self._given_up: list[str] = []  # staging folders in which ranks may write for ever
        loop.on_tick.append(self._tick)
        loop.handle({Saved: self._on_saved})

    def begin(self, manifest: Manifest) -> str | None:
        """Copy the state at the open gate, and have it written and committed while training goes on.

        Args:
            manifest: what it is, except for its files and what the ranks know better.

        Returns:
            The URL that the checkpoint will have; None if it could not be begun and the run goes on without.

        Raises:
            CheckpointError: the storage refused, now or at the save before, and the run shall stop at that.
        """
        self.wait()
        while True:
            try:
                return self._begin(manifest)
            except RegroupedError:  # a rank was lost while they planned and copied: who is left begins anew
                if self._flight is not None:
                    self._stale.append(self._flight.staging)
                    self._flight = None

    def _begin(self, manifest: Manifest) -> str | None:
        from orchestrator.checkpoints.plan import GlobalPlan

        planned: dict[int, Planned] = {
            rank: answer.value  # type: ignore[misc]
            for rank, answer in self._asking.ask(
                "checkpoint", lambda number, _: PlanSave(order=number), once=True
            ).items()
        }
        first, gate = planned[0], self._asking.gate
        self._compare({rank: one.settings for rank, one in planned.items()})
        plan = GlobalPlan({rank: one.plan for rank, one in planned.items()}, first.spread)
        try:
            staging = self._registry.open(manifest.iteration)
        except CheckpointError as error:
            self._give_up(None, error)
            return None
        label = SnapshotLabel(iteration=manifest.iteration, gate=gate.key, order=gate.reached)
        whole = replace(manifest, world_size=len(planned), cursor=first.cursor, data=first.data, state=first.state)
        writers = {worker: rank for rank, worker in enumerate(self._ranks.members)}
        self._flight = Flight(staging=staging, manifest=whole, plan=plan, writers=writers, label=label)
        self._asking.ask(
            "checkpoint",
            lambda number, rank: FreezeSave(
                order=number, url=staging.storage.url, plan=plan.part(rank), given_up=tuple(self._given_up)
            ),
            once=True,
        )
        self.again = False
        return self._registry.storage.locate(staging.name)

    def _compare(self, settings: Mapping[int, Mapping[str, Mapping[str, str]]]) -> None:
        """What is not alike on all ranks would be lost: a checkpoint holds one rank's."""
        if not self._compared and (told := differing(settings)) is not None:
            self._compared = True
            self.differing(told)
            notice(f"ranks differ in what is set: {told}; {ONE_RANKS}")

    def whence(self, load: LoadPoint) -> LoadPoint:
        """The same checkpoint, with the gate at which it was made if this run made it."""
        return replace(load, at=self._labels.get(load.url))

    def went_back(self, to: Committed | None) -> None:
        """All go back to this checkpoint: a later one of this run is damaged or gone.

        Args:
            to: the newest that is whole; None: none is there.
        """
        at = 0 if to is None else to.manifest.iteration
        if self.last is not None and self.last.manifest.iteration > at:
            label = self._labels.get(self.last.url)
            self._gone = None if label is None or label.gate is None else (label.gate, self.last.manifest)
            self.last = to

    def make_again(self, at: GateKey) -> None:
        """Ranks pass a gate once more: if a checkpoint was made there and is gone, it is made again, as it was.

        Args:
            at: the gate, which is open.

        Raises:
            CheckpointError: the storage refused, and the run shall stop at that.
        """
        if self._gone is not None and self._gone[0] == at:
            (_, manifest), self._gone = self._gone, None
            self.begin(replace(manifest, files=()))

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return self._flight is None

    def wait(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            CheckpointError: it failed, and the run shall stop at that.
        """
        while self._flight is not None:
            self._loop.pump()

    def salvage(self, seconds: float) -> None:
        """The run is ending with an error: give the ranks a moment to finish what is in flight."""
        until = time.monotonic() + seconds
        while self._flight is not None and (left := until - time.monotonic()) > 0:
            unheard = self._loop.unheard
            came = unheard.popleft() if unheard else self._loop.group.take(left)
            if isinstance(came, Saved):
                try:
                    self._on_saved(came)
                except RankfireError:
                    break  # told already, if it is one of a save; what ends the run is known
            elif came is None and not self._loop.group.needs_store:
                break

    def regroup(self, lost: Collection[int]) -> None:
        """These workers are gone; what they had not written of a save in flight nobody has.

        Args:
            lost: ids of workers.
        """
        flight = self._flight
        if flight is None:
            return
        for worker in lost:
            rank = flight.writers.get(worker)
            if rank is not None and rank not in flight.told:
                del flight.writers[worker]
                flight.doomed = self.again = True
        self._close(flight)

    def abandon(self) -> None:
        """The workers have ended: remove what is still in flight, which nobody writes any more."""
        if self._flight is not None:
            self._stale.append(self._flight.staging)
            self._flight = None
        for staging in self._stale:
            if staging.storage.url not in self._given_up:
                self._registry.abandon(staging)
                continue
            thread = threading.Thread(target=self._registry.abandon, args=(staging,), daemon=True)
            thread.start()
            thread.join(REMOVING)
            if thread.is_alive():
                notice(f"{staging.storage.url} can't be removed: the storage does not answer; a later start does it")
        self._stale.clear()

    def _tick(self) -> None:
        """See whether what is in flight comes on; give it up if it does not."""
        flight = self._flight
        if flight is None:
            return
        flight.look(self._loop.pulses.values(), time.monotonic())
        if (stuck := flight.stuck(self._patience)) is not None:
            self._flight = None
            self._stale.append(flight.staging)  # somebody may yet write there
            self._given_up.append(flight.staging.storage.url)
            folder = flight.staging.folder
            self._give_up(None, CheckpointError.at(folder, f"was given up: {stuck}; the checkpoints before it stand"))

    def _on_saved(self, message: Saved) -> None:
        flight = self._flight
        if flight is None or message.url != flight.staging.storage.url:
            return  # a save that was given up
        flight.told[flight.writers[message.worker]] = message
        self._close(flight)

    def _close(self, flight: Flight) -> None:
        """Once all who can have said what they wrote: commit it, or remove what is there of one that was lost."""
        if len(flight.told) < len(flight.writers):
            return
        self._flight = None
        if flight.doomed:
            self._registry.abandon(flight.staging)
            return
        staging: Staging | None = flight.staging
        try:
            checkpoint = self._commit(flight)
            self._labels[checkpoint.url] = flight.label
            staging, self.last = None, checkpoint
            self.committed(checkpoint)
        except CheckpointError as error:
            self._give_up(staging, error)
        except RankfireError as error:  # the run is lost, or a listener raised
            raise self._loop.end(error) from error

    def _commit(self, flight: Flight) -> Committed:
        folder = flight.staging.folder
        _check(folder, {rank: word.failure for rank, word in flight.told.items() if word.failure is not None})
        written: dict[int, Any] = {rank: word.written for rank, word in flight.told.items()}
        results = {rank: part.results for rank, part in written.items()}
        try:
            failpoint("commit.received")
            index = retrying("write the index", lambda: flight.plan.write_index(flight.staging.storage, results))
            failpoint("commit.indexed")
        except OSError as error:
            raise CheckpointError.at(folder, f"can't be written: {error.strerror or error}") from error
        receipts = [receipt for part in written.values() for receipt in part.receipts]
        return self._registry.commit(flight.staging, flight.manifest, [*receipts, *index])

    def _give_up(self, staging: Staging | None, error: CheckpointError) -> None:
        if staging is not None:
            self._registry.abandon(staging)
        self.failed(error)
        if self.on_error == "stop":
            raise self._loop.end(error) from error


def _check(folder: str, failures: Mapping[int, Failure]) -> None:
    """Raise what ranks could not write; the same failure of several ranks is told once."""
    told: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        told.setdefault(str(failure), []).append(rank)
    if told:
        words = "; ".join(f"{name_ranks(ranks)}: {failure}" for failure, ranks in told.items())
        raise CheckpointError.at(folder, f"could not be written: {words}; the checkpoints before it stand")
