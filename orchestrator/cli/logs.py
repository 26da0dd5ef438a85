"""`rankfire logs`: what the ranks and the driver of a run printed, in the order of time; and what they print next."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, entered, insecure_option
from orchestrator.cli.storage import folder_named, json_option, storage_option

if TYPE_CHECKING:
    from orchestrator.launch.jobs import Jobs
    from workers.logs import Line
    from workers.storage import Storage

__all__ = ["logs"]

EPILOG = """\b
Examples:
  rankfire logs digits
  rankfire logs digits --rank 1 --follow
  rankfire logs digits --driver --json
  rankfire logs digits --follow --address http://127.0.0.1:8265"""
PAUSE = 0.2  # seconds between two looks while following
LIVES = 10  # looks between two at whether the run is still on


@click.command(epilog=EPILOG)
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), help="Only what this rank printed.")
@click.option("--driver", is_flag=True, help="Only what the driver printed.")
@click.option("--follow", "-f", is_flag=True, help="Wait for further lines, until the run ends.")
@storage_option
@address_option("Read what the job's driver prints from this cluster, instead of the run's folder.")
@insecure_option
@json_option
def logs(
    run: str,
    rank: int | None,
    driver: bool,
    follow: bool,
    storage: str,
    address: str | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Print the logs of RUN, each line with the rank that printed it.

    With --json each line is one JSON object.
    """
    if address is not None:
        from_cluster(run, entered(address, insecure), follow=follow, ranks=rank is not None or as_json)
        return
    from orchestrator.checkpoints.references import readable
    from orchestrator.tailing import LogReader

    if driver and rank is not None:
        raise click.UsageError("expected --rank or --driver, received both")
    home = folder_named(run, storage)
    with readable(home.url):
        reader = LogReader(home, rank=rank, driver=driver)
        alive, looks = True, 0
        while True:
            if follow and looks % LIVES == 0:
                alive = lives(home)
            for line in reader.lines():
                click.echo(in_json(line) if as_json else in_words(line))
            if not follow or not alive:
                return
            looks += 1
            time.sleep(PAUSE)


def from_cluster(run: str, jobs: Jobs, *, follow: bool, ranks: bool) -> None:
    """Print what the driver of a submitted run prints."""
    from orchestrator.launch.submission import newest_job

    if ranks:
        raise click.UsageError("a cluster knows the driver's output only; for ranks and JSON give --storage instead")
    job = newest_job(jobs, run)
    if follow and not job.ended:
        from orchestrator.launch.following import follow as follow_output

        follow_output(jobs, job.id, lambda text: click.echo(text, nl=False))
    else:
        click.echo(jobs.logs(job.id), nl=False)


def lives(home: Storage) -> bool:
    """Whether the run is on."""
    from orchestrator.runs import look_at

    return look_at(home).lives


def in_words(line: Line) -> str:
    """A line for people."""
    when = time.strftime("%H:%M:%S", time.localtime(line.time))
    return f"{when} {line.who:<7} | {line.text}"


def in_json(line: Line) -> str:
    """A line for machines."""
    return json.dumps({"time": line.time, "who": line.who, "stream": line.stream, "text": line.text})
