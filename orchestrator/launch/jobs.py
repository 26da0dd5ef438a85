"""Ray's Jobs API, as far as it is needed: see whether one may enter, upload, submit, ask, stop, read.

It is spoken over HTTP, so that a submission needs no Ray of the cluster's version here and takes a moment.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StartError, SystemFailure, explain
from orchestrator.launch.access import demand_authentication, find_token, is_loopback
from orchestrator.launch.http import Answer, Dashboard, printable
from orchestrator.launch.package import Package

__all__ = ["ENDED", "GRACE", "Job", "Jobs"]

ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
GRACE = 300  # seconds from SIGTERM to SIGKILL when a job is stopped, in which it saves; Ray's own is 3
OLDEST = (2, 56)  # of Ray, on a cluster
UPLOAD = 120.0  # seconds
VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(?![0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the cluster tells it.

    Args:
        id: its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: of the cluster.
        code: exit code of its driver, once it has one.
        metadata: what was told of it when it was submitted.
    """

    id: str
    status: str
    message: str = ""
    code: int | None = None
    metadata: dict[str, str]

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, whatever that was."""
        return self.status in ENDED


class Jobs:
    """The jobs of a cluster.

    Args:
        address: URL of its dashboard.
        environment: where the token is looked for.
        insecure: whether a cluster without authentication is used though others can reach it.
        patience: seconds for one answer.
    """

    def __init__(
        self, address: str, environment: dict[str, str], *, insecure: bool = False, patience: float = 10.0
    ) -> None:
        self.dashboard = Dashboard(address, patience=patience)
        self.warning: str | None = None
        self._environment = environment
        self._insecure = insecure

    def enter(self) -> str:
        """See that this cluster is one, that it is not open to everybody, and that it lets this user in.

        Returns:
            The cluster's version of Ray.

        Raises:
            StartError: one of these is not so; says what to do.
        """
        said = self.dashboard.ask("GET", "/api/authentication_mode").json()
        mode = said.get("authentication_mode") if isinstance(said, dict) else None
        if mode not in ("token", "disabled", "k8s"):
            mode = self._mode_of_older()
        where = f"cluster at {self.dashboard.url}"
        authenticated = mode != "disabled"
        demand_authentication(where, self.dashboard.host, authenticated=authenticated, insecure=self._insecure)
        if authenticated:
            self._take_token(where)
        return self._version(where)

    def get(self, job_id: str) -> Job | None:
        """A job; None: there is none of that id."""
        answer = self._ask("GET", f"/api/jobs/{quote(job_id)}")
        if answer.status == 404:
            return None
        return _job(job_id, self._checked(answer, f"job {job_id}").json())

    def has(self, package: Package) -> bool:
        """Whether the cluster has this archive already."""
        return self._ask("GET", _path_of(package)).status == 200

    def upload(self, package: Package) -> None:
        """Give the cluster an archive."""
        dashboard = Dashboard(self.dashboard.url, self.dashboard.token, patience=UPLOAD)
        answer = dashboard.ask("PUT", _path_of(package), package.content, kind="application/octet-stream")
        self._checked(answer, "upload of the working directory")

    def submit(self, job_id: str, entrypoint: str, package: Package, metadata: dict[str, str]) -> bool:
        """Submit a job.

        Returns:
            False: one of that id is there already, as when an answer was lost and this is the second try.
        """
        environment = {"working_dir": _uri_of(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE)}}
        body = {
            "entrypoint": entrypoint, "submission_id": job_id, "runtime_env": environment, "metadata": metadata,
        }  # fmt: skip
        answer = self._ask("POST", "/api/jobs/", json.dumps(body).encode())
        if answer.status != 200 and b"already exists" in answer.body:
            return False
        self._checked(answer, f"job {job_id}")
        return True

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: it gets SIGTERM, and `GRACE` seconds."""
        self._checked(self._ask("POST", f"/api/jobs/{quote(job_id)}/stop"), f"job {job_id}")

    def logs(self, job_id: str) -> str:
        """What the job's driver has printed so far."""
        said = self._checked(self._ask("GET", f"/api/jobs/{quote(job_id)}/logs"), f"job {job_id}").json()
        return str(said.get("logs") or "") if isinstance(said, dict) else ""

    # ---------------------------------------------------------------- within
    def _mode_of_older(self) -> str:
        """A Ray that does not say has no authentication of its own; a proxy before it may have."""
        status = self._ask("GET", "/api/jobs/").status
        return "token" if status in (401, 403) else "disabled"

    def _take_token(self, where: str) -> None:
        token = find_token(self._environment)
        if token is None:
            expected, received = "the cluster's token, for which it asks", "none here"
            mend = "set RAY_AUTH_TOKEN_PATH to a file with it (mode 0600), or put it into ~/.ray/auth_token"
            raise StartError(explain(where, expected=expected, received=received, mend=mend))
        self.dashboard.token = token
        if not self.dashboard.encrypted and not is_loopback(self.dashboard.host):
            self.warning = f"the token goes to {self.dashboard.url} in clear; use https, or a tunnel: ssh -L 8265:…"
        status = self._ask("GET", "/api/jobs/").status
        if status in (401, 403):
            expected, received = "the cluster's token", f"another one, from {token.source}"
            mend = "ask who runs the cluster for its token (there: ray get-auth-token), and put it there"
            raise StartError(explain(where, expected=expected, received=received, mend=mend))

    def _version(self, where: str) -> str:
        said = self._checked(self._ask("GET", "/api/version"), where).json()
        version = printable(str(said.get("ray_version", ""))[:40]) if isinstance(said, dict) else ""
        numbers = VERSION.match(version)
        if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
            expected, received = f"Ray {OLDEST[0]}.{OLDEST[1]} or newer", f"version {version or 'unknown'}"
            mend = "install the Ray of deploy/constraints.txt on the cluster, the same as here"
            raise StartError(explain(where, expected=expected, received=received, mend=mend))
        return version

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        return self.dashboard.ask(method, path, body)

    def _checked(self, answer: Answer, where: str) -> Answer:
        if answer.status == 200:
            return answer
        received = f"status {answer.status}: {answer.text()}"
        mend = "look at the cluster's dashboard, or at the logs of its head"
        raise SystemFailure(explain(where, expected="the cluster to do it", received=received, mend=mend))


def quote(job_id: str) -> str:
    """A submission id as a part of a URL."""
    return urllib.parse.quote(job_id, safe="~")


def _uri_of(package: Package) -> str:
    return f"gcs://_ray_pkg_{package.digest[:16]}.zip"


def _path_of(package: Package) -> str:
    return f"/api/packages/gcs/_ray_pkg_{package.digest[:16]}.zip"


def _job(job_id: str, said: Any) -> Job:
    said = said if isinstance(said, dict) else {}
    metadata = said.get("metadata")
    message = str(said.get("message") or "").strip().splitlines()
    code = said.get("driver_exit_code")
    return Job(
        id=job_id,
        status=printable(str(said.get("status", "UNKNOWN"))),
        message="\n".join(printable(line) for line in message),
        code=code if isinstance(code, int) else None,
        metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {},
    )
