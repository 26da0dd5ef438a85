"""What a run needs to know before it starts, checked and frozen: the common ground of Python callers and job files."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from orchestrator.errors import SpecError, explain
from orchestrator.spec import ClusterSpec, JobSpec, RecoverySpec, TrainSpec, WorkersSpec
from orchestrator.spec_problems import make_spec
from orchestrator.spec_values import Section
from orchestrator.specfile import dump_spec
from workers.locations import storage_at
from workers.logs import Form, LogPlace
from workers.storage import Storage

__all__ = ["Settings", "absolute_storage", "pickled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run's settings.

    Args:
        run: run id.
        program: `"module:function"`, or the cloudpickled build function.
        program_name: what to call it in errors and in the journal.
        config: the program's own settings.
        workers, cluster: what is needed, and where.
        recovery: what happens when a rank is lost.
        seed: of the job.
        storage: folder or URL under which the run has its folder; a folder is absolute.
        roots: folders that go to the front of the ranks' `sys.path`.
        train: how long to train, if a job file says so.
        text: the job file, for the run's folder; None for a Python caller.
        form: of the lines in the run's logs.
    """

    run: str
    program: str | bytes
    program_name: str
    config: Mapping[str, Any]
    workers: WorkersSpec
    cluster: ClusterSpec
    recovery: RecoverySpec
    seed: int
    storage: str
    roots: tuple[str, ...]
    train: TrainSpec | None = None
    text: str | None = None
    form: Form = "plain"

    @property
    def root(self) -> Storage:
        """Where all runs are."""
        return storage_at(self.storage)

    @property
    def home(self) -> Storage:
        """The run's folder."""
        return self.root.child(self.run)

    @property
    def logs(self) -> LogPlace:
        """Where what its processes print is logged."""
        return LogPlace(home=self.home.url, form=self.form)

    @property
    def digest(self) -> str:
        """sha256 of the job file; empty for a Python caller."""
        return "" if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def world_size(self) -> int:
        """Ranks that train: `workers: 0` is a world of one."""
        return max(self.workers.count, 1)

    @property
    def ranks_in_words(self) -> str:
        """Who trains."""
        count, spares = self.workers.count, self.workers.spares
        if count == 0:
            return "1 rank, in this process"
        return f"{count} rank{'s' * (count > 1)}" + (f" and {spares} spare{'s' * (spares > 1)}" if spares else "")

    @classmethod
    def from_spec(cls, spec: JobSpec, roots: Sequence[str]) -> Settings:
        """The settings of a job file."""
        return cls(
            run=spec.run,
            program=spec.program,
            program_name=spec.program,
            config=spec.config,
            workers=spec.workers,
            cluster=spec.cluster,
            recovery=spec.recovery,
            seed=spec.seed,
            storage=absolute_storage(spec.storage),
            roots=_roots(roots),
            train=spec.train,
            text=dump_spec(spec),
            form=spec.logs,
        )

    @classmethod
    def of(cls, build: Callable[..., Any] | str, **given: Any) -> Settings:
        """The settings of a Python caller; `given` are the arguments of `Orchestrator`.

        Raises:
            SpecError: one of them can't be used.
        """
        workers, spares, config = given["workers"], given["spares"], dict(given["config"] or {})
        workers = _plain(workers)
        if isinstance(workers, int) and not isinstance(workers, bool):
            workers = {"count": workers}
        if isinstance(workers, Mapping) and spares:
            workers = {**workers, "spares": spares}
        program = build if isinstance(build, str) else "given:build"
        spec = make_spec(
            {
                "run": given["run"],
                "program": program,
                "train": {"max_epochs": 1},
                "workers": workers,
                "seed": given["seed"],
                "storage": os.fspath(given["storage"]),
                **{key: _plain(given[key]) for key in ("cluster", "recovery") if given[key] is not None},
            }
        )
        pickled(config, "Orchestrator(config)")
        return cls(
            run=spec.run,
            program=build if isinstance(build, str) else pickled(_callable(build), "Orchestrator(build)"),
            program_name=build if isinstance(build, str) else getattr(build, "__qualname__", repr(build)),
            config=config,
            workers=spec.workers,
            cluster=spec.cluster,
            recovery=spec.recovery,
            seed=spec.seed,
            storage=absolute_storage(spec.storage),
            roots=_roots(()),
        )


def pickled(value: object, where: str) -> bytes:
    """Pickle what is to travel to the ranks.

    Raises:
        SpecError: it can't be; names it, and the reason that pickle gives.
    """
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # pickling runs code of the user's objects, which may raise anything
        raise SpecError(
            f"{where}: expected something that can be pickled and sent to the ranks, received "
            f"{_name(value)}: {type(error).__name__}: {error}; make what it refers to inside the function, or pass "
            "plain values"
        ) from error


def _callable(build: object) -> Callable[..., Any]:
    if not callable(build):
        raise SpecError(
            f"Orchestrator(build): expected a function build(worker) or 'module:function', received {build!r}"
        )
    return build


def _plain(given: object) -> object:
    """A section of a spec as the mapping that it was made of."""
    return given.model_dump() if isinstance(given, Section) else given


def _name(value: object) -> str:
    subject = value[0] if isinstance(value, tuple) and value else value
    return str(getattr(subject, "__qualname__", None) or type(subject).__name__)


def absolute_storage(storage: str) -> str:
    """A storage as a path or URL that means the same from every folder.

    Raises:
        SpecError: no such file system is known, or what it needs is not installed.
    """
    try:
        return storage_at(storage).url
    except ValueError as error:
        raise SpecError(
            explain(
                "storage",
                expected="a folder that all ranks reach, or a URL that fsspec knows",
                received=f"{error}",
                mend="write for example runs or s3://bucket/runs, and install what the URL needs (rankfire[s3])",
            )
        ) from error


def _roots(given: Sequence[str]) -> tuple[str, ...]:
    """What can be imported here shall be there: the given folders, then those of `sys.path` without installations."""
    own = [os.path.abspath(entry or os.getcwd()) for entry in sys.path]
    folders = [entry for entry in own if os.path.isdir(entry) and not _installed(entry)]
    return tuple(dict.fromkeys([*map(os.path.abspath, given), *folders]))


def _installed(folder: str) -> bool:
    """Whether a folder belongs to Python or to what was installed: every rank has its own. `/usr/src/app` does not."""
    libraries = tuple(os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix))
    return folder.startswith(libraries) or not {"site-packages", "dist-packages"}.isdisjoint(Path(folder).parts)
