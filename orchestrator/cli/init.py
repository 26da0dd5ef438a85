"""`rankfire init`: write a small project that runs as it is, to be changed into one's own."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import click

from orchestrator.cli.storage import json_option, print_json

__all__ = ["init"]

EPILOG = """\b
Examples:
  rankfire init my-project
  cd my-project && rankfire run job.yaml"""
FILES = {
    "job.yaml": "job.yaml.txt",
    "program.py": "program.py.txt",
    "handlers.py": "handlers.py.txt",
    ".gitignore": "gitignore.txt",
}  # in the project → in the package


@click.command(epilog=EPILOG)
@click.argument("folder", default=".")
@json_option
def init(folder: str, as_json: bool) -> None:
    """Write a starter project into FOLDER: a job file, a program, handlers. Nothing is overwritten."""
    from orchestrator.errors import SpecError, explain
    from orchestrator.yaml_text import dump

    target = Path(folder)
    taken = [name for name in FILES if (target / name).exists() or (target / name).is_symlink()]
    if taken:
        expected, received = "a folder without " + ", ".join(FILES), f"{', '.join(taken)} in it"
        raise SpecError(explain(folder, expected=expected, received=received, mend="name a new folder"))
    name = run_id_of(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file, source in FILES.items():
            text = (files("orchestrator.cli") / "starter" / source).read_text(encoding="utf-8")
            with (target / file).open("x", encoding="utf-8") as new:
                new.write(text.replace("run: NAME", dump({"run": name}).strip()).replace("NAME", name))
    except OSError as error:
        expected, received = "a folder that can be written", str(error.strerror or error)
        raise SpecError(explain(folder, expected=expected, received=received, mend="name another one")) from error
    if as_json:
        print_json({"folder": str(target), "run": name, "files": list(FILES)})
        return
    click.echo(f"{target}: a project that runs: {', '.join(FILES)}")
    rankfire = "rankfire" if shutil.which("rankfire") else shlex.quote(str(Path(sys.executable).with_name("rankfire")))
    click.echo(f"next: {'' if folder == '.' else f'cd {shlex.quote(str(target))} && '}{rankfire} run job.yaml")


def run_id_of(folder: Path) -> str:
    """A run id of the folder's name."""
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:40].strip("-")
    return name or "run"
