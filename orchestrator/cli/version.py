"""`rankfire version`: the versions that a bug report needs.

Read from package metadata, so that nothing heavy is imported.
"""

from __future__ import annotations

import platform
from importlib import metadata

import click

from orchestrator.cli.storage import json_option, print_json

__all__ = ["version"]


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the versions of Rankfire, Python, torch and Ray."""
    found = {"rankfire": version_of("rankfire"), "python": platform.python_version()}
    found |= {package: version_of(package) for package in ("torch", "ray")}
    if as_json:
        print_json(found)
        return
    for name, number in found.items():
        click.echo(f"{name} {number}")


def version_of(package: str) -> str:
    """Give an installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
