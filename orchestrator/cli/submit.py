"""`rankfire submit`: hand a job to a Ray cluster, which runs it as one of its jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, code_of, entered, insecure_option, job_as_json, job_in_words
from orchestrator.cli.job import roots_of, set_option
from orchestrator.cli.storage import json_option, print_json

if TYPE_CHECKING:
    from orchestrator.launch.jobs import Job, Jobs
    from orchestrator.launch.submission import Submitted
    from orchestrator.spec import JobSpec

__all__ = ["hand_over", "submit", "tell_and_wait"]

EPILOG = """\b
Examples:
  rankfire submit job.yaml --address http://127.0.0.1:8265
  rankfire submit job.yaml --address https://ray.example --wait
  rankfire submit job.yaml --set train.max_epochs=20 --follow

\b
The current folder goes along, without what .gitignore, .rayignore and .rankfireignore name. A relative storage means
the folder here, which the cluster must reach as well. The same job submitted twice is one run."""


@click.command(epilog=EPILOG)
@click.argument("job", type=click.Path())
@set_option
@address_option("URL of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.")
@insecure_option
@click.option("--wait", is_flag=True, help="Wait for its end; the exit code is that of the run.")
@click.option("--follow", is_flag=True, help="The same, and show what its driver prints.")
@click.option("--python", default="python", show_default=True, help="Interpreter on the cluster that has Rankfire.")
@json_option
def submit(
    job: str,
    sets: tuple[str, ...],
    address: str | None,
    insecure: bool,
    wait: bool,
    follow: bool,
    python: str,
    as_json: bool,
) -> None:
    """Submit JOB, a YAML job file, to a Ray cluster."""
    from orchestrator.specfile import load_spec

    spec = load_spec(job, sets=sets, roots=roots_of(job))
    jobs = entered(address, insecure)
    done = hand_over(jobs, spec, Path(job), insecure=insecure, python=python)
    tell_and_wait(jobs, done, spec.run, wait=wait, follow=follow, as_json=as_json)


def hand_over(jobs: Jobs, spec: JobSpec, job: Path, *, insecure: bool, python: str) -> Submitted:
    """Pack and submit."""
    from orchestrator.launch.submission import packed
    from orchestrator.launch.submission import submit as submit_packed
    from orchestrator.notice import notice

    package, digest = packed(spec, job, Path.cwd(), insecure=insecure)
    for link in package.outside:
        notice(f"{link} is left out: it leads out of the folder")
    return submit_packed(jobs, spec, package, digest, python=python)


def tell_and_wait(jobs: Jobs, done: Submitted, run: str, *, wait: bool, follow: bool, as_json: bool) -> None:
    """Say what came of a submission; then wait for the job's end, and exit as it did."""
    url = jobs.dashboard.url
    if not as_json:
        if done.new:
            click.echo(f"run {run} is submitted to {url} as {done.job.id} ({done.uploaded >> 10} KiB uploaded)")
        elif done.job.ended:
            click.echo(f"run {run} has finished there already: {job_in_words(done.job)}; ask for more in the job file")
        else:
            click.echo(f"run {run} is there already: {job_in_words(done.job)}")
    if (wait or follow) and not done.job.ended:
        ended = wait_for(jobs, done.job.id, follow=follow)
        if as_json:
            print_json(job_as_json(ended))
        else:
            click.echo(job_in_words(ended))
        sys.stdout.flush()
        if code := code_of(ended):
            sys.exit(code)
    elif as_json:
        print_json({**job_as_json(done.job), "new": done.new, "uploaded": done.uploaded, "address": url})
    elif done.new:
        click.echo(f"next: rankfire logs {run} --follow --address {url}; rankfire stop {run} --address {url}")


def wait_for(jobs: Jobs, job_id: str, *, follow: bool) -> Job:
    """Wait for a job's end; Ctrl-C ends the waiting, not the job."""
    from orchestrator.launch.following import follow as follow_output
    from orchestrator.launch.following import until_ended
    from orchestrator.notice import notice

    try:
        if follow:
            follow_output(jobs, job_id, lambda text: click.echo(text, nl=False))
        ended = until_ended(jobs, job_id)
    except KeyboardInterrupt:
        notice(f"no longer waiting; {job_id} goes on (rankfire stop ends it)")
        raise
    assert ended is not None, "without a time limit it is waited for its end"
    return ended
