"""From the path or URL in a job file to the storage that is meant."""

from __future__ import annotations

import os
from pathlib import Path

from workers.folder import Folder
from workers.objects import Objects
from workers.storage import Storage

__all__ = ["storage_at"]


def storage_at(url: str | os.PathLike[str]) -> Storage:
    """The storage of a folder or a URL.

    Args:
        url: a path, `file://…`, or a URL of any file system that fsspec knows: `s3://bucket/runs`, `gs://…`, `memory://…`.
            Credentials and endpoints come from where its library looks for them (`AWS_*`, `FSSPEC_S3_*` …).

    Raises:
        ValueError: no such file system is known, or what it needs is not installed; says which.
    """
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return Folder(Path(text).expanduser().absolute())
    return Objects(text.rstrip("/"))
