"""Which processes came from which, as Linux tells it: for either side, where it acts on what it has started."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["family"]


def family(process: int) -> list[int]:
    """A process and all that came from it and has its parents still, itself first.

    Args:
        process: its id.

    Example:
        >>> import os
        >>> family(os.getpid())[0] == os.getpid()
        True
    """
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    members = [process]
    for member in members:
        members += children.get(member, [])
    return members
