"""A network of pretended machines: a switch and hosts, each in a network namespace of its own; and a Ray on them.

Only as root, on Linux with `ip` and `tc`. A cut swallows packets without a word, as a broken switch does; nobody is
refused anything. Whoever was started on a host is ended with the network, and no namespace is left.

    with Network("abc") as network:
        subprocess.Popen(network.command("a", ["sleep", "60"]))
        network.cut("a")
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.waiting import wait_until

__all__ = ["Network", "RayNetwork", "why_not"]

SWITCH = "switch"
PORT = 6390  # of the head
ATTEMPTS = 3  # to start a node
ESTABLISHED = "01"  # in /proc/net/tcp


def why_not() -> str | None:
    """Why there can be no such network on this machine, for whoever skips a test; None if there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if missing := [tool for tool in ("ip", "tc", "nsenter", "setpriv", "unshare") if shutil.which(tool) is None]:
        return f"no command {missing[0]} on this machine"
    words = ["unshare", "--net", "sh", "-c", "ip link add br0 type bridge && ip link add v type veth peer name w"]
    tried = subprocess.run(words, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


class Network:
    """A switch with a cable to each host; nobody there knows names, which without an answer takes many seconds.

    Args:
        hosts: their names, a letter each.
    """

    def __init__(self, hosts: str) -> None:
        self.hosts = hosts
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}  # host → a process that does nothing in its namespace

    def __enter__(self) -> Network:
        with contextlib.ExitStack() as stack:
            stack.push(self.__exit__)
            self._keep(SWITCH)
            self._ip(SWITCH, "link", "add", "br0", "type", "bridge")
            self._ip(SWITCH, "link", "set", "br0", "up")
            for host in self.hosts:
                self._keep(host)
                self._connect(host)
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        spaces = [self._namespace(host) for host in self._keepers]
        for keeper in self._keepers.values():  # a namespace is gone with the last process in it
            keeper.kill()
            keeper.wait()
        left = [process for space in spaces for process in _processes_in(space)]
        assert not left, f"processes are left in network namespaces: {left}"

    def address(self, host: str) -> str:
        """IP address of a host."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str], *, own: Sequence[Path] = ()) -> list[str]:
        """What to run so that a command runs on a host.

        Args:
            host: where.
            command: what.
            own: folders in whose place this process and its children have empty ones of their own.
        """
        mounts = ["--bind /dev/null /etc/resolv.conf", *(f"-t tmpfs none {folder}" for folder in own)]
        script = "; ".join(["set -e", *(f"mount {words}" for words in mounts), 'exec "$@"'])
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        return [*self._enter(host), "setpriv", "--pdeathsig", "KILL", *private, *command]

    def processes(self, host: str) -> list[psutil.Process]:
        """Whoever runs on a host."""
        keeper = self._keepers[host].pid
        return [process for process in _processes_in(self._namespace(host)) if process.pid != keeper]

    def host_of(self, pid: int) -> str | None:
        """On which host a process is; None: on none, or it has ended."""
        with contextlib.suppress(FileNotFoundError):
            space = os.stat(f"/proc/{pid}/ns/net").st_ino
            return next((host for host in self.hosts if self._namespace(host) == space), None)
        return None

    def end_all(self) -> None:
        """End whoever runs on any host."""
        for host in self._keepers:
            self.end(host)

    # ---------------------------------------------------------------- what happens to it
    def cut(self, host: str) -> None:
        """Pull a host's cable out of the switch: it sees no difference, and hears nobody."""
        self._ip(SWITCH, "link", "set", f"to-{host}", "nomaster")

    def heal(self, host: str) -> None:
        """Put it in again."""
        self._ip(SWITCH, "link", "set", f"to-{host}", "master", "br0")

    def part(self, hosts: str) -> None:
        """Let these hosts reach all but each other."""
        for host in hosts:
            self._ip(SWITCH, "link", "set", f"to-{host}", "type", "bridge_slave", "isolated", "on")

    def join(self, hosts: str) -> None:
        """Let them reach each other again."""
        for host in hosts:
            self._ip(SWITCH, "link", "set", f"to-{host}", "type", "bridge_slave", "isolated", "off")

    def slow(self, host: str, rate: str) -> None:
        """Let no more than this pass to and from a host, such as "1mbit"."""
        for place, device in ((SWITCH, f"to-{host}"), (host, "eth0")):
            limit = ["tbf", "rate", rate, "burst", "16kb", "latency", "500ms"]
            self._run(place, "tc", "qdisc", "add", "dev", device, "root", *limit)

    def slowed(self, host: str) -> int:
        """How many packets from a host had to wait because of `slow`."""
        shown = self._run(host, "tc", "-s", "qdisc", "show", "dev", "eth0")
        return int(shown.partition("overlimits ")[2].split()[0])

    def links(self, host: str, other: str) -> int:
        """How many TCP connections from a host to another one are open, as it sees them."""
        there = "".join(f"{int(part):02X}" for part in reversed(self.address(other).split(".")))
        rows = [line.split() for line in self._run(host, "cat", "/proc/net/tcp").splitlines()[1:]]
        return sum(1 for row in rows if row[2].partition(":")[0] == there and row[3] == ESTABLISHED)

    def repeated(self, host: str) -> int:
        """How many TCP segments were sent from a host once more, since nobody had said that they came."""
        shown = self._run(host, "cat", "/proc/net/snmp")
        names, values = (line.split() for line in shown.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])

    # ---------------------------------------------------------------- its making
    def _keep(self, host: str) -> None:
        """Make a namespace, which lives as long as its keeper, which lives no longer than this process."""
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        keeper = self._keepers[host] = subprocess.Popen(words)
        here = os.stat("/proc/self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{keeper.pid}/ns/net").st_ino != here, what=f"a namespace for {host}")
        self._ip(host, "link", "set", "lo", "up")

    def _connect(self, host: str) -> None:
        switch, there = (str(self._keepers[name].pid) for name in (SWITCH, host))
        ends = ["netns", switch, "type", "veth", "peer", "name", "eth0", "netns", there]
        self._ip(SWITCH, "link", "add", f"to-{host}", *ends)
        self._ip(SWITCH, "link", "set", f"to-{host}", "master", "br0", "up")
        self._ip(host, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._ip(host, "link", "set", "eth0", "up")
        self._ip(host, "route", "add", "default", "dev", "eth0")  # so that Ray finds this address to be the host's

    def end(self, host: str) -> None:
        """End whoever runs on a host."""

        def left() -> list[psutil.Process]:
            for process in (found := self.processes(host)):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            return [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

        wait_until(lambda: not left(), what=f"the end of all on host {host}", timeout=20)

    def _namespace(self, host: str) -> int:
        return os.stat(f"/proc/{self._keepers[host].pid}/ns/net").st_ino

    def _enter(self, host: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._keepers[host].pid}/ns/net"]

    def _ip(self, host: str, *words: str) -> None:
        self._run(host, "ip", *words)

    def _run(self, host: str, *words: str) -> str:
        done = subprocess.run([*self._enter(host), *words], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)} on {host}: {done.stderr}"
        return done.stdout


def _processes_in(namespace: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.stat(f"/proc/{process.pid}/ns/net").st_ino == namespace:
                found.append(process)
    return found


class RayNetwork:
    """A Ray with a node on each host of a network.

    Args:
        network: its hosts; the first one has the head.
        cpus: of each host.
        folder: RAY_TMPDIR of all; hosts beside the first one have another one in its place.
        environment: further variables of all nodes.
    """

    def __init__(self, network: Network, cpus: Mapping[str, int], folder: Path, environment: Mapping[str, str]) -> None:
        self.network = network
        self.head = network.hosts[0]
        self.address = f"{network.address(self.head)}:{PORT}"
        self._cpus = cpus
        self._folder = folder
        self._environment = {**os.environ, **environment, "RAY_TMPDIR": str(folder)}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[RayNetwork]:
        """All nodes, as long as the block lasts; the network ends their processes, which are awaited here."""
        self._folder.mkdir(exist_ok=True)
        try:
            for host in sorted(self._cpus, key=lambda host: host != self.head):
                self._start_up(host)
            yield self
        finally:
            self.network.end_all()
            for node in self._nodes.values():
                node.wait(20)

    def run(self, host: str, command: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command on a host, where its Ray is known as RAY_ADDRESS; what it says goes into a file."""
        environment = {**self._environment, "RAY_ADDRESS": self.address, **variables}
        with log.open("wb") as file:
            return subprocess.Popen(self.network.command(host, command), env=environment, stdout=file, stderr=file)

    def raylet(self, host: str) -> psutil.Process:
        """The raylet of a host."""
        return next(one for one in self.network.processes(host) if one.name() == "raylet")

    def _log(self, host: str) -> Path:
        return self._folder.parent / f"{self._folder.name}-{host}.log"

    def _start(self, host: str) -> None:
        is_head, address = host == self.head, self.network.address(host)
        where = ["--head", "--port", str(PORT), "--include-dashboard=false"] if is_head else ["--address", self.address]
        sizes = ["--num-cpus", str(self._cpus[host]), "--object-store-memory", str(80 << 20)]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        own = () if is_head else (self._folder, Path("/dev/shm"))
        command = self.network.command(host, [*ray, *where, *sizes, "--node-ip-address", address], own=own)
        with self._log(host).open("wb") as log:
            self._nodes[host] = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _start_up(self, host: str) -> None:
        """Start a node, and wait until it is up; once more if Ray gives up after 30 s, as on a busy machine."""

        def told() -> bool:
            return self._is_up(host) or self._nodes[host].poll() is not None

        for _ in range(ATTEMPTS):
            self._start(host)
            wait_until(told, what=f"the node on host {host}", timeout=150)
            if self._is_up(host):
                return
            self.network.end(host)
        raise AssertionError(f"the node on host {host} does not start: {self._log(host).read_text()[-2000:]}")

    def _is_up(self, host: str) -> bool:
        return "Ray runtime started" in self._log(host).read_text(errors="replace")
