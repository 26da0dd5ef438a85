"""`rankfire version`: the versions that a bug report needs.

Read from package metadata, so that nothing heavy is imported.
"""

from __future__ import annotations

import platform
from importlib import metadata

import click

__all__ = ["version"]


@click.command()
def version() -> None:
    """Print the versions of Rankfire, Python, torch and Ray."""
    click.echo(f"rankfire {version_of('rankfire')}")
    click.echo(f"python {platform.python_version()}")
    for package in ("torch", "ray"):
        click.echo(f"{package} {version_of(package)}")


def version_of(package: str) -> str:
    """Give an installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
