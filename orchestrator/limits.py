"""How long to train, and how long to wait for what: one frozen value, checked when it is made.

Made by the orchestrator from a job file or a caller's arguments; read by the run. Whether a limit is reached is decided
on the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import SpecError, explain

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a run may take.

    Args:
        max_epochs: epochs in all, or None.
        max_iters: iterations in all, or None.
        epoch_length: iterations of an epoch; None: one pass over the data.
        start_timeout: seconds within which all workers must be up, and then joined; while they build or load a
            checkpoint, seconds after which the user is told who is still at it.

    Raises:
        SpecError: not exactly one of max_epochs and max_iters, or a number that is not positive and whole.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    epoch_length: int | None = None
    start_timeout: float = 60.0

    def __post_init__(self) -> None:
        if (self.max_epochs is None) == (self.max_iters is None):
            raise SpecError(
                explain(
                    "orchestrator.run",
                    expected="exactly one of max_epochs and max_iters",
                    received=f"{self.max_epochs!r} and {self.max_iters!r}",
                    mend="write for example run(max_epochs=5)",
                )
            )
        for name in ("max_epochs", "max_iters", "epoch_length"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SpecError(
                    explain(
                        f"orchestrator.run({name})",
                        expected="a positive whole number",
                        received=f"{value!r} ({type(value).__name__})",
                        mend=f"write for example {name}=5",
                    )
                )
