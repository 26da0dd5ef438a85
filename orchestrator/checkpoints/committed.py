"""A checkpoint as the driver holds it: one that is committed, and one that is being written.

How one becomes the other is in `registry.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.checkpoints.manifest import Manifest
from workers.storage import Storage

__all__ = ["Committed", "Refused", "Staging"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A committed checkpoint: its name, where it lies, and what its manifest says."""

    name: str
    storage: Storage
    manifest: Manifest

    @property
    def url(self) -> str:
        """Path or URL of its folder."""
        return self.storage.url


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What has the name of a checkpoint and can't be gone on from: its name, and what is wrong with it."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"checkpoint {self.name}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """A checkpoint that is being written: the folder it is written into, and the name it will have."""

    folder: str
    name: str
    storage: Storage
