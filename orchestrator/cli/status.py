"""`rankfire status`: how one run stands, in a few lines, from its folder, or on the cluster it was submitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, entered, insecure_option, job_as_json, job_in_words
from orchestrator.cli.storage import folder_named, json_option, print_json, shown, storage_option, time_in_words

if TYPE_CHECKING:
    from orchestrator.runs import RunState

__all__ = ["in_words", "status"]

EPILOG = """\b
Examples:
  rankfire status digits
  rankfire status digits --json
  rankfire status digits --address http://127.0.0.1:8265"""


@click.command(epilog=EPILOG)
@click.argument("run")
@storage_option
@address_option("Ask this cluster about its job, instead of the run's folder.")
@insecure_option
@json_option
def status(run: str, storage: str, address: str | None, insecure: bool, as_json: bool) -> None:
    """Say how RUN stands: its id, or the path or URL of its folder."""
    if address is not None:
        from orchestrator.launch.submission import newest_job

        job = newest_job(entered(address, insecure), run)
        if as_json:
            print_json(job_as_json(job))
        else:
            click.echo(job_in_words(job))
        return
    from orchestrator.runs import look_at

    state = look_at(folder_named(run, storage))
    if as_json:
        print_json(shown(state))
        return
    for line in in_words(state):
        click.echo(line)


def in_words(state: RunState) -> list[str]:
    """How a run stands, and what may be done next."""
    lines = [f"run {state.run}: {state.state}, epoch {state.epoch}, iteration {state.iteration}"]
    lines.append(f"  folder   {state.url}")
    if state.changed is not None:
        lines.append(f"  changed  {time_in_words(state.changed)}")
    if state.owner:
        lines.append(f"  {'owner' if state.lives else 'ran by'}".ljust(11) + state.owner)
    if state.reason:
        lines.append(f"  reason   {state.reason}")
    lines.append(f"  next     {next_step(state)}")
    return lines


def next_step(state: RunState) -> str:
    """What a user may do about a run that stands so."""
    if state.lives:
        return f"rankfire logs {state.run} --follow" + (
            "" if state.state == "stopping" else f"; rankfire stop {state.run}"
        )
    if state.state in ("completed", "terminated"):
        return f"rankfire checkpoints {state.run}; rankfire export {state.run} model.pt"
    return f"rankfire resume {state.run}"
