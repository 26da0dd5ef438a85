"""Whether a worker has the versions that the driver has: asked when it says hello, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.errors import StartError, explain
from workers.rank import Place
from workers.versions import installed

__all__ = ["check_same", "other_versions"]


def check_same(place: Place, there: Mapping[str, str]) -> None:
    """See that a worker runs our own code of the same version: what they tell each other may have changed.

    Args:
        place: where the worker lives.
        there: the versions that it told.

    Raises:
        StartError: it does not.
    """
    here = installed("rankfire")["rankfire"]
    if there.get("rankfire", here) != here:
        raise StartError(
            explain(
                f"worker on {place}",
                expected=f"rankfire {here}, as the driver has it",
                received=f"rankfire {there['rankfire']}",
                mend="install the same version on all nodes, best from one image",
            )
        )


def other_versions(there: Mapping[str, str]) -> str | None:
    """What else is not as the driver has it, in words; None if nothing is. Results may differ then between nodes."""
    here = installed(*there)
    other = [f"{name} {there[name]} instead of {here[name]}" for name in sorted(there) if there[name] != here[name]]
    return ", ".join(other) or None
