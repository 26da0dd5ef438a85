"""Versions of what both sides of a run must have in common, as they are installed where this is called."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed"]


def installed(*packages: str) -> dict[str, str]:
    """Package → its version, without importing any of them.

    Args:
        packages: their names, as pip knows them.

    Example:
        >>> installed("no-such-package")
        {'no-such-package': 'not installed'}
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was put on the path instead of installed
            found[package] = "not installed"
    return found
