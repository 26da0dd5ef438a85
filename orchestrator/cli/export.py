"""`rankfire export`: write one entry of a checkpoint's state as a plain file that loads without Rankfire."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.storage import json_option, print_json, size_in_words, storage_option

__all__ = ["export"]


EPILOG = """\b
Examples:
  rankfire export digits@best digits.safetensors
  rankfire export digits@100 model.pt --entry model --force"""


@click.command(epilog=EPILOG)
@click.argument("reference")
@click.argument("out")
@click.option("--entry", default="model", show_default=True, help="Which entry of the program's state.")
@storage_option
@click.option("--force", is_flag=True, help="Write over OUT if it is there.")
@json_option
def export(reference: str, out: str, entry: str, storage: str, force: bool, as_json: bool) -> None:
    """Write a checkpoint's model to OUT, a file that loads without Rankfire.

    REFERENCE is RUN, RUN@latest, RUN@best, RUN@STEP, or the path or URL of a checkpoint; every byte of it is
    verified first. OUT ends in .safetensors, .pt or .pth and is written whole or not at all.
    """
    from orchestrator.checkpoints.references import find, storage_named

    checkpoint = find(reference, storage_named(storage))
    from orchestrator.checkpoints.export import write_entry  # after the search: a wrong name need not wait for torch

    write_entry(checkpoint, out, entry=entry, force=force)
    manifest, bytes_written = checkpoint.manifest, Path(out).stat().st_size
    if as_json:
        where = {"epoch": manifest.epoch, "iteration": manifest.iteration, "size": bytes_written}
        print_json({"file": out, "entry": entry, "checkpoint": checkpoint.url, **where})
        return
    size = size_in_words(bytes_written)
    click.echo(f"{out}: {entry} of {checkpoint.url}, epoch {manifest.epoch}, iteration {manifest.iteration}, {size}")
