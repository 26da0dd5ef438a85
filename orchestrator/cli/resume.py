"""`rankfire resume`: go on with a run by the job file that lies in its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, entered, insecure_option
from orchestrator.cli.job import set_option
from orchestrator.cli.run import run_to_its_end
from orchestrator.cli.storage import folder_named, json_option, storage_option
from orchestrator.cli.submit import hand_over, tell_and_wait

if TYPE_CHECKING:
    from workers.storage import Storage

__all__ = ["job_of", "resume", "roots_of_run"]

EPILOG = """\b
Examples:
  rankfire resume digits
  rankfire resume digits --set train.max_epochs=20
  rankfire resume digits --storage s3://bucket/runs
  rankfire resume digits --address http://127.0.0.1:8265"""


@click.command(epilog=EPILOG)
@click.argument("run")
@set_option
@click.option("--strict", is_flag=True, help="Refuse a damaged checkpoint instead of taking the one before it.")
@storage_option
@address_option("Submit it to this cluster again, with the current folder, instead of running it here.")
@insecure_option
@click.option("--python", default="python", show_default=True, help="Interpreter on the cluster that has Rankfire.")
@json_option
def resume(
    run: str,
    sets: tuple[str, ...],
    strict: bool,
    storage: str,
    address: str | None,
    insecure: bool,
    python: str,
    as_json: bool,
) -> None:
    """Go on with RUN from its newest checkpoint, by the job file in its folder.

    Its functions are searched in the current folder, and where they were when it was started.
    """
    from orchestrator.specfile import parse_spec

    home = folder_named(run, storage)
    roots = roots_of_run(home)
    above = json.dumps(home.url.rstrip("/").rpartition("/")[0])  # the folder may have been moved since
    where = home.locate("spec.yaml")
    spec = parse_spec(job_of(home), where=where, sets=(*sets, f"storage={above}"), roots=roots)
    if address is not None:
        jobs = entered(address, insecure)
        done = hand_over(jobs, spec, Path.cwd() / "job.yaml", insecure=insecure, python=python)
        tell_and_wait(jobs, done, spec.run, wait=False, follow=False, as_json=as_json)
        return
    run_to_its_end(spec, roots, strict=strict, as_json=as_json)


def job_of(home: Storage) -> str:
    """The job file of a run.

    Raises:
        SpecError: it has none.
        SystemFailure: its folder can't be read.
    """
    from orchestrator.errors import SpecError, SystemFailure, explain

    try:
        return home.read("spec.yaml").decode()
    except UnicodeDecodeError as error:
        where, expected, mend = home.locate("spec.yaml"), "text in UTF-8", "put the job file there again"
        raise SpecError(explain(where, expected=expected, received=str(error), mend=mend)) from None
    except FileNotFoundError:
        raise SpecError(
            explain(
                f"run {home.url}",
                expected="a job file in its folder (spec.yaml)",
                received="none: it was started from Python",
                mend="run its script again, which goes on from the newest checkpoint",
            )
        ) from None
    except OSError as error:
        raise SystemFailure(f"run {home.url}: its job file can't be read: {error.strerror or error}") from error


def roots_of_run(home: Storage) -> list[str]:
    """Where a run's functions are searched: here, and where they were when it was started, as far as that is here."""
    from orchestrator.checkpoints.references import readable
    from orchestrator.runs import events_of

    with readable(home.url):
        started = [event.get("roots") for event in events_of(home) if event["event"] == "RUN_STARTED"]
    then = [root for roots in started if isinstance(roots, list) for root in roots if isinstance(root, str)]
    return list(dict.fromkeys([os.getcwd(), *(root for root in reversed(then) if Path(root).is_dir())]))
