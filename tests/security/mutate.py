"""Takes away each guard of the security promises in a copy of the code, and runs the test that must fail then.

`make mutate`, or `python -m tests.security.mutate [S1 …]` for some promises. The record, `RECORD.md`, says what was
seen; a guard that no test misses makes it exit with 1.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from tests.security.mutations import MUTATIONS, Mutation

TOP = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("RECORD.md")
COPIED = ("orchestrator", "workers", "tests", "deploy", "examples", ".github")
LIMIT = 300.0  # seconds for a test; a guard against hanging is missed by one that hangs
HEAVY = ("torch", "pydantic", "psutil", "fsspec", "click", "rich", "yaml", "torchmetrics", "jsonschema")
FAILED, PASSED, BROKEN = 1, 0, 99  # exit codes of pytest; others mean that it did not run the test
HEADER = """\
# Record of mutations

Written by `make mutate`: each guard was taken away in a copy of the code, and the test beside it was run. *seen* means
that it passed before and failed then.

| promise | without | the test | |
|---|---|---|---|
"""


def copy_of_the_code(folder: Path) -> None:
    """What a test needs to run, apart from the real one."""
    for name in COPIED:
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    shutil.copy(TOP / "pyproject.toml", folder)


def run(folder: Path, test: str) -> int:
    """Run a test in a copy; gives pytest's exit code, FAILED if it did not end.

    In a fork of this process, which has imported what is heavy and none of our code: so that is done once.
    """
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            os.setsid()
            code = in_the_child(folder, test)
        finally:  # whatever happens, nothing of the parent's is unwound here
            os._exit(code)
    process = os.pidfd_open(child)
    ended, _, _ = select.select([process], [], [], LIMIT)
    os.close(process)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if ended else FAILED


def in_the_child(folder: Path, test: str) -> int:
    """Run pytest on the copy's code, in silence."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry and Path(entry).resolve() != TOP)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("orchestrator", "workers", "tests")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = str(folder)
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *test.split()]))


def seen(folder: Path, mutation: Mutation) -> str:
    """Whether the test misses the guard: `seen`, or what was the matter."""
    path = folder / mutation.path
    whole = path.read_text()
    if whole.count(mutation.before) != 1:
        return f"NOT TRIED: the guard stands there {whole.count(mutation.before)} times"
    if (code := run(folder, mutation.test)) != PASSED:
        return f"NOT TRIED: the test fails with the guard, exit code {code}"
    path.write_text(whole.replace(mutation.before, mutation.after))
    try:
        code = run(folder, mutation.test)
    finally:
        path.write_text(whole)
    return "seen" if code == FAILED or code < 0 else f"NOT SEEN: exit code {code}"  # below 0: the attack ended it


def main(names: list[str]) -> int:
    """Try all mutations, or those of some promises; write the record."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.promise in names]
    for name in HEAVY:
        import_module(name)
    verdicts = recorded()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        copy_of_the_code(Path(folder))
        for mutation in chosen:
            verdicts[mutation.guard] = seen(Path(folder), mutation)
            print(f"{mutation.promise}: {mutation.guard}: {verdicts[mutation.guard]}", flush=True)
    rows = [
        f"| {one.promise} | {one.guard} | `{one.test}` | {verdicts.get(one.guard, 'NOT TRIED')} |" for one in MUTATIONS
    ]
    RECORD.write_text(HEADER + "\n".join(rows) + "\n")
    return int(any(verdicts[mutation.guard] != "seen" for mutation in chosen))


def recorded() -> dict[str, str]:
    """Guard → what the record says of it."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| S")]
    return {guard: verdict for _, guard, _, verdict in cells}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
