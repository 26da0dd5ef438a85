"""The store at which ranks meet: it finds a free port, and tells where there is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ADDRESS = "10.1.2.3"
SCRIPT = f"""
import json, pathlib, socket, subprocess
from orchestrator.errors import SystemFailure
from orchestrator.rendezvous import Rendezvous
from workers.links import StoreLine

for command in ("link set lo up", "addr add {ADDRESS}/32 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)
pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50007")
taken = [socket.create_server(("{ADDRESS}", port)) for port in range(50000, 50008) if port not in (50005, 50006)]
with Rendezvous("{ADDRESS}") as (host, port):
    pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("51000 51999")  # for the ranks' ends
    line = StoreLine((host, port), 30.0)
    line.store.set("a", "b")
    answers = line.answers()
    with socket.socket() as other:
        elsewhere = other.connect_ex(("127.0.0.1", port)) == 0
    pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50007")
    try:
        with Rendezvous("{ADDRESS}"):
            words = ""
    except SystemFailure as error:
        words = str(error)
print(json.dumps(dict(port=port, answers=answers, words=words, elsewhere=elsewhere)))
"""


def test_the_store_takes_a_port_that_is_free() -> None:
    """In a network of its own, in which two ports are free, one of them for the driver's own end of the line."""
    alone = ["unshare", "--map-root-user", "--net"]
    if (tried := subprocess.run([*alone, "true"], capture_output=True, text=True)).returncode:
        pytest.skip(f"a network of its own can't be made here: {tried.stderr.strip()}")
    done = subprocess.run([*alone, sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["port"] in (50005, 50006)
    assert (told["answers"], told["elsewhere"]) == (True, False)  # only at the address that ranks were told
    assert told["words"].startswith(
        f"the store at which ranks meet: expected a free port at {ADDRESS}, received Address already in use"
    )
