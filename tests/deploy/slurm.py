"""A real Slurm of one node, for a test: munged, slurmctld and slurmd in the foreground, in a folder of their own.

All on loopback, without cgroups; ended by their processes. Needs Debian's `slurm-wlm` and `munge`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.ray_head import free_ports
from tests.waiting import wait_until

__all__ = ["NEEDED", "Slurm", "slurm"]

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "scontrol")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/slurmd-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=30
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs={cpus} RealMemory=1000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A Slurm that is up.

    Args:
        environment: of its commands.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def ask(self, *command: str, cwd: Path | None = None) -> str:
        """Run one of its commands; gives what it prints."""
        end = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert end.returncode == 0, f"{command}: {end.stdout}{end.stderr}"
        return end.stdout.strip()

    def state(self, job: str) -> str:
        """How a job stands, such as RUNNING."""
        return self.ask("squeue", "-h", "-j", job, "-t", "all", "-o", "%T")

    def told(self, job: str, key: str) -> str:
        """A field of `scontrol show job`."""
        words = self.ask("scontrol", "show", "job", job, "-o").split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


@contextlib.contextmanager
def slurm() -> Iterator[Slurm]:
    """Start one, and end its jobs and daemons afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    folder.chmod(0o711)  # munged wants others to be able to reach its socket
    (folder / "munge").mkdir(mode=0o711)
    (folder / "ctld").mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ctld, node = free_ports(2)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(
        CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ctld=ctld, node=node, cpus=os.cpu_count())
    )
    up = Slurm({**os.environ, "SLURM_CONF": str(config)})
    munge = [f"--{name}={folder / 'munge' / file}" for name, file in (
        ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
    )]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "--foreground", *munge],
            ["slurmctld", "-D", "-c", "-f", str(config)],
            ["slurmd", "-D", "-N", "n1", "-f", str(config)],
        ):
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=up.environment, stdout=out, stderr=subprocess.STDOUT))
            if command[0] == "munged":
                wait_until((folder / "munge" / "socket").exists, 30, "munge's socket")
        wait_until(lambda: _idle(up), 60, "the node to be idle", 0.2)
        yield up
    finally:
        _end(up, daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _idle(up: Slurm) -> bool:
    command = ["sinfo", "-h", "-o", "%T"]
    end = subprocess.run(command, env=up.environment, capture_output=True, text=True, timeout=30)
    return end.stdout.strip() == "idle"


def _end(up: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # else steps would outlive their daemon
        for job in up.ask("squeue", "-h", "-o", "%A").split():
            up.ask("scancel", "--full", job)
        wait_until(lambda: not up.ask("squeue", "-h"), 60, "all jobs to have ended", 0.2)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
