"""Checkpoints on storage: what one consists of, which are kept, when one is committed."""

from orchestrator.checkpoints.manifest import FileEntry, Manifest
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.checkpoints.retention import to_prune

__all__ = ["Committed", "FileEntry", "Manifest", "Registry", "to_prune"]
