"""Names that people use for a checkpoint: `digits`, `digits@best`, `digits@100`, or the path or URL of its folder.

Used by the commands that look at checkpoints, and by a run that starts from one of another run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.checkpoints.manifest import NAME, Manifest
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.checkpoints.retention import best_of
from orchestrator.errors import CheckpointError, SpecError, explain
from workers.locations import storage_at
from workers.storage import Storage

__all__ = ["best_in", "find", "folder_of", "readable", "registry_of", "storage_named"]

_OF_A_RUN = {"checkpoints", "journal", "journal.jsonl", "spec.yaml"}  # a run's folder has one of these
_FORMS = "RUN, RUN@latest, RUN@best, RUN@STEP, or the path or URL of a checkpoint"


def find(reference: str, root: Storage) -> Committed:
    """The checkpoint that a reference names. Its files are not looked at.

    Args:
        reference: see above.
        root: the storage in which runs have their folders.

    Raises:
        CheckpointError: its manifest or the storage can't be read.
        SpecError: there is no such run, checkpoint, or best one.

    Example:
        >>> find("digits@best", storage_at("runs")).name  # doctest: +SKIP
        'step-00000230'
    """
    run, at, which = reference.rpartition("@")
    if not at or "/" in which:  # an @ may stand in a path, too
        run, at, which = reference, "", ""
    if not at and "/" in run:
        return _at(reference)
    registry = registry_of(run, root)
    with readable(registry.storage.url):
        committed = registry.committed()
    if not committed:
        raise SpecError(
            explain(
                f"checkpoint {reference!r}",
                expected=f"a run with checkpoints in {root.url}",
                received="one without any",
                mend=f"write {_FORMS}",
            )
        )
    if which in ("", "latest"):
        return committed[-1]
    if which == "best":
        return _best(reference, committed)
    return _at_step(reference, which, committed)


def registry_of(run: str, root: Storage) -> Registry:
    """The checkpoints of a run, to look at; see `folder_of`."""
    return Registry(folder_of(run, root).child("checkpoints"))


def folder_of(run: str, root: Storage) -> Storage:
    """The folder of a run, to look at.

    Args:
        run: its id, or the path or URL of its folder.
        root: the storage in which runs have their folders.

    Raises:
        CheckpointError: the storage can't be read.
        SpecError: there is no such run.
    """
    above, slash, name = run.rstrip("/").rpartition("/")
    folder = storage_named(run) if "/" in run else root.child(run)
    with readable(folder.url):
        if run and not _OF_A_RUN.isdisjoint(folder.names()):
            return folder
        beside = storage_named(above or "/") if slash else root
        near = difflib.get_close_matches(name, beside.names(), n=1)
    mend = "write the id of a run, or the path or URL of its folder"
    received = "none of that name"
    if near == [name]:
        received = "a folder of that name that is none"
    elif near:
        mend = f"did you mean {above}{slash}{near[0]}?"
    raise SpecError(explain(f"run {run!r}", expected=f"a run in {beside.url}", received=received, mend=mend))


def storage_named(url: str) -> Storage:
    """The storage of a path or URL that a user wrote.

    Raises:
        SpecError: no such file system is known, or what it needs is not installed.

    Example:
        >>> storage_named("/data/runs").url
        '/data/runs'
    """
    try:
        return storage_at(url)
    except ValueError as error:
        raise SpecError(
            explain(
                "storage",
                expected="a folder, or a URL that fsspec knows",
                received=str(error),
                mend="write for example runs or s3://bucket/runs, and install what the URL needs (rankfire[s3])",
            )
        ) from error


@contextmanager
def readable(url: str) -> Iterator[None]:
    """What a storage refuses while it is looked at becomes an error of ours.

    Args:
        url: what is looked at, for the error.

    Raises:
        CheckpointError: the storage refused.

    Example:
        >>> with readable("s3://bucket/runs"):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        ...
        orchestrator.errors.CheckpointError: checkpoint s3://bucket/runs: can't be read: Permission denied
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError.at(url, f"can't be read: {error.strerror or error}") from error


def best_in(committed: list[Committed]) -> Committed | None:
    """The best checkpoint by the rule that the newest one tells; None if it tells none, or none has the metric.

    Args:
        committed: all checkpoints of one run, oldest first.
    """
    rule = committed[-1].manifest.best if committed else None
    if rule is None:
        return None
    metrics = [(checkpoint.name, checkpoint.manifest.metrics) for checkpoint in committed]
    name = best_of(metrics, rule["metric"], "min" if rule["mode"] == "min" else "max")
    return next((checkpoint for checkpoint in committed if checkpoint.name == name), None)


def _best(reference: str, committed: list[Committed]) -> Committed:
    best = best_in(committed)
    if best is None:
        rule = committed[-1].manifest.best
        expected, received = "a run that says which metric tells its best checkpoint", "one that does not"
        mend = "give checkpoint.best in the job file"
        if rule is not None:
            expected = f"a checkpoint that was made where {rule['metric']} was measured"
            received, mend = "none", "evaluate where you save"
        raise SpecError(
            explain(
                f"checkpoint {reference!r}",
                expected=expected,
                received=received,
                mend=f"{mend}, or name the step: " + ", ".join(checkpoint.name for checkpoint in committed),
            )
        )
    return best


def _at_step(reference: str, which: str, committed: list[Committed]) -> Committed:
    step = int(which) if re.fullmatch(r"[0-9]{1,18}", which) else None
    name = which if step is None else f"step-{step:08d}"
    for checkpoint in reversed(committed):
        if checkpoint.name == name or (step is not None and checkpoint.manifest.iteration == step):
            return checkpoint
    raise SpecError(
        explain(
            f"checkpoint {reference!r}",
            expected="the step of a checkpoint",
            received=repr(which),
            mend="there are " + ", ".join(checkpoint.name for checkpoint in committed),
        )
    )


def _at(url: str) -> Committed:
    storage = storage_named(url)
    try:
        manifest = Manifest.from_json(storage.read(NAME))
    except FileNotFoundError:
        raise SpecError(
            explain(f"checkpoint {url!r}", expected=f"a folder with a {NAME}", received="none", mend=f"write {_FORMS}")
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError.at(url, str(error)) from error
    return Committed(name=url.rstrip("/").rpartition("/")[2], storage=storage, manifest=manifest)
