"""What a job's driver prints, as it comes, and how the job ends: by Ray's own client, which keeps a line open for it.

Called by `rankfire submit --follow` and `rankfire logs --address`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
from ray.job_submission import JobSubmissionClient

from orchestrator.launch.jobs import Job, Jobs

__all__ = ["follow", "until_ended"]

PAUSE = 0.5  # seconds between two looks at a job
LATE = 3.0  # seconds that the exit code of a job may come after its end


def follow(jobs: Jobs, job_id: str, show: Callable[[str], None]) -> None:
    """Show what a job's driver prints, from its beginning until it ends or the line breaks.

    Args:
        jobs: of the cluster, entered.
        job_id: which one.
        show: called with pieces of text.
    """
    token = jobs.dashboard.token
    headers = None if token is None else {"Authorization": f"Bearer {token.value}"}
    client = JobSubmissionClient(jobs.dashboard.url, headers=headers)

    async def read() -> None:
        async for piece in client.tail_job_logs(job_id):
            show(piece)

    try:
        asyncio.run(read())
    except (RuntimeError, OSError, aiohttp.ClientError) as error:  # the job may go on; how it ends is asked for anyway
        show(f"\nrankfire: its output can't be followed any more: {error}\n")


def until_ended(jobs: Jobs, job_id: str, *, timeout: float | None = None) -> Job | None:
    """Wait until a job has ended; None if it has not within the time, in seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    ended: float | None = None  # when it was first seen to have ended
    while True:
        job, now = jobs.get(job_id), time.monotonic()
        if job is not None and job.ended:
            ended = now if ended is None else ended
            if job.code is not None or job.status != "FAILED" or now - ended > LATE:
                return job
        elif until is not None and now > until:
            return None
        time.sleep(PAUSE)
