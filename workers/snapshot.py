"""The ring of in-memory snapshots of one rank: its last two states, to rewind to after a fault, to give to newcomers.

A snapshot has two parts. What is equal on all ranks (models, optimizers …) lies in page-locked memory that is used
again; a newcomer receives it from any rank. What dies with this rank (`own`: random numbers, engines, its place in its
data) is a few kilobytes that `take` returns, for the driver to keep. Made and called by the session.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from workers.checkpointing import begin_as_stranger, fitting, spread_entries, stateful_data
from workers.copies import Copies, bytes_in, packed, unpacked
from workers.data.sources import HandedOut
from workers.events import Events
from workers.handover import receive_copies, send_copies
from workers.inplace import InPlace, Kind, buffers_of, living, put_back_switches, switches_of
from workers.parcels import CUT, TRAINER, GateKey, SnapshotLabel
from workers.program import Program, Stateful
from workers.rng import capture_rng, restore_rng
from workers.worker import Worker

__all__ = ["SnapshotRing", "taken_at"]

OWN_LIMIT = 1 << 20  # bytes of tensors and arrays of state entries that travel with a rank's own part
_BETWEEN = {
    event.key
    for event in (
        *(Events.STARTED, Events.RESUMED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED),
        *(Events.TERMINATE_SINGLE_EPOCH, Events.TERMINATE, Events.INTERRUPT, Events.COMPLETED),
    )
}


def taken_at(gate: GateKey) -> bool:
    """Whether a snapshot can be taken on arriving at a gate: between two iterations of the trainer.

    Within an iteration its batch is read already, and an evaluation is begun anew after a rewind.
    """
    return gate.engine == TRAINER and (gate.event in _BETWEEN or gate.event == CUT)


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
        """
        self._worker.models.share_buffers()
        entries = {name: living(entry) for name, entry in self._program.state.items()}
        own, layouts = self._own(entries), self._worker.models.layouts()
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
        slot.own, slot.of_donor = packed(own), False
        slot.metrics = copy.deepcopy(own["metrics"])
        slot.read = own["read"]
        slot.label = label
        self._keep_batches()
        return slot.own

    def layouts(self, label: SnapshotLabel) -> Any:
        """The buckets of the models' wrappers at a snapshot, for `DataParallel.wrap`."""
        return unpacked(self._held(label).shared)["layouts"]

    def restore(self, label: SnapshotLabel, own: bytes | None = None) -> None:
        """Put everything back where it was, bit by bit; tensors stay where they are. Newer snapshots are dropped.

        Engines must not run. Gradients are gone afterwards.

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
        apart = {} if slot.of_donor else mine["apart"]
        self._restore_state(slot, apart)
        for name, thing in self._beside.items():
            thing.load_state_dict(shared["beside"][name])
        self._restore_engines(mine, slot)
        put_back_switches(self._modules(), shared["switches"])
        self._clear_gradients()
        if slot.of_donor:
            begin_as_stranger(self._worker, self._program)
        else:
            self._worker.samples, self._worker.batch_size = mine["samples"], mine["batch_size"]
            restore_rng(mine["rng"], self._worker.device)
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
    def _own(self, entries: Mapping[str, tuple[Kind, Any]]) -> dict[str, Any]:
        """What is not known to be equal on all ranks."""
        engines = self._program.engines
        return {
            "rng": capture_rng(self._worker.device),
            "engines": {name: engine.state_dict() for name, engine in engines.items()},
            "metrics": {name: _plain(engine.state.metrics) for name, engine in engines.items()},
            "data": {name: data.state_dict() for name, data in stateful_data(self._program).items()},
            "read": {name: data.read for name, data in self._iterators().items()},
            "samples": self._worker.samples,
            "batch_size": self._worker.batch_size,
            "apart": self._apart(entries),
        }

    def _apart(self, entries: Mapping[str, tuple[Kind, Any]]) -> dict[str, Any]:
        """Entries, or buffers of them, that may differ between ranks: the small ones, as many as the limit allows.

        A newcomer has the others from its donor, as from a checkpoint, into which rank 0 writes its own.
        """
        found: list[tuple[int, str, Any]] = []
        for name in entries.keys() - spread_entries(self._worker, self._program):
            entry, (kind, state) = self._program.state[name], entries[name]
            if kind == "module" and isinstance(entry, nn.Module) and self._worker.models.hold(entry.parameters()):
                state = {"tensors": buffers_of(entry)}  # its parameters are equal: their gradients are averaged
            found.append((bytes_in(state), name, state))
        apart, size = {}, 0
        for more, name, state in sorted(found, key=lambda item: item[:2]):
            size += more
            if size > OWN_LIMIT:
                break
            apart[name] = state
        return apart

    def _modules(self) -> list[nn.Module]:
        """All models that are known: prepared ones, and those in the state."""
        return [
            *self._worker.models.modules(),
            *(entry for entry in self._program.state.values() if isinstance(entry, nn.Module)),
        ]

    def _iterators(self) -> dict[str, HandedOut]:
        """Data that can be read only once."""
        sources: dict[str, object] = dict(self._program.data)
        return {name: data for name, data in sources.items() if isinstance(data, HandedOut)}

    def _keep_batches(self) -> None:
        """Iterators keep what they hand out from the oldest snapshot on, so that it can be handed out again."""
        oldest = next(slot for slot in self._slots if slot.label is not None)
        for name, data in self._iterators().items():
            data.keep(oldest.read[name])

    # ---------------------------------------------------------------- putting it back
    def _restore_state(self, slot: _Slot, apart: Mapping[str, Any]) -> None:
        """Entries with a way of their own first: what they do to models and optimizers does not last."""
        state: dict[str, Any] = dict(self._program.state)
        in_place = InPlace(slot.copies.fresh)
        for name in [name for name, kind in slot.kinds.items() if kind == "other"]:
            state[name].load_state_dict(apart[name] if name in apart else slot.copies.clones(name))
            if isinstance(state[name], torch.amp.GradScaler) and state[name].is_enabled():
                state[name]._per_optimizer_states.clear()  # else it takes this step's gradients for unscaled ones
        for name in [name for name, kind in slot.kinds.items() if kind == "module"]:
            views, own = slot.copies.views(name), apart.get(name, {"tensors": {}})
            in_place.module(name, state[name], {**views["tensors"], **own["tensors"]})
            if views["more"] is not None:
                state[name].load_state_dict((own if "more" in own else slot.copies.clones(name))["more"])
        for name in [name for name, kind in slot.kinds.items() if kind == "optimizer"]:
            in_place.optimizer(name, state[name], apart[name] if name in apart else slot.copies.views(name))
        if self._worker.device.type != "cpu":
            torch.accelerator.synchronize()

    def _restore_engines(self, mine: dict[str, Any], slot: _Slot) -> None:
        for name, data in stateful_data(self._program).items():
            if not slot.of_donor:
                data.load_state_dict(mine["data"][name])
        for name, iterator in self._iterators().items():
            iterator.go_to(mine["read"][name])
            mine["engines"][name]["data"] = {"read": mine["read"][name]}  # so that the engine reads on where it is
        metrics = copy.deepcopy(slot.metrics) if slot.metrics is not None else mine["metrics"]
        for name, engine in self._program.engines.items():
            engine.load_state_dict(fitting(mine["engines"][name], engine.attached))
            engine.state.metrics.clear()
            engine.state.metrics.update(metrics[name])

    def _clear_gradients(self) -> None:
        entries: list[object] = [*self._program.state.values()]
        for entry in entries:
            if isinstance(entry, Optimizer):
                entry.zero_grad(set_to_none=True)
        for module in self._modules():
            module.zero_grad(set_to_none=True)


class _Slot:
    """Room for one snapshot."""

    def __init__(self) -> None:
        self.label: SnapshotLabel | None = None  # None: there is none
        self.copies = Copies()
        self.kinds: dict[str, Kind] = {}
        self.shared = b""
        self.own = b""
        self.of_donor = False  # `own` is that of the rank which gave it
        self.metrics: dict[str, Any] | None = (
            None  # engines' metrics as they were here: the driver's are known by identity
        )
        self.read: dict[str, int] = {}  # batches that iterators had given


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that are numbers, texts or tensors."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str | torch.Tensor)}
