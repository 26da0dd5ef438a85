"""The manifest of a checkpoint: what every file must be, and where training stood. Its appearance is the commit.

It vouches for itself as well: its own sha256 is in it, so that a flipped bit in it is seen like one in any other file.
Whether the files are what it says is asked in `verify.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from workers.parcels import Receipt

__all__ = ["NAME", "Manifest"]

VERSION = 2
NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint is.

    Args:
        run: id of the run.
        epoch, iteration, epoch_length: where the trainer stood.
        world_size: number of ranks that wrote it.
        time: seconds since 1970, when it was made.
        metrics: the driver's reduced metrics.
        best: how the run tells its best checkpoint, `{"metric": …, "mode": "max" or "min"}`; None if it does not.
        cursor: `{"seed": …, "position": …}`: where the data stood, in samples since the start of training over all
            ranks; empty if the data has no such order.
        data: fingerprint of the trainer's data: what must be the same for the cursor to mean the same.
        state: bytes of tensors in each entry of the program's state.
        token: fencing token of the driver that wrote it.
        spec: sha256 of the job file; empty if there was none.
        driver: state of the driver's handlers.
        versions: of what wrote it.
        files: every file beside the manifest.
    """

    run: str
    epoch: int
    iteration: int
    epoch_length: int | None
    world_size: int
    time: float
    metrics: Mapping[str, float]
    best: Mapping[str, str] | None = None
    cursor: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, int] = field(default_factory=dict)
    token: int = 0
    spec: str = ""
    driver: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Receipt, ...] = ()
    version: int = VERSION

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def with_files(self, files: tuple[Receipt, ...]) -> Manifest:
        """The same, for these files."""
        return replace(self, files=files)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        content = asdict(self)
        return json.dumps({**content, "sha256": _digest(content)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: it is none, it was changed, or it is one of another version.
        """
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(
                    f"manifest version: expected {VERSION}, which this Rankfire reads, received "
                    f"{content['version']}; use the Rankfire that wrote it"
                )
            if content.pop("sha256") != _digest(content):
                raise ValueError("the manifest is not what was written: its own sha256 differs")
            files = tuple(Receipt(**entry) for entry in content.pop("files"))
            for entry in files:
                if not entry.path or entry.path.startswith("/") or ".." in PurePosixPath(entry.path).parts:
                    raise ValueError(f"a file is said to lie in {entry.path!r}, outside the checkpoint")
            return cls(files=files, **content)
        except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"no manifest: {type(error).__name__}: {error}") from error


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of everything else in it, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
