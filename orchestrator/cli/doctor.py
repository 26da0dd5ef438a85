"""`rankfire doctor`: look whether a job would find what it needs, here and on every node of a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.cluster import address_option, entered, insecure_option
from orchestrator.cli.job import roots_of, set_option
from orchestrator.cli.storage import json_option, print_json, time_in_words

if TYPE_CHECKING:
    from orchestrator.launch.checks import Finding
    from orchestrator.spec import JobSpec

__all__ = ["doctor"]

EPILOG = """\b
Examples:
  rankfire doctor
  rankfire doctor job.yaml
  rankfire doctor job.yaml --address http://127.0.0.1:8265
  RAY_ADDRESS=10.0.0.1:6379 rankfire doctor job.yaml      # the storage, from every node"""
MARKS = {"ok": "ok     ", "warning": "warning", "bad": "BAD    ", "skipped": "skipped"}


@click.command(epilog=EPILOG)
@click.argument("job", type=click.Path(), required=False)
@set_option
@address_option("URL of a cluster's dashboard to look at as well.")
@insecure_option
@json_option
def doctor(job: str | None, sets: tuple[str, ...], address: str | None, insecure: bool, as_json: bool) -> None:
    """Look at versions, cluster, token, storage, disks, ports, clocks; with JOB, at what it needs.

    The exit code is 3 if something is bad.
    """
    from orchestrator.errors import SystemFailure
    from orchestrator.specfile import load_spec

    spec = None if job is None else load_spec(job, sets=sets, roots=roots_of(job))
    findings = []
    for finding in look(spec, address, insecure):
        findings.append(finding)
        if not as_json:
            click.echo(f"{MARKS[finding.state]} {finding.what}: {finding.text}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if bad := [finding.what for finding in findings if finding.state == "bad"]:
        raise SystemFailure(f"doctor: not well: {', '.join(bad)}; each one's line says what to do")


def look(spec: JobSpec | None, address: str | None, insecure: bool) -> Iterator[Finding]:
    """All findings, one by one."""
    from orchestrator.launch import checks

    yield from checks.versions()
    yield checks.token_file(os.environ)
    if address is not None:
        yield the_cluster(address, insecure)
    yield checks.disk("Ray's disk", Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    yield checks.ports()
    if spec is not None:
        yield from of_the_job(spec, insecure)


def the_cluster(address: str, insecure: bool) -> Finding:
    """Whether a cluster lets this user in, and which Ray it has."""
    from orchestrator.cli.version import version_of
    from orchestrator.errors import RankfireError
    from orchestrator.launch.checks import Finding

    try:
        jobs = entered(address, insecure)
        theirs, ours = jobs.enter(), version_of("ray")
    except RankfireError as error:
        return Finding(what="cluster", state="bad", text=str(error))
    who = "asks for a token" if jobs.dashboard.token is not None else "lets everybody in"
    if theirs != ours:
        mend = "install the same on both: what is pickled there may not be read here"
        return Finding(what="cluster", state="warning", text=f"it has Ray {theirs}, here is {ours}; {mend}")
    return Finding(what="cluster", state="ok", text=f"{jobs.dashboard.url}, Ray {theirs}, {who}")


def of_the_job(spec: JobSpec, insecure: bool) -> Iterator[Finding]:
    """What one job needs: GPUs, a storage that all nodes write, room, and how often to save."""
    from orchestrator.launch import checks
    from orchestrator.settings import absolute_storage

    url = absolute_storage(spec.storage)
    yield checks.gpus(spec.workers.gpus)
    if "://" not in url:
        yield checks.disk("storage's disk", Path(url))
    here = checks.probe_storage(url)
    yield from checks.storage_findings(url, here)
    cluster = spec.cluster.address or os.environ.get("RAY_ADDRESS")
    if cluster:
        yield from from_nodes(cluster, url, insecure or spec.cluster.insecure)
    yield how_often(spec, here.seconds)


def from_nodes(cluster: str, url: str, insecure: bool) -> Iterator[Finding]:
    """The storage from every node, and their clocks."""
    from orchestrator.errors import RankfireError
    from orchestrator.launch.checks import SKEW, Finding, storage_findings
    from orchestrator.launch.nodes_check import probe_from_nodes

    try:
        probes = probe_from_nodes(cluster, url, insecure=insecure)
    except (RankfireError, OSError, RuntimeError) as error:
        yield Finding(what="nodes", state="bad", text=str(error))
        return
    for probe in probes:
        yield from storage_findings(url, probe)
    clocks = [probe.now for probe in probes if not probe.error]
    if clocks and max(clocks) - min(clocks) > SKEW + 60:
        text = f"nodes differ by {max(clocks) - min(clocks):.0f} s; set all by NTP"
        yield Finding(what="clocks", state="warning", text=text)


def how_often(spec: JobSpec, seconds: float) -> Finding:
    """How often to save, by Young and Daly, from the size of the newest checkpoint and the storage's speed."""
    from orchestrator.checkpoints.registry import Registry
    from orchestrator.errors import RankfireError
    from orchestrator.interval import advise
    from orchestrator.launch.checks import CONTENT, Finding
    from orchestrator.settings import absolute_storage
    from workers.locations import storage_at

    home = storage_at(absolute_storage(spec.storage)).child(spec.run)
    try:
        committed = Registry(home.child("checkpoints")).committed()
    except (OSError, RankfireError):  # has been told already
        committed = []
    if not committed or not seconds:
        return Finding(what="checkpoints", state="skipped", text="how often to save is told once the run has saved")
    manifest = committed[-1].manifest
    save = max(manifest.size / (2 * CONTENT / seconds), 0.01)
    nodes = max(spec.workers.count, 1)
    advice = advise(save=save, nodes=nodes)
    told = f"save every {advice.interval:.0f} s at most often: a save of {manifest.size >> 10} KiB takes {save:.2f} s"
    newest = f"newest {committed[-1].name} of {time_in_words(manifest.time)}"
    return Finding(
        what="checkpoints", state="ok", text=f"{told}, {advice.productive:.1%} of the time is kept; {newest}"
    )
