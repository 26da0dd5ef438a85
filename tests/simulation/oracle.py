"""What must come out of a simulated run, and what must never be on the way.

An undisturbed run of the same config is recorded first: which states each rank was in, what the driver's handlers were
called for and with which numbers. A disturbed one may leave out nothing, do nothing twice, and be in no other state.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tests.simulation.memory import Disk
from tests.simulation.model import State

if TYPE_CHECKING:
    from tests.simulation.config import Config

__all__ = ["Oracle", "ViolationError"]


class ViolationError(BaseException):
    """What must never be has happened; nobody on the way catches it."""


class Oracle:
    """Sees everything.

    Args:
        config: of the run.
        like: the oracle of the undisturbed run; None: this is the one.
    """

    def __init__(self, config: Config, like: Oracle | None = None) -> None:
        self.config = config
        self.violation: str | None = None
        self.driver: list[str] = []  # what it was in the middle of then
        self.states: dict[tuple[int, int], set[tuple[int, int]]] = {}  # (rank, iteration) → (model, own)
        self.handled: list[tuple[Any, ...]] = []  # what blocking handlers were called for
        self.watched: list[tuple[Any, ...]] = []
        self.finished: dict[int, State] = {}  # rank → its last state
        self.commits: list[tuple[str, int]] = []  # (name, iteration)
        self.interrupted = False  # by Ctrl-C, which may be before a handler says the same
        self.raised: list[str] = []  # what EXCEPTION_RAISED was fired for
        self.like = like
        self._had_checkpoint = False

    @property
    def exact(self) -> bool:
        """Whether every state can be compared: not where the number of ranks may change, nor the end of training."""
        moved = self.interrupted and any("terminate" in rule.does for rule in self.config.rules)
        return self.like is not None and not self.config.elastic and not moved

    def violate(self, text: str) -> NoReturn:
        """The first of what must never be, and what the driver did then."""
        if self.violation is None:
            self.violation = text
            self.driver = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_stack(limit=200)
                if "/orchestrator/" in frame.filename
            ]
        raise ViolationError(text)

    # ---------------------------------------------------------------- on the way
    def seen(self, rank: Any) -> None:
        """A rank's state has changed."""
        state = rank.state
        place, now = (rank.membership.rank, state.iteration), (state.model, state.own)
        self.states.setdefault(place, set()).add(now)
        if self.exact:
            assert self.like is not None
            if now not in self.like.states.get(place, ()):
                self.violate(f"rank {place[0]} is in a state at iteration {place[1]} in which it never was: {state}")

    def handle(self, *what: Any) -> None:
        """A blocking handler is called."""
        if self.exact:
            assert self.like is not None
            number = len(self.handled)
            then = self.like.handled[number] if number < len(self.like.handled) else "nothing"
            if what != then:
                self.violate(f"call {number} of the driver's handlers was for {what}; undisturbed: {then}")
        elif what[:5] in [known[:5] for known in self.handled]:
            self.violate(f"the driver's handler was called twice for {what[:5]}")
        self.handled.append(what)

    def watch(self, *what: Any) -> None:
        """A handler is called for which nobody waits."""
        if what[:4] in [known[:4] for known in self.watched]:
            self.violate(f"the driver's handler was called twice for {what}")
        self.watched.append(what)

    # ---------------------------------------------------------------- checkpoints
    def look_at(self, disk: Disk) -> None:
        """Something was renamed or removed: is there still a checkpoint, and is each whole?"""
        valid = [name for name in self._names(disk) if self._whole(disk, name)]
        if self._had_checkpoint and not valid:
            self.violate("there is no valid checkpoint any more")
        self._had_checkpoint = bool(valid)

    def check_checkpoints(self, disk: Disk) -> None:
        """At the end: every checkpoint holds, of all ranks, the state in which they once were together."""
        for name in self._names(disk):
            if not self._whole(disk, name):
                self.violate(f"checkpoint {name} is damaged")
            folder = f"run/checkpoints/{name}"
            manifest = json.loads(disk.files[f"{folder}/manifest.json"])
            there = sorted(path for path in disk.files if path.startswith(f"{folder}/ranks/"))
            if len(there) != manifest["world_size"]:
                self.violate(f"checkpoint {name} is said to be of {manifest['world_size']} ranks, and holds {there}")
            states = [State.from_json(disk.files[path]) for path in there]
            if {state.iteration for state in states} != {manifest["iteration"]} or len({s.model for s in states}) != 1:
                self.violate(f"checkpoint {name} of iteration {manifest['iteration']} holds {states}")
            known = (self.like or self).states if self.exact else self.states
            for rank, state in enumerate(states):
                if (state.model, state.own) not in known.get((rank, state.iteration), ()):
                    self.violate(f"checkpoint {name} holds of rank {rank} what it never was: {state}")

    def _names(self, disk: Disk) -> list[str]:
        start = "run/checkpoints/"
        there = {path[len(start) :].split("/")[0] for path in disk.files if path.startswith(start)}
        named = [name for name in sorted(there) if "." not in name]
        return [name for name in named if disk.moves or self._manifest(disk, name) is not None]

    def _manifest(self, disk: Disk, name: str) -> dict[str, Any] | None:
        content = disk.files.get(f"run/checkpoints/{name}/manifest.json")
        return json.loads(content) if content is not None and content.startswith(b"{") else None

    def _whole(self, disk: Disk, name: str) -> bool:
        manifest = self._manifest(disk, name)
        if manifest is None:
            return False
        for entry in manifest["files"]:
            content = disk.files.get(f"run/checkpoints/{name}/{entry['path']}")
            if content is None or hashlib.sha256(content).hexdigest() != entry["sha256"]:
                return False
        return True

    # ---------------------------------------------------------------- at the end
    def check_end(self) -> None:
        """A run that is complete has done all that the undisturbed one did, and nothing else."""
        assert self.like is not None, "there is nothing to compare with"
        if not self.exact:
            if len({state.model for state in self.finished.values()}) != 1:
                self.violate(f"the ranks ended in different states: {self.finished}")
            return
        ends = [
            {rank: (state.model, state.own, state.iteration) for rank, state in oracle.finished.items()}
            for oracle in (self, self.like)
        ]
        if ends[0] != ends[1]:
            self.violate(f"ended in {self.finished}; undisturbed {self.like.finished}")
        if self.handled != self.like.handled:
            self.violate(f"handlers were called for {self.handled}; undisturbed {self.like.handled}")
        missing = Counter(what[:4] for what in self.like.watched) - Counter(what[:4] for what in self.watched)
        if missing:
            self.violate(f"watched, and never told: {sorted(missing)}")
