"""What a job says about lost and hung ranks, as frozen values: the part `recovery:` of `spec.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.spec_values import Count, Seconds, Section, Tries, refuse

__all__ = ["RecoverySpec", "RestartsSpec", "SnapshotsSpec"]


class SnapshotsSpec(Section):
    """Copies of its state that each rank keeps in its own memory, to go back to. `auto` or `off` alone is short."""

    mode: Literal["auto", "off"] = "auto"
    """auto: at every gate and between; off: none, so that after a loss all go back to the newest checkpoint."""
    iterations: Count | None = None
    """Take one after each so many iterations, too; null: as often as it costs at most a hundredth of the time."""

    @model_validator(mode="before")
    @classmethod
    def expand_mode(cls, given: object) -> object:
        """Read a text alone as the mode."""
        return {"mode": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def check_off(self) -> SnapshotsSpec:
        """Accept a number of iterations only where there are snapshots."""
        if self.mode == "off" and self.iterations is not None:
            refuse("no iterations where snapshots are off", "write snapshots: off, or leave mode out")
        return self

    @property
    def every(self) -> int | Literal["auto"] | None:
        """Iterations between two snapshots; None: there are none."""
        return None if self.mode == "off" else self.iterations or "auto"

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show editors the short form too."""
        section = handler.resolve_ref_schema(handler(core_schema))
        word = {"enum": ["auto", "off"], "description": "Whether there are snapshots."}
        return {"anyOf": [word, section], "description": section.get("description", "")}


class RestartsSpec(Section):
    """How often a run is recovered, by cause; those of preemption are not counted."""

    crash: Tries = 10
    """Recoveries from processes that died."""
    oom: Tries = 2
    """Recoveries from processes that were ended for lack of memory."""
    hang: Tries = 5
    """Recoveries from ranks that stood still."""
    network: Tries = 10
    """Recoveries from ranks that lost contact while every process lived."""
    window: Seconds = 3600.0
    """Seconds in which these may come; what is longer ago is forgotten."""


class RecoverySpec(Section):
    """What happens when a rank is lost or stands still."""

    on_loss: Literal["recover", "stop"] = "recover"
    """Replace the rank and go on inside the run, or end the run with an error."""
    snapshots: SnapshotsSpec = SnapshotsSpec()
    """What there is to go back to, beside checkpoints: auto, off, or a mapping with iterations."""
    hang_timeout: Seconds = 300.0
    """Seconds without progress after which a rank counts as hung; longer than any iteration takes."""
    restarts: RestartsSpec = RestartsSpec()
    """How often, before the run ends with an error."""
