"""Where a run begins and where it ends: the arguments of `Engine.run`, checked against what went before.

Pure: facts in, a `Course` or an error out. The engine follows it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from workers.errors import DataLoaderEmptyError
from workers.feed import is_endless, length_of

__all__ = ["Course", "Past", "chart", "epochs_in", "whole_number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What went before a run.

    Attributes:
        iteration: iterations done.
        epochs: epochs completed.
        epoch_length: iterations in an epoch, if known.
        max_epochs: the goal so far, in epochs.
        max_iters: the goal so far, in iterations.
        held: the run was loaded or interrupted: it goes on even from its very beginning or its very end.
        completed: it was over; then it needs a goal to go on.
        lives: whether one iterator lived on from epoch to epoch, if known.
        data: what was iterated over.
    """

    iteration: int = 0
    epochs: int = 0
    epoch_length: int | None = None
    max_epochs: int | None = None
    max_iters: int | None = None
    held: bool = False
    completed: bool = False
    lives: bool | None = None
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run shall do.

    Attributes:
        goes_on: it continues what went before; else it begins at iteration 0.
        iteration: iterations already done.
        epochs: epochs already completed.
        epoch_length: iterations in an epoch; None: the data's first end tells.
        lives: the epoch length was given, so one iterator over the data lives on from epoch to epoch.
        max_epochs: the goal, in epochs.
        max_iters: the goal, in iterations.
        data: what to iterate over; a run that goes on keeps its data if it is given none.
    """

    goes_on: bool
    iteration: int
    epochs: int
    epoch_length: int | None
    lives: bool
    max_epochs: int | None
    max_iters: int | None
    data: Any


def chart(
    past: Past,
    data: Any,
    *,
    max_epochs: Any = None,
    epoch_length: Any = None,
    max_iters: Any = None,
    resume_from_epoch: Any = None,
    resume_from_iteration: Any = None,
) -> Course:
    """Decide where a run begins and ends.

    Args:
        past: what went before.
        data: what to iterate over; None: what was iterated over before, if anything.
        max_epochs: as given to `Engine.run`; the others too.
        epoch_length: iterations in an epoch.
        max_iters: the goal in iterations.
        resume_from_epoch: epochs after which to go on.
        resume_from_iteration: iterations after which to go on.

    Raises:
        DataLoaderEmptyError: the data has no batches.
        TypeError: a number is not whole.
        ValueError: the arguments do not fit each other, or what went before.
    """
    max_epochs, epoch_length, max_iters = (
        whole_number("run", "max_epochs", max_epochs, least=1),
        whole_number("run", "epoch_length", epoch_length, least=0),
        whole_number("run", "max_iters", max_iters, least=1),
    )
    _check_goals(max_epochs, max_iters, epoch_length)
    start = _asked_start(resume_from_epoch, resume_from_iteration, epoch_length, past, data)
    same_data = data is None or data is past.data
    continues = start is None and _goes_on(past, max_epochs, max_iters, same_data)
    goes_on = continues or bool(start)
    if not goes_on:
        past = Past()
    data = past.data if data is None else data
    length = _epoch_length(past, data, epoch_length, max_iters)
    iteration = past.iteration if continues else start or 0
    if max_epochs is None and max_iters is None:
        max_epochs, max_iters = past.max_epochs, past.max_iters
        max_epochs = 1 if max_epochs is None and max_iters is None else max_epochs
    course = Course(
        goes_on=goes_on,
        iteration=iteration,
        epochs=past.epochs if continues else epochs_in(iteration, length),
        epoch_length=length,
        lives=epoch_length is not None or _lived(past, data),
        max_epochs=max_epochs,
        max_iters=max_iters,
        data=data,
    )
    _check_goal(course)
    return course


def epochs_in(iteration: int, epoch_length: int | None) -> int:
    """Epochs that are complete after so many iterations."""
    return iteration // epoch_length if epoch_length else 0


def whole_number(where: str, name: str, value: Any, *, least: int) -> int | None:
    """An argument as an int; None stays None.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below `least`.
    """
    if value is None:
        return None
    wanted = f"{where}({name}=...): expected a whole number from {least}, received {value!r}"
    mend = f"write for example {name}={max(least, 1)}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{wanted} ({type(value).__name__}); {mend}") from None
    if number < least:
        raise ValueError(f"{wanted}; {mend}")
    return number


def _asked_start(asked_epoch: Any, asked_iteration: Any, epoch_length: int | None, past: Past, data: Any) -> int | None:
    """The iteration that `resume_from_*` asks for; the iteration wins over the epoch."""
    epoch = whole_number("run", "resume_from_epoch", asked_epoch, least=0)
    iteration = whole_number("run", "resume_from_iteration", asked_iteration, least=0)
    if iteration is not None or epoch is None:
        return iteration
    length = epoch_length if epoch_length is not None else past.epoch_length
    length = length_of(data) if length is None else length
    if length is None and epoch > 0:
        raise ValueError(
            f"run(resume_from_epoch={epoch}): expected data with a length, which tells the epoch's iteration, received "
            f"{type(data).__name__} without one; give epoch_length, or resume_from_iteration"
        )
    return epoch * (length or 0)


def _goes_on(past: Past, max_epochs: int | None, max_iters: int | None, same_data: bool) -> bool:
    """Whether a run continues: it was held, did not reach its goal, or is given a farther one."""
    given = max_epochs is not None or max_iters is not None
    if past.held:
        return given or not past.completed
    if past.iteration == 0:
        return False
    if not _reached(past, past.max_epochs, past.max_iters):
        return True
    return given and same_data and not _reached(past, max_epochs, max_iters)


def _reached(past: Past, max_epochs: int | None, max_iters: int | None) -> bool:
    if max_iters is not None:
        return past.iteration >= max_iters
    return max_epochs is not None and past.epochs >= max_epochs


def _epoch_length(past: Past, data: Any, given: int | None, max_iters: int | None) -> int | None:
    if given is not None:
        if past.epoch_length not in (None, given):
            raise ValueError(
                f"run(epoch_length={given}): expected {past.epoch_length}, that of the run which goes on after "
                f"iteration {past.iteration}, received {given}; leave epoch_length out, or start over with "
                "resume_from_iteration=0"
            )
        return given
    if past.epoch_length is not None:
        return past.epoch_length
    if data is None:
        raise ValueError(
            "run(data=None): expected epoch_length, since there is no data to tell it, received none; write for "
            "example run(epoch_length=100)"
        )
    if is_endless(data) and max_iters is None:
        raise ValueError(
            f"run(data): expected data with an end, which is that of an epoch, received {type(data).__name__} without "
            "one; give epoch_length"
        )
    length = length_of(data)
    if length == 0:
        raise DataLoaderEmptyError(
            "run(data): expected at least one batch, received data of length 0; "
            "if no iterations are meant, give epoch_length=0"
        )
    return length


def _lived(past: Past, data: Any) -> bool:
    """Whether the epoch length of a run that goes on was given; else the data's length tells."""
    return past.epoch_length is not None and (
        length_of(data) != past.epoch_length if past.lives is None else past.lives
    )


def _check_goals(max_epochs: int | None, max_iters: int | None, epoch_length: int | None) -> None:
    if max_epochs is not None and max_iters is not None:
        raise ValueError(
            f"run(max_epochs={max_epochs}, max_iters={max_iters}): expected one of them, received both; leave one out"
        )
    if max_iters is not None and epoch_length == 0:
        raise ValueError(
            f"run(max_iters={max_iters}, epoch_length=0): expected epochs with iterations, received an epoch_length "
            "of 0, with which there are none; give max_epochs"
        )


def _check_goal(course: Course) -> None:
    length, done = course.epoch_length, course.iteration
    goal = course.max_iters
    if course.max_epochs is not None and length is not None:
        goal = course.max_epochs * length
    if goal is not None and done > goal:
        name = "max_iters" if course.max_iters is not None else "max_epochs"
        raise ValueError(
            f"run({name}={getattr(course, name)}): expected a goal beyond iteration {done}, after which the run goes "
            f"on, received iteration {goal}; give a larger {name}, or start over with resume_from_iteration=0"
        )
