"""The ring of in-memory snapshots of one rank: its last two states, to rewind to after a fault, to give to newcomers.

A snapshot has two parts. What is equal on all ranks (models, optimizers …) lies in memory that is used again, and is
page-locked where there is an accelerator; a newcomer receives it from any rank. What dies with this rank (`own`: random
numbers, engines, its place in its data) is a few kilobytes that `take` returns, for the driver to keep. Made and called
by `rewinding.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workers.buckets import Layout
from workers.copies import Copies, packed, unpacked
from workers.gradients import Gradients
from workers.handover import receive_copies, send_copies
from workers.inplace import InPlace, Kind, living, put_back_switches, switches_of
from workers.own import iterators_of, own_of, put_back_own
from workers.parcels import SnapshotLabel
from workers.program import Program, Stateful
from workers.worker import Worker

__all__ = ["SnapshotRing"]

_GRADIENTS = "gradients of "  # begins the name of what is copied beside an optimizer


class SnapshotRing:
    """The snapshots of one rank, at most two; each in memory of its own, so two times its state in all.

    Args:
        worker: this rank.
        program: whose state is copied.
        beside: what else goes along, by name: things of the session, equal on all ranks.

    Example:
        >>> ring = SnapshotRing(worker, program)  # doctest: +SKIP
        >>> own = ring.take(SnapshotLabel(iteration=8))  # doctest: +SKIP
        >>> ring.restore(ring.held[-1])  # doctest: +SKIP
    """

    def __init__(self, worker: Worker, program: Program, beside: Mapping[str, Stateful] | None = None) -> None:
        self._worker = worker
        self._program = program
        self._beside = dict(beside or {})
        self._gradients = Gradients(program)
        self._slots = [_Slot(), _Slot()]  # the oldest first

    @property
    def held(self) -> tuple[SnapshotLabel, ...]:
        """Labels of the snapshots that are here, the oldest first."""
        return tuple(slot.label for slot in self._slots if slot.label is not None)

    def take(self, label: SnapshotLabel) -> bytes:
        """Copy the whole state, between two iterations; a collective, as buffers become rank 0's everywhere.

        It replaces the one of that label, else the oldest of two.

        Args:
            label: the same on all ranks.

        Returns:
            What dies with this rank: for `restore` on the one that replaces it.

        Raises:
            ProgramError: something in the state can't be copied.
        """
        self._worker.models.share_buffers()
        entries = {name: living(entry) for name, entry in self._program.state.items()}
        for name, gradients in self._gradients.unused().items():
            entries[_GRADIENTS + name] = "gradients", gradients
        own, layouts = own_of(self._worker, self._program, entries), self._worker.models.layouts()
        slot = self._free(label)
        slot.copies.take({name: state for name, (_, state) in entries.items()})
        slot.kinds = {name: kind for name, (kind, _) in entries.items()}
        slot.shared = packed(
            {
                "switches": switches_of(self._modules()),
                "layouts": layouts,
                "beside": {name: thing.state_dict() for name, thing in self._beside.items()},
            }
        )
        slot.own, slot.of_donor = packed(own, "engines and data"), False
        slot.metrics = copy.deepcopy(own["metrics"])
        slot.read = own["read"]
        slot.label = label
        self._keep_batches()
        return slot.own

    def layouts(self, label: SnapshotLabel) -> list[Layout | None]:
        """The buckets of the models' wrappers at a snapshot, for `DataParallel.wrap`."""
        layouts: list[Layout | None] = unpacked(self._held(label).shared)["layouts"]
        return layouts

    def restore(self, label: SnapshotLabel, own: bytes | None = None) -> None:
        """Put everything back where it was, bit by bit; tensors stay where they are. Newer snapshots are dropped.

        Engines must not run; wrappers are made afterwards. Gradients are gone, but for those that no step had used.

        Args:
            label: of a snapshot that is held.
            own: on a newcomer, what the rank that it replaces had returned from `take`. None on one that replaces
                nobody: it begins where the donor is, with metrics and random numbers of its own.

        Raises:
            ProgramError: what was copied does not fit this program.
        """
        slot = self._held(label)
        if own is not None:
            slot.own, slot.of_donor, slot.metrics = own, False, None
        mine, shared = unpacked(slot.own), unpacked(slot.shared)
        slot.read = mine["read"]
        self._gradients.clear(self._modules())
        self._restore_state(slot, {} if slot.of_donor else mine["apart"])
        put_back_switches(self._modules(), shared["switches"])
        for name, thing in self._beside.items():
            thing.load_state_dict(shared["beside"][name])
        put_back_own(self._worker, self._program, mine, metrics=copy.deepcopy(slot.metrics), stranger=slot.of_donor)
        for newer in self._slots[self._slots.index(slot) + 1 :]:
            newer.label = None
        self._keep_batches()

    def give(self, label: SnapshotLabel, to: Sequence[int]) -> None:
        """Send a snapshot to newcomers, who receive it at the same time.

        Args:
            label: of a snapshot that is held.
            to: their ranks, in the process group that was just formed.

        Raises:
            RuntimeError: one of them is gone.
        """
        slot = self._held(label)
        send_copies(slot.copies, packed((slot.kinds, slot.shared, slot.own)), to)

    def receive(self, label: SnapshotLabel, source: int) -> None:
        """Take a snapshot over from another rank.

        Args:
            label: that of the snapshot.
            source: the rank that gives it.

        Raises:
            RuntimeError: it is gone.
        """
        slot = self._free(label)
        slot.kinds, slot.shared, slot.own = unpacked(receive_copies(slot.copies, source))
        slot.of_donor, slot.metrics = True, None
        slot.label = label

    # ---------------------------------------------------------------- slots
    def _held(self, label: SnapshotLabel) -> _Slot:
        for slot in self._slots:
            if slot.label == label:
                return slot
        raise AssertionError(f"snapshot {label}: this rank holds {', '.join(map(str, self.held)) or 'none'}")

    def _free(self, label: SnapshotLabel) -> _Slot:
        """The slot that is filled next, emptied and put in the newest place."""
        same = [slot for slot in self._slots if slot.label == label]
        empty = [slot for slot in self._slots if slot.label is None]
        slot = (same or empty or self._slots)[0]
        slot.label = None
        self._slots.remove(slot)
        self._slots.append(slot)
        return slot

    # ---------------------------------------------------------------- what is in a snapshot
    def _modules(self) -> list[nn.Module]:
        """All models that are known: prepared ones, and those in the state."""
        entries: list[object] = [*self._program.state.values()]
        return [*self._worker.models.modules(), *(entry for entry in entries if isinstance(entry, nn.Module))]

    def _keep_batches(self) -> None:
        """Iterators keep what they hand out from the oldest snapshot on, so that it can be handed out again."""
        oldest = next(slot for slot in self._slots if slot.label is not None)
        for name, data in iterators_of(self._program).items():
            data.keep(oldest.read[name])

    def _restore_state(self, slot: _Slot, apart: Mapping[str, Any]) -> None:
        """Entries with a way of their own first: what they do to models and optimizers does not last."""
        state: dict[str, Any] = dict(self._program.state)
        copies, in_place = slot.copies, InPlace(slot.copies.fresh)

        def names(kind: Kind) -> list[str]:
            return [name for name in slot.kinds if slot.kinds[name] == kind]

        for name in names("other"):
            state[name].load_state_dict(apart[name] if name in apart else copies.clones(name))
            if isinstance(state[name], torch.amp.GradScaler) and state[name].is_enabled():
                state[name]._per_optimizer_states.clear()  # else it takes this step's gradients for unscaled ones
        for name in names("module"):
            views, own = copies.views(name), apart.get(name, {"tensors": {}})
            in_place.module(name, state[name], {**views["tensors"], **own["tensors"]})
            if views["more"] is not None:
                state[name].load_state_dict((own if "more" in own else copies.clones(name))["more"])
        for name in names("optimizer"):
            in_place.optimizer(name, state[name], apart[name] if name in apart else copies.views(name))
        for name in names("gradients"):
            gradients = apart[name] if name in apart else copies.views(name)
            self._gradients.put_back(name.removeprefix(_GRADIENTS), gradients, in_place)
        if self._worker.device.type != "cpu":
            torch.accelerator.synchronize()


class _Slot:
    """Room for one snapshot."""

    def __init__(self) -> None:
        self.label: SnapshotLabel | None = None  # None: there is none
        self.copies = Copies()
        self.kinds: dict[str, Kind] = {}
        self.shared = b""
        self.own = b""
        self.of_donor = False  # `own` is that of the rank which gave it
        # Engines' metrics as they were here, not unpickled ones: those that the driver gave are known by identity.
        self.metrics: dict[str, Any] | None = None
        self.read: dict[str, int] = {}  # batches that iterators had given
