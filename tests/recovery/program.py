"""The stochastic program, with ranks that fail where its config says: each fault strikes once in a run.

`config["faults"]` is a list of `{"where": …, "iteration": …, "rank": …, "how": …}`; `config["marks"]` names a folder,
in which a file tells that a fault has struck: who takes the lost rank's place finds it there, and passes by.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from tests.journeys import stochastic
from workers import Engine, Events, Program, Worker

__all__ = ["ENOUGH", "HOWS", "WHERES", "Fault", "build", "models_alive", "touch"]

WHERES = ("forward", "backward", "all-reduce", "step", "handler", "evaluation", "call", "completed")
"""The places in a program, in the order in which a rank comes by them; "handler" is a local one of the iteration,
"call" is in `touch`, "completed" a local handler at the end of training. Beside them, "build" at iteration 0."""
CONTROL_GROUP = "RANKFIRE_TEST_CONTROL_GROUP"  # names the folder of one whose memory is limited
ENOUGH = 1024  # MB, more than its limit
_faults: Faults | None = None  # of this process
_layers: list[weakref.ref[torch.nn.Module]] = []  # one of each model that was built in this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a rank.

    Args:
        where: one of `WHERES`.
        iteration: of the trainer.
        rank: whose.
        how: one of `HOWS`.
        times: in so many processes, one after the other.
    """

    where: str
    iteration: int
    rank: int
    how: str = "kill"
    times: int = 1

    def __str__(self) -> str:
        return f"{self.where}-{self.iteration}-rank-{self.rank}-{self.how}"


def loop_for_ever() -> None:
    """Work that comes to no end."""
    while True:
        pass


def hold_the_interpreter() -> None:
    """A call into C that does not let go of the GIL."""
    ctypes.PyDLL(None).sleep(100)


def go_astray() -> None:
    """Into a collective of which the others know nothing."""
    dist.barrier()


def wait_for_ever() -> None:
    """For something that does not come; the interpreter is free."""
    threading.Event().wait(100)


def stop_oneself() -> None:
    """Stopped from outside; whoever lets it go on has it come back here."""
    os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait(1.0)  # all threads stop a moment later; this one is to be found here


def raise_something() -> None:
    """A mistake in the user's code."""
    raise ValueError("a mistake of the user's")


def raise_as_if_a_peer_were_lost() -> None:
    """The same, with words that a lost peer might have left."""
    raise RuntimeError("the object store says: Connection closed by peer")


def kill_a_loader() -> None:
    """One of the processes that load for this rank; the rank itself lives."""
    loader = min(multiprocessing.active_children(), key=lambda process: process.name)
    assert loader.is_alive(), "this rank has no loader process that lives"
    loader.kill()


def take_all_memory() -> None:
    """More than a control group lets this process have, of which the kernel makes an end."""
    (Path(os.environ[CONTROL_GROUP]) / "cgroup.procs").write_text(str(os.getpid()))
    held = [bytearray(1 << 20) for _ in range(ENOUGH)]
    raise AssertionError(f"{len(held)} MB could be had within {os.environ[CONTROL_GROUP]}")


def set_the_clock_forward() -> None:
    """By an hour, and from then on by a minute more each time that anybody looks."""
    true, looks = time.time, itertools.count()
    time.time = lambda: true() + 3600.0 + 60.0 * next(looks)
    assert time.time() - true() > 3599.0


def find_no_memory() -> None:
    """As an allocation that fails."""
    raise MemoryError("no room for a batch")


HOWS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "stop": stop_oneself,
    "gil": hold_the_interpreter,
    "loop": loop_for_ever,
    "wait": wait_for_ever,
    "astray": go_astray,
    "raise": raise_something,
    "peer": raise_as_if_a_peer_were_lost,
    "loader": kill_a_loader,
    "oom": take_all_memory,
    "memory": find_no_memory,
    "clock": set_the_clock_forward,
}
"""The ways in which a rank fails."""


class Faults:
    """The faults of a run, as one rank meets them."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._faults = [Fault(**fault) for fault in worker.config["faults"]]
        self._marks = Path(worker.config["marks"])

    def pass_by(self, where: str, iteration: int) -> None:
        """Come by a place; fail there if it is this rank's turn."""
        for fault in self._faults:
            if (fault.where, fault.iteration, fault.rank) == (where, iteration, self._worker.rank) and self._claim(
                fault
            ):
                HOWS[fault.how]()
                (self._marks / f"{fault}.woke").touch()

    def _claim(self, fault: Fault) -> bool:
        for number in range(fault.times):
            try:
                os.close(os.open(self._marks / f"{fault}.{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False


def build(worker: Worker) -> Program:
    """The program; places at which a rank may fail are hooks, which change no number."""
    global _faults
    program = stochastic.build(worker)
    if "control_group" in worker.config:
        os.environ[CONTROL_GROUP] = worker.config["control_group"]
    faults = _faults = Faults(worker)
    faults.pass_by("build", 0)
    trainer = program.engines["trainer"]
    model: Any = program.state["model"]
    optimizer: Any = program.state["optimizer"]
    _layers.append(weakref.ref(model[0]))

    def forward(module: object, inputs: object, output: object) -> None:
        faults.pass_by("forward" if model.training else "evaluation", trainer.state.iteration)

    def backward(gradient: torch.Tensor) -> None:
        faults.pass_by("backward", trainer.state.iteration)

    def reduce(_, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are texts
        part = bucket.buffer().mul_(1 / worker.world_size)  # to the bit what DDP does without a hook
        sent = dist.all_reduce(part, async_op=True).get_future()
        faults.pass_by("all-reduce", trainer.state.iteration)
        return sent.then(lambda done: done.value()[0])

    @trainer.on(Events.ITERATION_STARTED)
    def hook(engine: Engine) -> None:
        wrapper = model._route.wrapper
        if any(fault.where == "all-reduce" for fault in faults._faults) and wrapper._comm_hooks == []:
            wrapper.register_comm_hook(None, reduce)

    @trainer.on(Events.ITERATION_COMPLETED)
    def handler(engine: Engine) -> None:
        faults.pass_by("handler", engine.state.iteration)

    @trainer.on(Events.COMPLETED)
    def end(engine: Engine) -> None:
        faults.pass_by("completed", engine.state.iteration)

    model[2].register_forward_hook(forward)
    model[1].weight.register_hook(backward)
    _update_between(optimizer, lambda: faults.pass_by("step", trainer.state.iteration))
    return program


def touch(worker: Worker) -> str:
    """What a driver's handler has ranks do at a gate: it changes their state, and draws a random number."""
    assert worker.program is not None
    assert _faults is not None
    optimizer: Any = worker.program.state["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] *= 0.9
    torch.rand(1)
    _faults.pass_by("call", worker.program.engines["trainer"].state.iteration)
    return stochastic.digest(worker)


def models_alive(worker: Worker) -> int:
    """How many of the models that were built in this process are still there."""
    return sum(layer() is not None for layer in _layers)


def _update_between(optimizer: Any, act: Callable[[], None]) -> None:
    """Act in the middle of an optimizer's step: some parameters have changed, others not yet."""
    group = optimizer.param_groups[0]
    later = group["params"][3:]
    del group["params"][3:]
    optimizer.add_param_group({**{key: group[key] for key in group if key != "params"}, "params": later})
    begin = optimizer._init_group

    def begin_group(group: Any, *args: Any) -> Any:
        if group is optimizer.param_groups[1]:
            act()
        return begin(group, *args)

    optimizer._init_group = begin_group
