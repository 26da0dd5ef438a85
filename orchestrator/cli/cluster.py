"""What the commands that talk to a cluster share: --address, --insecure, the way in, and a job as JSON and in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import click

from orchestrator.cli.version import version_of

if TYPE_CHECKING:
    from orchestrator.launch.jobs import Job, Jobs

__all__ = ["address_option", "code_of", "entered", "insecure_option", "job_as_json", "job_in_words"]

Command = TypeVar("Command", bound=Callable[..., None])
HERE = "http://127.0.0.1:8265"


def address_option(text: str) -> Callable[[Command], Command]:
    """Give a command the option --address, with its own help."""
    return click.option("--address", metavar="URL", help=text)


def insecure_option(command: Command) -> Command:
    """Give a command the option --insecure."""
    text = "Use a cluster that asks for no token, though others than this machine can reach it."
    return click.option("--insecure", is_flag=True, help=text)(command)


def entered(address: str | None, insecure: bool) -> Jobs:
    """The jobs of a cluster that lets this user in.

    Args:
        address: as given; None: RAY_API_SERVER_ADDRESS, else the dashboard of this machine.
        insecure: whether it may be open to everybody.

    Raises:
        StartError: there is no cluster, or it is open, or it does not let this user in.
    """
    from orchestrator.launch.jobs import Jobs
    from orchestrator.notice import notice
    from workers.redaction import learn

    jobs = Jobs(address or os.environ.get("RAY_API_SERVER_ADDRESS") or HERE, dict(os.environ), insecure=insecure)
    theirs, ours = jobs.enter(), version_of("ray")
    if theirs != ours:
        notice(f"the cluster has Ray {theirs}, here is {ours}: what runs there, runs with its own")
    if jobs.dashboard.token is not None:
        learn(jobs.dashboard.token.value)
    if jobs.warning is not None:
        notice(jobs.warning)
    return jobs


def job_as_json(job: Job) -> dict[str, object]:
    """A job as JSON."""
    return asdict(job)


def job_in_words(job: Job) -> str:
    """A job in a line."""
    code = "" if job.code is None else f", exit code {job.code}"
    told = f": {job.message.splitlines()[0][:200]}" if job.message and job.status != "SUCCEEDED" else ""
    return f"job {job.id}: {job.status}{code}{told}"


def code_of(job: Job) -> int:
    """The exit code of a command that waited for a job: that of its driver, if it had one."""
    if job.status == "SUCCEEDED":
        return 0
    if job.code is not None and job.code > 0:
        return job.code
    return 130 if job.status == "STOPPED" else 3
