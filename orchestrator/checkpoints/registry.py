"""The checkpoints of one run on a file system: open → commit or abandon, newest, prune.

A checkpoint is written into a staging folder (`step-N.attempt-k`), every file synced and hashed by its writer; then the
manifest is written and synced, and one rename makes the folder a checkpoint. Until then the old ones stand.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.checkpoints.manifest import NAME, FileEntry, Manifest, damage
from orchestrator.errors import CheckpointError

__all__ = ["Committed", "Registry"]

_COMMITTED = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_STAGING = re.compile(r"step-\d{8,}(?:-\d+)?\.(attempt|pruned)-\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A committed checkpoint: its folder, and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name


class Registry:
    """The checkpoints of one run.

    Args:
        folder: `runs/<run id>/checkpoints`; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sweep(self) -> list[str]:
        """Remove what interrupted saves and prunings left; returns their names. Only the run's owner may call it."""
        orphans = [path for path in self._entries() if _STAGING.fullmatch(path.name)]
        for path in orphans:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in orphans]

    def committed(self) -> list[Committed]:
        """All checkpoints whose manifest can be read, oldest first; their files are not looked at."""
        found = []
        for path in self._entries():
            match = _COMMITTED.fullmatch(path.name)
            if match:
                try:
                    manifest = Manifest.from_json((path / NAME).read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    continue
                found.append(((int(match[1]), int(match[2] or 0)), Committed(folder=path, manifest=manifest)))
        return [checkpoint for _, checkpoint in sorted(found, key=lambda pair: pair[0])]

    def newest_valid(self) -> tuple[Committed | None, list[str]]:
        """The newest checkpoint whose every byte verifies.

        Returns:
            It, or None; and what was wrong with each newer one.
        """
        refused: list[str] = []
        folders = [path for path in self._entries() if _COMMITTED.fullmatch(path.name)]
        readable = {checkpoint.name: checkpoint for checkpoint in self.committed()}
        for path in sorted(folders, key=_order, reverse=True):
            checkpoint = readable.get(path.name)
            wrong = "its manifest is missing or damaged" if checkpoint is None else damage(path, checkpoint.manifest)
            if wrong is None:
                return checkpoint, refused
            refused.append(f"checkpoint {path.name}: {wrong}")
        return None, refused

    def open(self, step: int) -> Path:
        """A fresh staging folder for a checkpoint at `step` iterations."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = self._free_name(step)
            attempt = 1
            while (staging := self.folder / f"{name}.attempt-{attempt}").exists():
                attempt += 1
            for part in ("data", "ranks"):
                (staging / part).mkdir(parents=True)
        except OSError as error:
            raise CheckpointError.at(str(self.folder), f"can't be written: {error.strerror}") from error
        return staging

    def commit(self, staging: Path, manifest: Manifest, files: Iterable[FileEntry]) -> Committed:
        """Make a staging folder a checkpoint.

        Args:
            staging: what `open` gave, with all files in it synced.
            manifest: everything but its files.
            files: every file in it.

        Raises:
            CheckpointError: files are there that nobody vouches for, or the disk refuses; nothing is committed.
        """
        entries = tuple(sorted(files, key=lambda entry: entry.path))
        present = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        if present != [entry.path for entry in entries]:
            strange = sorted(set(present) ^ {entry.path for entry in entries})
            raise CheckpointError.at(staging.name, f"files and receipts differ: {', '.join(strange)}")
        whole = replace(manifest, files=entries)
        final = staging.with_name(staging.name.partition(".")[0])
        try:
            _write_synced(staging / NAME, whole.to_json())
            for path in (staging / "data", staging / "ranks", staging):
                _sync_folder(path)
            staging.rename(final)
            _sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError.at(staging.name, f"can't be committed: {error.strerror}") from error
        return Committed(folder=final, manifest=whole)

    def abandon(self, staging: Path) -> None:
        """Remove a staging folder."""
        shutil.rmtree(staging, ignore_errors=True)

    def remove(self, checkpoints: Sequence[Committed]) -> None:
        """Remove checkpoints: each first loses its name, so that half of one is never taken for a whole.

        Raises:
            CheckpointError: the disk refuses.
        """
        for checkpoint in checkpoints:
            attempt = 1
            while (gone := checkpoint.folder.with_name(f"{checkpoint.name}.pruned-{attempt}")).exists():
                attempt += 1
            try:
                checkpoint.folder.rename(gone)
            except OSError as error:
                raise CheckpointError.at(checkpoint.name, f"can't be removed: {error.strerror}") from error
            shutil.rmtree(gone, ignore_errors=True)

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _free_name(self, step: int) -> str:
        """`step-N`, or `step-N-2` … if a checkpoint of that step is there: no committed one is ever written over."""
        name, number = f"step-{step:08d}", 1
        while (self.folder / name).exists():
            number += 1
            name = f"step-{step:08d}-{number}"
        return name


def _order(path: Path) -> tuple[int, int]:
    match = _COMMITTED.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _write_synced(path: Path, text: str) -> None:
    """Write a file so that it appears whole, and is on the disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
