"""`rankfire packed`, which nobody types: on a cluster, run what `submit` has put into the working directory."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.run import run_to_its_end

__all__ = ["packed"]


@click.command(hidden=True)
def packed() -> None:
    """Run the job that was packed with this working directory."""
    from orchestrator.launch.submission import FOLDER
    from orchestrator.specfile import load_spec

    here = Path.cwd()
    given = json.loads((here / FOLDER / "roots.json").read_text(encoding="utf-8"))
    roots = [str((here / root).resolve()) for root in given]
    run_to_its_end(load_spec(f"{FOLDER}/job.yaml", roots=roots), roots)
