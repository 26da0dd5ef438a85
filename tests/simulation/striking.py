"""Does what goes wrong: a rank comes by a step at which a strike is due, and something happens to it, or to others."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.exchange import LeaseLost
from tests.simulation.faults import TALKING, USERS, Strike
from tests.simulation.life import UserError
from tests.simulation.network import LostPeerError

if TYPE_CHECKING:
    from tests.simulation.rank import Rank
    from tests.simulation.world import World

__all__ = ["TAKEN_OVER", "Striker"]

TAKEN_OVER = "run 'run' was taken over"


class Striker:
    """The strikes of one schedule; called wherever a rank comes by a step.

    Args:
        world: the simulation.
        strikes: what goes wrong, in order.
    """

    def __init__(self, world: World, strikes: Sequence[Strike]) -> None:
        self._world = world
        self._strikes = strikes
        self._due = [strike.count for strike in strikes]
        self._refusals: list[list[int]] = []  # number of the error, writes before it, times
        self._does: dict[str, Callable[[Rank], str | None]] = {
            "kill": self._kill,
            "kill another": lambda rank: self._lose([other for other in self._living() if other is not rank], 1),
            "kill all": lambda rank: self._lose([other for other in self._living() if self._trains(other)]),
            "kill node": lambda rank: self._lose([o for o in self._living() if o.place.node == rank.place.node]),
            "kill reserve": lambda rank: self._lose([other for other in self._living() if not self._trains(other)], 1),
            "silence": self._silence,
            "zombie": self._zombie,
            "stick": self._stick,
            "astray": self._go_astray,
            "astray always": self._go_astray,
            "part": self._part,
            "call": self._call,
            "hang write": self._hang_write,
            "refuse": lambda rank: self._refuse_writes(errno.ENOSPC, world.rng.choice((1, 2, 1000))),
            "stumble": lambda rank: self._refuse_writes(errno.EIO, world.rng.choice((1, 2, 3, 4, 9))),
            "interrupt": self._interrupt,
            "stop now": self._stop_now,
            "fence": self._fence,
            "drain": self._drain,
        }
        world.disk.refuse = self._refuse

    def __call__(self, rank: Any, step: str) -> BaseException | None:
        """A rank comes by a step: do what is due; gives what is raised in it."""
        raised = None
        for number, strike in enumerate(self._strikes):
            if strike.struck is not None or strike.step not in (step, "any"):
                continue
            if strike.after is not None and self._strikes[strike.after].struck is None:
                continue
            self._due[number] -= 1
            if self._due[number] < 0 and rank.alive:
                raised = self._do(strike, rank, step) or raised
        return raised

    def _do(self, strike: Strike, rank: Rank, step: str) -> BaseException | None:
        there = f"worker {rank.worker} (rank {rank.membership.rank}) came by {step} at {self._world.clock.now:.3f} s"
        raised: BaseException | None = None
        if strike.kind == "talk":
            raised = LostPeerError("connection reset by peer") if step in TALKING and rank.network else None
            what = None if raised is None else "its peers"
        elif strike.kind == "user":
            raised = UserError(f"boom {self._strikes.index(strike)}") if step in USERS and not rank.over else None
            what = None if raised is None else str(raised)
        elif strike.kind == "stick" and step in ("write", "written"):  # where another thread comes by
            what = None
        else:
            what = self._does[strike.kind](rank)
        if what is not None:
            strike.struck = f"{what}, when {there}"
            self._world.note("STRIKE", strike.struck)
        return raised

    # ---------------------------------------------------------------- processes
    def _living(self) -> list[Rank]:
        return [rank for rank in self._world.ranks.values() if rank.alive and not rank.ended]

    def _trains(self, rank: Rank) -> bool:
        return rank.worker in self._world.members()

    def _lose(self, ranks: list[Rank], most: int | None = None) -> str | None:
        if most is not None and ranks:
            ranks = self._world.rng.sample(ranks, most)
        for rank in ranks:
            self._world.lose(rank)
        return f"workers {', '.join(str(rank.worker) for rank in ranks)}" if ranks else None

    def _kill(self, rank: Rank) -> str:
        self._world.lose(rank)
        return "it"

    def _silence(self, rank: Rank) -> str | None:
        rank.silent = True
        return "it, for ever"

    def _zombie(self, rank: Rank) -> str:
        rank.silent = True
        seconds = self._world.rng.choice((0.5, 3.0, 6.0, 9.0, 20.0))
        self._world.later(seconds, lambda: rank.wake() if rank.silent else None)
        return f"it, for {seconds:g} s"

    def _stick(self, rank: Rank) -> str | None:
        if not self._world.trains:  # a build may take as long as it likes, if it beats
            return None
        rank.stuck = True
        return "it"

    def _go_astray(self, rank: Rank) -> str | None:
        if rank.network is None or rank.membership.world_size == 1:
            return None
        self._world.astray = rank.state_iteration, rank.membership.rank
        return "it"

    def _part(self, rank: Rank) -> str:
        self._world.unheard.add(rank.worker)
        self._world.break_stream(rank, "its stream broke")
        return "it"

    def _drain(self, rank: Rank) -> str | None:
        world, node = self._world, rank.place.node
        if world.config.nodes < 2 or node in world.drains:
            return None
        seconds = world.rng.choice((1.0, 5.0, 30.0))
        world.drains[node] = world.clock.now + seconds
        world.later(seconds, lambda: self._drained(node))
        return f"{node}, in {seconds:g} s"

    def _drained(self, node: str) -> None:
        self._world.note("STRIKE", f"{node} is gone")
        self._lose([rank for rank in self._living() if rank.place.node == node])

    # ---------------------------------------------------------------- the rest
    def _call(self, rank: Rank) -> str:
        rank.call_fails = True
        return "the next call on it"

    def _hang_write(self, rank: Rank) -> str:
        rank.storage_hangs = True
        return "the storage, for ever"

    def _interrupt(self, rank: Rank) -> str:
        self._world.interrupt()
        self._world.oracle.interrupted = True
        return "Ctrl-C"

    def _stop_now(self, rank: Rank) -> str:
        self._world.stop_now = True
        return "Ctrl-C twice"

    def _fence(self, rank: Rank) -> str:
        self._world.disk.files["run/lease/99999999.json"] = b"{}"
        self._world.tell(LeaseLost(text=TAKEN_OVER))
        return "the lease"

    def _refuse_writes(self, number: int, times: int) -> str:
        self._refusals.append([number, self._world.rng.randint(0, 12), times])
        return f"{errno.errorcode[number]} {times} times"

    def _refuse(self, verb: str, path: str) -> None:
        """Called before each write."""
        for refusal in self._refusals:
            if refusal[1] > 0:
                refusal[1] -= 1
            elif refusal[2] > 0:
                refusal[2] -= 1
                self._world.note("STRIKE", f"{verb} {path} fails")
                raise OSError(refusal[0], os.strerror(refusal[0]), path)
