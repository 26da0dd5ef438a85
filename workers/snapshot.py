"""Stand-in."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from workers.parcels import SnapshotLabel
from workers.program import Program
from workers.rng import capture_rng, restore_rng
from workers.worker import Worker

__all__ = ["SnapshotRing"]


class SnapshotRing:
    """Stand-in."""

    def __init__(self, worker: Worker, program: Program) -> None:
        self.worker, self.program = worker, program
        self.ring: dict[SnapshotLabel, Any] = {}

    @property
    def held(self) -> tuple[SnapshotLabel, ...]:
        return tuple(self.ring)

    def take(self, label: SnapshotLabel) -> bytes:
        w, p = self.worker, self.program
        w.models.share_buffers()
        shared = copy.deepcopy({n: e.state_dict() for n, e in p.state.items()})
        own = pickle.dumps((capture_rng(w.device), {n: e.state_dict() for n, e in p.engines.items()}, w.samples))
        self.ring.pop(label, None)
        self.ring[label] = (shared, own)
        while len(self.ring) > 2:
            del self.ring[next(iter(self.ring))]
        return own

    def restore(self, label: SnapshotLabel, own: bytes | None = None) -> Any:
        shared, mine = self.ring[label]
        for known in list(self.ring)[list(self.ring).index(label) + 1 :]:
            del self.ring[known]
        if own is not None:
            mine = own
            self.ring[label] = (shared, own)
        rng, engines, samples = pickle.loads(mine)
        for n, e in self.program.state.items():
            e.load_state_dict(copy.deepcopy(shared[n]))
        for n, e in self.program.engines.items():
            e.load_state_dict(engines[n])
        self.worker.samples = samples
        restore_rng(rng, self.worker.device)
        return None

    def give(self, label: SnapshotLabel, to: Sequence[int]) -> None:
        data = pickle.dumps(self.ring[label])
        for rank in to:
            dist.send(torch.tensor([len(data)]), rank)
            dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank)

    def receive(self, label: SnapshotLabel, source: int) -> None:
        n = torch.zeros(1, dtype=torch.int64)
        dist.recv(n, source)
        buf = torch.empty(int(n), dtype=torch.uint8)
        dist.recv(buf, source)
        self.ring[label] = pickle.loads(buf.numpy().tobytes())
