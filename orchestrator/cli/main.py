"""The `rankfire` command: its group, its help, and the exit codes.

A command imports what it runs inside its function, so that help, `validate` and `version` start without torch
and ray. Errors of our own tree become `error: TEXT` and their exit code here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, TextIO

import click

from orchestrator.cli.checkpoints import checkpoints
from orchestrator.cli.doctor import doctor
from orchestrator.cli.export import export
from orchestrator.cli.init import init
from orchestrator.cli.list import list_runs
from orchestrator.cli.logs import logs
from orchestrator.cli.packed import packed
from orchestrator.cli.render import render
from orchestrator.cli.resume import resume
from orchestrator.cli.run import run
from orchestrator.cli.show import show
from orchestrator.cli.status import status
from orchestrator.cli.stop import stop
from orchestrator.cli.submit import submit
from orchestrator.cli.validate import validate
from orchestrator.cli.version import version
from orchestrator.errors import RankfireError, RunInterrupted, SystemFailure, TrainingError, exit_code_of
from workers.redaction import redact

__all__ = ["main"]

EPILOG = """\b
Examples:
  rankfire init my-project
  rankfire validate job.yaml
  rankfire run job.yaml
  rankfire run job.yaml --set train.max_epochs=3 --workers 2
  rankfire submit job.yaml --address http://127.0.0.1:8265 --follow
  rankfire list
  rankfire logs digits --rank 1 --follow
  rankfire stop digits
  rankfire resume digits
  rankfire doctor job.yaml
  rankfire render slurm job.yaml > run.sbatch
  rankfire checkpoints digits --verify
  rankfire export digits@best digits.safetensors
  rankfire validate --schema > job.schema.json
  eval "$(_RANKFIRE_COMPLETE=bash_source rankfire)"     # completion; also zsh_source, fish_source

\b
Exit codes:
  0    done
  1    a user's code raised while training, or its numbers were NaN or infinite
  2    the job file or the command line is wrong
  3    system failure: lost workers, cluster, storage, a damaged checkpoint, ranks that differ
  130  interrupted"""


@click.group(name="rankfire", epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def rankfire() -> None:
    """Training as events, on every rank of a Ray cluster."""


COMMANDS = (
    *(checkpoints, doctor, export, init, list_runs, logs, packed, render, resume),
    *(run, show, status, stop, submit, validate, version),
)
for command in COMMANDS:
    rankfire.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        arguments: the command line after the program's name; None: that of the process.
    """
    code = exit_code(arguments)
    for stream in (sys.stdout, sys.stderr):
        let_go(stream)
    sys.exit(code)


def exit_code(arguments: Sequence[str] | None) -> int:
    """Run the command, tell its error if any, and give the exit code."""
    try:
        rankfire.main(args=arguments, prog_name="rankfire", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return tell(RunInterrupted())
    except RankfireError as error:
        return tell(error)
    except BrokenPipeError:  # the reader of our output has gone, as in `rankfire validate --schema | head`
        return SystemFailure.exit_code
    except Exception:  # a defect of ours: its traceback is wanted, and no code that blames the user
        click.echo(redact(traceback.format_exc()), err=True, nl=False)
        return SystemFailure.exit_code
    return 0


def tell(error: RankfireError) -> int:
    """Print an error, after the user's own traceback if their code raised it, and give its exit code."""
    with contextlib.suppress(OSError):  # nobody may be there to read it; the exit code tells too
        if isinstance(error, TrainingError) and error.traceback:
            click.echo(redact(error.traceback.rstrip("\n")), err=True)
        for line in redact(str(error)).splitlines() or [type(error).__name__]:
            click.echo(f"error: {line}", err=True)
    return exit_code_of(error)


def let_go(stream: TextIO | None) -> None:
    """Flush a stream; what its reader did not wait for goes nowhere, else Python complains of it at its end."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
