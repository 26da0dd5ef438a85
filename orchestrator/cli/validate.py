"""`rankfire validate`: check a job file without starting anything, or print the schema of job files.

What is wrong with a file is said by `specfile.py`; here it is asked, and a good file is told in one line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from orchestrator.cli.job import roots_of, set_option
from orchestrator.cli.storage import json_option, print_json

if TYPE_CHECKING:
    from orchestrator.spec import JobSpec

__all__ = ["validate"]


EPILOG = """\b
Examples:
  rankfire validate job.yaml --set workers=8
  rankfire validate --schema > job.schema.json"""


@click.command(epilog=EPILOG)
@click.argument("job", type=click.Path(), required=False)
@set_option
@click.option("--schema", is_flag=True, help="Print the JSON schema of job files, for editors.")
@json_option
def validate(job: str | None, sets: tuple[str, ...], schema: bool, as_json: bool) -> None:
    """Check JOB, a YAML job file, without starting anything.

    Says in one line what the job asks for. All problems are reported together, each with its line; the exit
    code is then 2.
    """
    if schema == (job is not None):
        raise click.UsageError("expected either a job file or --schema; write rankfire validate job.yaml")
    from orchestrator.spec import JobSpec
    from orchestrator.specfile import load_spec

    if job is None:
        click.echo(json.dumps(JobSpec.model_json_schema(), indent=2))
        return
    spec = load_spec(job, sets=sets, roots=roots_of(job))
    if as_json:
        print_json(spec.model_dump())
    else:
        click.echo(f"{job}: ok: {summarize(spec)}")
        if unknown := left_to_the_program(spec):
            click.echo(f"{job}: not checked, as only the built program knows: {', '.join(unknown)}")


def summarize(spec: JobSpec) -> str:
    """Say in one line what a job asks for."""
    train, workers = spec.train, spec.workers
    words = [
        f"run {spec.run}",
        f"{workers.count} workers" if workers.count != 1 else "1 worker",
        f"{train.max_epochs} epochs" if train.max_epochs is not None else f"{train.max_iters} iterations",
    ]
    if workers.gpus:
        words.append(f"{workers.gpus:g} gpus each")
    if spec.evaluate is not None:
        words.append(f"evaluate every {spec.evaluate.every}")
    if spec.checkpoint is not None:
        ((unit, number),) = spec.checkpoint.every.model_dump(exclude_none=True).items()
        words.append(f"checkpoint every {number:g} {unit if number != 1 else unit[:-1]}")
    return ", ".join(words)


def left_to_the_program(spec: JobSpec) -> list[str]:
    """What a job names of its program, with the keys; `rankfire run` checks it before anything is trained."""
    named = []
    if spec.evaluate is not None:
        named.append(f"evaluate.engine {spec.evaluate.engine}")
    if spec.checkpoint is not None and spec.checkpoint.best is not None:
        named.append(f"checkpoint.best.metric {spec.checkpoint.best.metric}")
    if spec.start_from is not None:
        named.append(f"start_from.state {', '.join(spec.start_from.state)}")
    return named
