"""Where a run begins: at its newest checkpoint that verifies, at one of another run, or at nothing.

Called by `training.py` when the run is owned and before any worker starts; by `run.py` when the program is known, and
after a fault that left no snapshot. What to tell of it is worded here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.checkpoints.references import find
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.checkpoints.verify import damage
from orchestrator.errors import CheckpointError, SpecError, explain
from orchestrator.lease import FOLDER
from orchestrator.limits import Limits
from workers.data.fingerprint import fingerprint_mismatch
from workers.parcels import LoadPoint
from workers.storage import Storage

__all__ = [
    "Resume",
    "StartFrom",
    "already_done",
    "changed_versions",
    "check_data",
    "dropped",
    "load_of",
    "newest",
    "newest_load",
    "place_in_words",
    "refuse_existing",
    "set_aside",
    "starting_point",
    "way_on",
]

_EXISTING = {"checkpoints", "journal", "journal.jsonl"}  # what a run that has begun has


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What to do about what is there already.

    Args:
        mode: "auto" goes on from the newest checkpoint; "never" refuses if the run exists.
        fresh: move an existing run aside first, and start anew.
        strict: refuse a damaged checkpoint instead of taking the one before it.
    """

    mode: str = "auto"
    fresh: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "never"):
            raise SpecError(
                explain(
                    "orchestrator.run: resume",
                    expected="'auto' or 'never'",
                    received=repr(self.mode),
                    mend="leave it out to go on from the newest checkpoint",
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFrom:
    """Entries of another run's state with which a new run begins, as for fine-tuning.

    Args:
        checkpoint: which one; see `checkpoints/references.py`.
        state: names of the entries.
    """

    checkpoint: str
    state: tuple[str, ...] = ("model",)


def newest_load(
    registry: Registry, tell: Callable[[str], None], taken: Callable[[Committed | None], None]
) -> LoadPoint | None:
    """The newest valid checkpoint, for ranks that have no snapshot to go back to; None if there is none.

    Args:
        registry: the run's checkpoints.
        tell: called with a sentence for each newer one that was refused.
        taken: called with it, also if there is none.
    """
    point = newest(registry, Resume(), tell)
    taken(point)
    return None if point is None else load_of(point)


def load_of(point: Committed) -> LoadPoint:
    """What ranks take up that go on from this checkpoint of their run."""
    manifest = point.manifest
    return LoadPoint(url=point.url, world_size=manifest.world_size, iteration=manifest.iteration)


def newest(registry: Registry, resume: Resume, tell: Callable[[str], None]) -> Committed | None:
    """The newest checkpoint whose every byte verifies; None if the run has none. Newer ones are set aside.

    Args:
        registry: the run's checkpoints; the caller owns the run.
        resume: what to do if one is damaged.
        tell: called with a sentence for each one that was refused.

    Raises:
        CheckpointError: one is damaged, and `strict` was asked for; or all are.
    """
    point, refused = registry.newest_valid()
    if refused and (resume.strict or point is None):
        words = "; ".join(map(str, refused))
        if point is None:
            raise CheckpointError(f"{words}; no other is left: restore the files, or start anew with --fresh")
        ways = "restore the files, leave out --strict to go on from the one before it, or start anew with --fresh"
        raise CheckpointError(f"{words}; {ways}")
    for one in refused:
        now = registry.set_aside(one.name)
        tell(f"{one}; trying the one before it" + ("" if now is None else f", and this one is now {now}"))
    return point


def starting_point(start: StartFrom, root: Storage) -> LoadPoint:
    """The checkpoint of another run that a new run starts from, verified.

    Args:
        start: which one, and which entries of its state.
        root: the storage in which runs have their folders.

    Raises:
        CheckpointError: it is damaged.
        SpecError: there is none of that name, or it lacks an entry.
    """
    point = find(start.checkpoint, root)
    wrong = damage(point.storage, point.manifest)
    if wrong is not None:
        error = CheckpointError.at(start.checkpoint, f"{wrong}; name another one in start_from.checkpoint")
        error.refusal = True
        raise error
    if missing := sorted(set(start.state) - set(point.manifest.state)):
        raise SpecError(
            explain(
                "start_from.state",
                expected=f"entries that {start.checkpoint} holds",
                received=", ".join(map(repr, missing)),
                mend="it holds " + (", ".join(map(repr, sorted(point.manifest.state))) or "none"),
            )
        )
    return LoadPoint(url=point.url, world_size=point.manifest.world_size, entries=start.state)


def refuse_existing(home: Storage, run: str) -> None:
    """See that a run has not begun yet; one that was refused before it did has an empty journal at most.

    Args:
        home: the run's folder.
        run: its id, for the error.

    Raises:
        SpecError: it has.
    """
    if any(home.names(name) or _holds(home, name) for name in home.names() if name in _EXISTING):
        raise SpecError(
            explain(
                f"run {run!r}",
                expected="a run that does not exist yet, since resume is never",
                received=f"one in {home.url}",
                mend="choose another run id, or start anew with --fresh, which moves the old one aside",
            )
        )


def set_aside(root: Storage, run: str) -> str | None:
    """Move what a run has into a folder beside its own; returns that folder's name, or None if there was nothing.

    Args:
        root: the storage in which runs have their folders.
        run: the run's id; the caller owns it.
    """
    there = [name for name in root.child(run).names() if name != FOLDER]  # who owns the run's name goes on owning it
    if not there:
        return None
    number, taken = 1, set(root.names())
    while (aside := f"{run}.old-{number}") in taken:
        number += 1
    if root.moves:
        root.make_folder(aside)
    for name in there:
        root.move(f"{run}/{name}", f"{aside}/{name}")
    return aside


def changed_versions(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What is not the version that made a checkpoint, in words; None if all are.

    Args:
        then: name → version, of what made the checkpoint.
        now: the same of what is installed.

    Example:
        >>> changed_versions({"torch": "2.10.0", "ray": "2.56.0"}, {"torch": "2.13.0", "ray": "2.56.0"})
        'torch 2.10.0 → 2.13.0'
    """
    changed = [f"{name} {then[name]} → {now[name]}" for name in sorted(then) if now.get(name, then[name]) != then[name]]
    return ", ".join(changed) or None


def place_in_words(point: Committed, world_size: int) -> str:
    """Where a run goes on, and that its ranks are others in number.

    Args:
        point: its checkpoint.
        world_size: ranks that it has now.
    """
    then = point.manifest.world_size
    resized = "" if then == world_size else f", whose ranks were {then}, and are {world_size} now"
    return f"checkpoint {point.name}, epoch {point.manifest.epoch}{resized}"


def dropped(then: Iterable[str], now: Collection[str]) -> str | None:
    """What a checkpoint holds of which the program knows nothing any more, in words; None if there is nothing.

    Args:
        then: names of the entries of the checkpoint's state.
        now: those of the program's.

    Example:
        >>> dropped(["model", "ema"], ["model", "optimizer"])
        "its state 'ema' is dropped, since the program has none of that name"
    """
    gone = sorted(set(then) - set(now))
    return (
        f"its state {', '.join(map(repr, gone))} is dropped, since the program has none of that name" if gone else None
    )


def already_done(point: Committed, limits: Limits) -> str | None:
    """What is done of a run that has nothing left to do, and how it would go on; None if something is left.

    Args:
        point: the checkpoint that it would go on from.
        limits: how long to train.
    """
    manifest, epochs, length = point.manifest, limits.max_epochs, point.manifest.epoch_length
    if limits.max_iters is not None:
        done, goal, what = manifest.iteration, limits.max_iters, "iterations"
    elif length is None or epochs is None:
        return None
    else:
        done, goal, what = manifest.iteration // length, epochs, "epochs"
    name = "max_iters" if limits.max_iters is not None else "max_epochs"
    return None if done < goal else f"{done} of {goal} {what}; raise train.{name}, or take another run id"


def way_on(registry: Registry, iteration: int, limits: Limits | None = None) -> str:
    """In words, after a run that did not come to its end: where the same command goes on.

    Args:
        registry: the run's checkpoints.
        iteration: where it ended.
        limits: how long it trains, if it may have come to its goal.
    """
    try:
        committed = registry.committed()
    except (OSError, CheckpointError):  # it may be the storage that ended the run
        committed = []
    if not committed:
        return "nothing was saved"
    newest = committed[-1]
    if newest.manifest.iteration == iteration:
        if limits is not None and already_done(newest, limits) is not None:
            return f"saved as {newest.name}, with which it is done: there is nothing left to do"
        return f"saved as {newest.name}; the same command goes on from there"
    return f"the same command goes on from {newest.name}"


def check_data(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """See that a position in the data means what it meant: it does only if the data is the same.

    Args:
        then: fingerprint of the data of the checkpoint that training goes on from; None if it begins.
        now: that of the program.

    Raises:
        SpecError: it is other data.
    """
    if then is None:
        return
    if bool(then) != bool(now):
        kinds = {
            True: "a map-style data set, whose order the checkpoint knows",
            False: "data with an order of its own",
        }
        expected, received = kinds[bool(then)] + ", as in the checkpoint", kinds[bool(now)].partition(",")[0]
        mend = "give the same data, or run under another run id"
        raise SpecError(explain("run: data", expected=expected, received=received, mend=mend))
    wrong = fingerprint_mismatch(then, now)
    if wrong is not None:
        raise SpecError(f"run: {wrong}")


def _holds(home: Storage, name: str) -> bool:
    try:
        return home.size(name) > 0
    except FileNotFoundError:
        return False
