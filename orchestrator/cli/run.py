"""`rankfire run`: run a job file to its end and print what came out.

Reads the file, makes the orchestrator of it, runs it. Errors become exit codes in `main.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import insecure_option
from orchestrator.cli.job import roots_of, set_option
from orchestrator.cli.storage import json_option, print_json
from orchestrator.notice import Steady

if TYPE_CHECKING:
    from orchestrator.orchestrator import RunResult
    from orchestrator.spec import JobSpec

__all__ = ["run", "run_to_its_end"]

MAX_SHOWN = 60  # characters of a metric
ENOUGH = 1000  # columns: a checkpoint's path can be copied in one piece

EPILOG = """\b
Examples:
  rankfire run job.yaml
  rankfire run job.yaml --set train.max_epochs=3 --workers 2
  rankfire run job.yaml --resume never"""


@click.command(epilog=EPILOG)
@click.argument("job", type=click.Path())
@set_option
@click.option("--workers", type=click.IntRange(min=0), help="Number of ranks, instead of the job file's.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="auto: go on from the run's newest checkpoint, if it has one; never: refuse if the run exists.",
)
@click.option("--fresh", is_flag=True, help="Move what the run has aside, as RUN.old-1, and start anew.")
@click.option("--strict", is_flag=True, help="Refuse a damaged checkpoint instead of taking the one before it.")
@insecure_option
@json_option
def run(
    job: str,
    sets: tuple[str, ...],
    workers: int | None,
    resume: str,
    fresh: bool,
    strict: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """Run JOB, a YAML job file, to its end.

    Without cluster.address and without RAY_ADDRESS, Ray is started on this machine; with 0 workers the job runs in
    this process.
    """
    from orchestrator.specfile import load_spec

    roots = roots_of(job)
    sets = (*sets, "cluster.insecure=true") if insecure else sets
    spec = load_spec(job, sets=sets, workers=workers, roots=roots)
    run_to_its_end(spec, roots, resume=resume, fresh=fresh, strict=strict, as_json=as_json)


def run_to_its_end(
    spec: JobSpec,
    roots: Sequence[str],
    *,
    resume: str = "auto",
    fresh: bool = False,
    strict: bool = False,
    as_json: bool = False,
) -> None:
    """Run what a job asks for, print what came out, and raise what its training ended with.

    Args:
        spec: the job.
        roots: folders in which its functions are searched.
        resume, fresh, strict: see `Orchestrator.run`.
        as_json: whether to print JSON.
    """
    from orchestrator.orchestrator import Orchestrator  # only now: a bad job file need not wait for torch

    # stdout is for the document alone: what the job prints goes to stderr then
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        orchestrator = Orchestrator.from_spec(spec, roots=list(roots))
        result = orchestrator.run(resume=resume, fresh=fresh, strict=strict)  # type: ignore[arg-type]  # click.Choice knows no Literal
    if as_json:
        print_json(document(spec.run, result))
    else:
        show_result(spec.run, result)
    if result.failure is not None:
        raise result.failure


def document(name: str, result: RunResult) -> dict[str, object]:
    """What came out, as JSON."""
    return {
        "run": name,
        "status": result.status,
        "reason": result.reason,
        "epoch": result.state.epoch,
        "iteration": result.state.iteration,
        "metrics": dict(result.metrics),
        "checkpoint": result.checkpoint,
    }


def show_result(name: str, result: RunResult) -> None:
    """Print the summary table of a finished run, if anybody reads it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"run {name}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("status", result.status)
    if result.reason:
        table.add_row("reason", result.reason)
    table.add_row("epoch", str(result.state.epoch))
    table.add_row("iteration", str(result.state.iteration))
    for metric, value in sorted(result.metrics.items()):
        table.add_row(metric, _word(value))
    table.add_row("checkpoint", result.checkpoint or "none")
    console = Console(file=Steady(sys.stdout), markup=False, highlight=False)  # type: ignore[arg-type]  # a text stream
    needed = console.measure(table, options=console.options.update_width(ENOUGH)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _word(value: object) -> str:
    """A metric in one line: a matrix or a mapping is cut short."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
