"""`rankfire render`: what a job needs to run on Kubernetes, Slurm, rented or own machines, or docker compose."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.job import roots_of, set_option
from orchestrator.cli.storage import json_option, print_json

__all__ = ["render"]

TARGETS = ["kubernetes", "kueue", "raycluster", "slurm", "aws", "gcp", "on-premise", "compose"]
EPILOG = """\b
Examples:
  rankfire render slurm job.yaml > run.sbatch && sbatch run.sbatch
  rankfire render kubernetes job.yaml --image registry.example/me/digits@sha256:… | kubectl apply -f -
  rankfire render kueue job.yaml --image … --queue team-a --out deploy/
  rankfire render compose job.yaml --image … --out ."""
NEEDS_IMAGE = {"kubernetes", "kueue", "raycluster", "compose"}


@click.command(epilog=EPILOG)
@click.argument("target", type=click.Choice(TARGETS))
@click.argument("job", type=click.Path())
@set_option
@click.option("--image", default="", help="Image with Rankfire and the program, by digest: NAME@sha256:…")
@click.option("--name", default="", help="Name of what is made; default: rankfire-RUN.")
@click.option("--memory", default="4Gi", show_default=True, help="Memory of each rank's pod.")
@click.option("--grace", type=click.IntRange(30, 3600), default=300, show_default=True, help="Seconds to save in.")
@click.option("--queue", default="rankfire", show_default=True, help="Queue of Kueue.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of a Slurm job.")
@click.option("--out", type=click.Path(file_okay=False), help="Write files into this folder instead of printing.")
@json_option
def render(  # noqa: PLR0913 - one for each option
    target: str,
    job: str,
    sets: tuple[str, ...],
    image: str,
    name: str,
    memory: str,
    grace: int,
    queue: str,
    nodes: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Render what JOB needs to run on TARGET. What is not safe is refused, not rendered."""
    from orchestrator.cli.version import version_of
    from orchestrator.errors import SpecError, explain
    from orchestrator.launch.kubernetes import Options
    from orchestrator.launch.targets import render as rendered
    from orchestrator.specfile import load_spec

    spec = load_spec(job, sets=sets, roots=roots_of(job))
    if target in NEEDS_IMAGE and not image:
        mend = "build one with deploy/image, push it, and give what the registry answers"
        expected = "an image by digest (NAME@sha256:…)"
        raise SpecError(explain("--image", expected=expected, received="none", mend=mend))
    options = Options(
        image=image, ray=version_of("ray"), name=name, memory=memory, grace=grace, queue=queue
    )  # fmt: skip
    files = rendered(target, spec, options, job=job, sets=sets, nodes=nodes)
    if out is not None:
        written = write(Path(out), files)
        print_json(written) if as_json else click.echo("\n".join(written))
    elif as_json:
        print_json(files)
    else:
        click.echo("---\n".join(files.values()), nl=False)


def write(folder: Path, files: dict[str, str]) -> list[str]:
    """Write files into a folder; gives their paths.

    Raises:
        SpecError: it can't be written.
    """
    from orchestrator.errors import SpecError, explain

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        expected, received = "a folder that can be written", str(error.strerror or error)
        raise SpecError(
            explain(f"--out {folder}", expected=expected, received=received, mend="name another")
        ) from error
    return [str(folder / name) for name in files]
