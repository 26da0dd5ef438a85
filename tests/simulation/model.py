"""What a simulated rank trains: a few numbers that tell whether anything was lost, done twice, or mixed up.

Two of them are hashes that go on with all that happens: `model` is equal on all ranks, as it takes in what each of them
contributes to a step; `own` is this rank's, like its random numbers. Handlers of the driver change both by calls.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = ["State", "bump", "fail", "mix", "shift"]

MASK = (1 << 61) - 1


def mix(*parts: float | str) -> int:
    """One number that depends on all of these and on their order; the same in every process."""
    return hash(tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts)) & MASK


@dataclass(slots=True, kw_only=True)
class State:
    """All that a rank has trained, and where its trainer stands.

    Args:
        model: equal on all ranks.
        own: of this rank alone.
        iteration, epoch: as an engine counts them.
        epochs_started, epochs_completed: likewise.
        fired: event → firings so far, of those that come once a run.
        told: metrics that the driver gave back at gates; a step takes them in.
        samples: consumed by this rank.
        loaded: whether a run goes on from here.
    """

    model: int = 1
    own: int = 0
    iteration: int = 0
    epoch: int = 0
    epochs_started: int = 0
    epochs_completed: int = 0
    fired: dict[str, int] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    loaded: bool = False

    @classmethod
    def fresh(cls, rank: int) -> State:
        """As `build` leaves it, with random numbers of this rank."""
        return cls(own=mix("seed", rank))

    def copy(self) -> State:
        return replace(self, fired=dict(self.fired), told=dict(self.told))

    def step(self, contributions: Mapping[int, int]) -> None:
        """One iteration, after the all-reduce."""
        lessons = [mix(name, value) for name, value in sorted(self.told.items())]
        self.model = mix(self.model, self.iteration, *lessons, *(contributions[rank] for rank in sorted(contributions)))
        self.samples += 1

    def as_stranger(self, rank: int) -> State:
        """Where another rank stands, with random numbers of its own: for a rank that there was not before."""
        return replace(self.copy(), own=mix("stranger", rank, self.iteration), samples=0)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> State:
        return cls(**json.loads(content))


# ---------------------------------------------------------------- what handlers of the driver call on ranks
def bump(worker: Any, tag: int) -> int:
    """Change what belongs to the rank."""
    worker.state.own = mix(worker.state.own, "bump", tag)
    return int(worker.state.own % 997)


def shift(worker: Any, tag: int) -> int:
    """Change the model; to be called on all ranks."""
    worker.state.model = mix(worker.state.model, "shift", tag)
    return int(worker.state.model % 997)


def fail(worker: Any, tag: int) -> None:
    """Raise."""
    raise ValueError(f"call {tag} went wrong on rank {worker.rank}")
