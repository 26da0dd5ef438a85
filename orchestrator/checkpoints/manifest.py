"""The manifest of a checkpoint: what every file must be, and where training stood. Its appearance is the commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FileEntry", "Manifest", "damage"]

VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: path relative to the checkpoint, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint is.

    Args:
        run: id of the run.
        epoch, iteration, epoch_length: where the trainer stood.
        world_size: number of ranks that wrote it.
        time: seconds since 1970, when it was committed.
        metrics: the driver's reduced metrics.
        driver: state of the driver: its counters, and its handlers' states.
        files: every file beside the manifest.
        versions: of what wrote it.
    """

    run: str
    epoch: int
    iteration: int
    epoch_length: int | None
    world_size: int
    time: float
    metrics: Mapping[str, float]
    driver: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: it is none, or one of a later version.
        """
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"manifest version {data['version']}, this Rankfire reads {VERSION}")
            files = tuple(FileEntry(**entry) for entry in data.pop("files"))
            manifest = cls(files=files, **data)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"no manifest: {type(error).__name__}: {error}") from error
        for entry in files:
            if not entry.path or entry.path.startswith("/") or ".." in Path(entry.path).parts:
                raise ValueError(f"a file is said to lie in {entry.path!r}, outside the checkpoint")
        return manifest


def damage(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with a checkpoint's files, or None if every byte is as the manifest says."""
    for entry in manifest.files:
        path = folder / entry.path
        try:
            size = path.stat().st_size
            if size != entry.size:
                return f"{entry.path} has {size} bytes, its manifest says {entry.size}"
            with path.open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            return f"{entry.path} can't be read: {error.strerror}"
        if digest.hexdigest() != entry.sha256:
            return f"{entry.path} is not what was written: its sha256 differs"
    return None
