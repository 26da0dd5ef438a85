"""Whether two data orders are the same: compared when a run resumes, worded for the user when they are not.

A fingerprint is what decides which samples come when: `GlobalLoader.fingerprint()` makes one, a checkpoint keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["VERSION", "fingerprint_mismatch"]

VERSION = 1  # of the order: another one would give other samples for the same numbers


def fingerprint_mismatch(saved: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Say in which fields two fingerprints differ.

    Args:
        saved: the checkpoint's.
        now: that of the program which shall go on.

    Returns:
        One line of text, or None if they are equal.

    Example:
        >>> fingerprint_mismatch({"samples": 10}, {"samples": 12})
        'data: samples: expected 10, as in the checkpoint, received 12; give the same data and global batch size, \
or run under another run id'
    """
    names = dict.fromkeys([*saved, *now])  # in the order in which they are written
    differing = [name for name in names if _of(saved, name) != _of(now, name)]
    if not differing:
        return None
    words = "; ".join(
        f"{name}: expected {_of(saved, name)}, as in the checkpoint, received {_of(now, name)}" for name in differing
    )
    return f"data: {words}; give the same data and global batch size, or run under another run id"


def _of(fingerprint: Mapping[str, object], name: str) -> str:
    return repr(fingerprint[name]) if name in fingerprint else "nothing"
