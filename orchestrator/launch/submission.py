"""A job file on its way to a cluster: what is packed, under which id, and that twice submitted is one run.

The id comes from the run, so a second submission, by a client that got no answer or by a second person, finds the first
one. A run that has ended is submitted again under the next number, and goes on from its newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError, explain
from orchestrator.launch.jobs import Job, Jobs
from orchestrator.launch.package import Package, pack
from orchestrator.notice import notice
from orchestrator.settings import absolute_storage
from orchestrator.spec import JobSpec
from orchestrator.specfile import dump_spec

__all__ = ["FOLDER", "Submitted", "jobs_of", "newest_job", "packed", "submit"]

FOLDER = ".rankfire"  # in the package: what the job's driver reads
MOST = 1000  # submissions of one run that are looked through


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What came of a submission.

    Args:
        job: on the cluster.
        new: whether it was submitted now; else it was there.
        uploaded: bytes that went there.
    """

    job: Job
    new: bool
    uploaded: int = 0


def packed(spec: JobSpec, job: Path, here: Path, *, insecure: bool) -> tuple[Package, str]:
    """Pack what a job needs; its storage becomes a path or URL that means the same from everywhere.

    Args:
        spec: the job.
        job: its file.
        here: the current folder.
        insecure: whether its driver, too, shall use a cluster without authentication.

    Returns:
        The archive, and the sha256 of the job as it was packed.
    """
    beside = job.resolve().parent
    root = here if beside.is_relative_to(here.resolve()) else beside
    roots = list(dict.fromkeys([".", os.path.relpath(beside, root.resolve())]))
    cluster = spec.cluster.model_copy(update={"address": None, "insecure": insecure or spec.cluster.insecure})
    spec = spec.model_copy(update={"storage": absolute_storage(spec.storage), "cluster": cluster})
    text = dump_spec(spec).encode()
    package = pack(root, {f"{FOLDER}/job.yaml": text, f"{FOLDER}/roots.json": json.dumps(roots).encode()})
    for link, target in package.unpacked:
        notice(f"{link} is left out: it is a link to {target}")
    return package, hashlib.sha256(text).hexdigest()


def submit(jobs: Jobs, spec: JobSpec, package: Package, digest: str, *, python: str = "python") -> Submitted:
    """Submit a run, or find it submitted.

    Args:
        jobs: of the cluster, entered.
        spec: the job.
        package: of the working directory.
        digest: of the job.
        python: the interpreter on the cluster's nodes: a path, or a name that is sought there.

    Raises:
        SpecError: the run's id is taken by another job that is on.
    """
    known = jobs_of(jobs, spec.run)
    last = known[-1] if known else None
    if last is not None and (not last.ended or (last.status == "SUCCEEDED" and last.metadata.get("job") == digest)):
        return Submitted(job=_same(last, spec.run, digest), new=False)
    uploaded = 0
    if not jobs.has(package):
        jobs.upload(package)
        uploaded = len(package.content)
    job_id = id_of(spec.run, len(known) + 1)
    entrypoint = f"exec {shlex.quote(python)} -m orchestrator packed"
    new = jobs.submit(job_id, entrypoint, package, {"run": spec.run, "job": digest})
    job = jobs.get(job_id)
    assert job is not None, "a job that was accepted is there"
    return Submitted(job=job if new else _same(job, spec.run, digest), new=new, uploaded=uploaded)


def jobs_of(jobs: Jobs, run: str) -> list[Job]:
    """All submissions of a run, oldest first."""
    found: list[Job] = []
    while len(found) < MOST and (job := jobs.get(id_of(run, len(found) + 1))) is not None:
        found.append(job)
    return found


def newest_job(jobs: Jobs, run: str) -> Job:
    """The newest submission of a run.

    Raises:
        SpecError: there is none.
    """
    if known := jobs_of(jobs, run):
        return known[-1]
    where, received = f"run {run!r}", "none of that name"
    expected, mend = f"one that was submitted to {jobs.dashboard.url}", "submit it: rankfire submit job.yaml"
    raise SpecError(explain(where, expected=expected, received=received, mend=mend))


def id_of(run: str, number: int) -> str:
    """The submission id of a run; `~` is in no run id, so no two runs ever share one.

    Example:
        >>> [id_of("digits", number) for number in (1, 2)]
        ['rankfire-digits', 'rankfire-digits~2']
    """
    return f"rankfire-{run}" if number == 1 else f"rankfire-{run}~{number}"


def _same(job: Job, run: str, digest: str) -> Job:
    if job.metadata.get("job") == digest:
        return job
    raise SpecError(
        explain(
            f"run {run!r}",
            expected="a run id that is free on this cluster",
            received=f"one that another job has: {job.id} is {job.status}, submitted with another job file",
            mend="choose another run id (--set run=…), or stop that one first (rankfire stop RUN --address …)",
        )
    )
