"""`rankfire stop`: ask a run to save where it stands and to end, by a request in its folder."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, entered, insecure_option, job_as_json, job_in_words
from orchestrator.cli.storage import folder_named, json_option, print_json, shown, storage_option

if TYPE_CHECKING:
    from orchestrator.launch.jobs import Job, Jobs
    from orchestrator.runs import RunState
    from workers.storage import Storage

__all__ = ["stop"]

EPILOG = """\b
Examples:
  rankfire stop digits
  rankfire stop digits --no-wait
  rankfire stop digits --address http://127.0.0.1:8265
  rankfire stop digits && rankfire resume digits

\b
It stops at the next iteration that all ranks agree on, and saves there if the job saves at all. A run that does not
answer is ended by its process: Ctrl-C twice, or SIGTERM twice."""
PAUSE = 0.2  # seconds between two looks


@click.command(epilog=EPILOG)
@click.argument("run")
@click.option("--no-wait", is_flag=True, help="Return when the request is written, not when the run has ended.")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True, help="Seconds to wait.")
@storage_option
@address_option("Ask this cluster to stop its job, instead of writing into the run's folder.")
@insecure_option
@json_option
def stop(
    run: str, no_wait: bool, timeout: float, storage: str, address: str | None, insecure: bool, as_json: bool
) -> None:
    """Stop RUN well: it saves, then ends; `rankfire resume` goes on from there."""
    if address is not None:
        job, said = stopped_there(entered(address, insecure), run, None if no_wait else timeout)
        if as_json:
            print_json({**job_as_json(job), "text": said})
        else:
            click.echo(said)
        return
    home = folder_named(run, storage)
    state, text = asked(home)
    if state.lives and not no_wait:
        if not as_json:
            click.echo(text)
        state = until_ended(home, state, timeout)
        text = f"run {state.run} has ended: {state.state}, iteration {state.iteration}"
    if as_json:
        print_json({**shown(state), "text": text})
    else:
        click.echo(text)


def stopped_there(jobs: Jobs, run: str, timeout: float | None) -> tuple[Job, str]:
    """Have a cluster stop its job; gives how that stands, and what to tell the user.

    Args:
        jobs: of the cluster, entered.
        run: which one.
        timeout: seconds to wait for its end; None: no waiting.

    Raises:
        SystemFailure: it has not ended within the time.
    """
    from orchestrator.errors import SystemFailure, explain
    from orchestrator.launch.following import until_ended
    from orchestrator.launch.submission import newest_job

    job = newest_job(jobs, run)
    if job.ended:
        return job, f"run {run} is not running ({job_in_words(job)}), so there is nothing to stop"
    jobs.stop(job.id)
    if timeout is None:
        return job, f"run {run} is asked to stop: it ends at its next iteration"
    ended = until_ended(jobs, job.id, timeout=timeout)
    if ended is None:
        expected, mend = f"{job.id} to end within {timeout:g} s", "look at its logs, or wait with a larger --timeout"
        raise SystemFailure(explain("stop", expected=expected, received="it goes on", mend=mend))
    return ended, f"run {run} has ended: {job_in_words(ended)}"


def asked(home: Storage) -> tuple[RunState, str]:
    """Ask the run to stop if it is on; gives how it stands, and what to tell the user."""
    from orchestrator.checkpoints.references import readable
    from orchestrator.runs import look_at
    from orchestrator.stopping import request_stop

    state = look_at(home)
    if not state.lives:
        way = "" if state.state in ("completed", "terminated") else f"; rankfire resume {state.run} goes on with it"
        return state, f"run {state.run} is not running ({state.state}), so there is nothing to stop{way}"
    with readable(home.url):
        before = request_stop(home, state.token)
    if before is not None:
        return state, f"run {state.run} was asked to stop already, by {before}; it ends at its next iteration"
    return state, f"run {state.run} is asked to stop: it ends at its next iteration"


def until_ended(home: Storage, state: RunState, timeout: float) -> RunState:
    """Wait until this owner has ended.

    Raises:
        SystemFailure: it has not within the time.
    """
    from orchestrator.errors import SystemFailure, explain
    from orchestrator.runs import look_at

    token, until = state.token, time.monotonic() + timeout
    while state.lives and state.token == token:
        if time.monotonic() > until:
            expected, received = f"run {state.run!r} to end within {timeout:g} s", f"it is {state.state} still"
            mend = f"look at rankfire logs {state.run}, wait with a larger --timeout, or end its process: {state.owner}"
            raise SystemFailure(explain("stop", expected=expected, received=received, mend=mend))
        time.sleep(PAUSE)
        state = look_at(home)
    return state
