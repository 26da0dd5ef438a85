"""Names that people use for a checkpoint: `digits`, `digits@best`, `digits@100`, or the path or URL of its folder.

Used by the commands that look at checkpoints, and by a run that starts from one of another run.
"""

from __future__ import annotations

from orchestrator.checkpoints.manifest import NAME, Manifest
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.checkpoints.retention import best_of
from orchestrator.errors import CheckpointError, SpecError, explain
from workers.locations import storage_at
from workers.storage import Storage

__all__ = ["best_in", "find", "registry_of"]

_FORMS = "RUN, RUN@latest, RUN@best, RUN@STEP, or the path or URL of a checkpoint"


def find(reference: str, root: Storage) -> Committed:
    """The checkpoint that a reference names. Its files are not looked at.

    Args:
        reference: see above.
        root: the storage in which runs have their folders.

    Raises:
        SpecError: there is no such run, checkpoint, or best one.

    Example:
        >>> find("digits@best", storage_at("runs")).name  # doctest: +SKIP
        'step-00000230'
    """
    run, at, which = reference.partition("@")
    if not at and "/" in run:
        return _at(reference)
    committed = registry_of(run, root).committed()
    if not committed:
        raise SpecError(
            explain(
                f"checkpoint {reference!r}",
                expected=f"a run with checkpoints in {root.url}",
                received="none of that name",
                mend=f"write {_FORMS}",
            )
        )
    if which in ("", "latest"):
        return committed[-1]
    if which == "best":
        return _best(reference, committed)
    return _at_step(reference, which, committed)


def registry_of(run: str, root: Storage) -> Registry:
    """The checkpoints of a run, to look at.

    Args:
        run: its id, or the path or URL of its folder.
        root: the storage in which runs have their folders.
    """
    folder = storage_at(run) if "/" in run else root.child(run)
    return Registry(folder.child("checkpoints"))


def best_in(committed: list[Committed]) -> Committed | None:
    """The best checkpoint by the rule that the newest one tells; None if it tells none, or none has the metric."""
    rule = committed[-1].manifest.best if committed else None
    if rule is None:
        return None
    metrics = [(checkpoint.name, checkpoint.manifest.metrics) for checkpoint in committed]
    name = best_of(metrics, rule["metric"], "min" if rule["mode"] == "min" else "max")
    return next((checkpoint for checkpoint in committed if checkpoint.name == name), None)


def _best(reference: str, committed: list[Committed]) -> Committed:
    best = best_in(committed)
    if best is None:
        raise SpecError(
            explain(
                f"checkpoint {reference!r}",
                expected="a run that says which metric tells its best checkpoint",
                received="one that does not",
                mend="give checkpoint.best in the job file, or name the step: "
                + ", ".join(checkpoint.name for checkpoint in committed),
            )
        )
    return best


def _at_step(reference: str, which: str, committed: list[Committed]) -> Committed:
    name = f"step-{int(which):08d}" if which.isdigit() else which
    for checkpoint in reversed(committed):
        if checkpoint.name == name or (which.isdigit() and checkpoint.manifest.iteration == int(which)):
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
    storage = storage_at(url)
    try:
        manifest = Manifest.from_json(storage.read(NAME))
    except FileNotFoundError:
        raise SpecError(
            explain(f"checkpoint {url!r}", expected=f"a folder with a {NAME}", received="none", mend=f"write {_FORMS}")
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError.at(url, str(error)) from error
    return Committed(name=url.rstrip("/").rpartition("/")[2], storage=storage, manifest=manifest)
