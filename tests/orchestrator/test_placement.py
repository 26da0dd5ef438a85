"""Where the cluster is looked for: its address, the environment, this machine."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from orchestrator.errors import StartError
from orchestrator.launch.local_ray import out_of_our_group, signals_kept
from orchestrator.placement import Cluster
from orchestrator.spec import ClusterSpec, WorkersSpec


@pytest.mark.parametrize(
    ("address", "variable", "where"),
    [("127.0.0.1:1", None, "cluster.address"), (None, "127.0.0.1:1", "RAY_ADDRESS")],
)
def test_no_cluster_is_told_with_the_place_that_named_it(
    address: str | None, variable: str | None, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(StartError) as caught:
        Cluster(ClusterSpec(address=address), WorkersSpec(count=1)).start()
    assert str(caught.value) == (
        f"{where}: expected a Ray cluster at '127.0.0.1:1', received ConnectionRefusedError: [Errno 111] Connection "
        f"refused; see that it runs and that this machine may reach it, or leave {where} out to use this machine"
    )


def test_a_ray_that_does_not_start_here_is_told_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_late(**given: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")  # as Ray does

    ended: list[bool] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("orchestrator.placement.ray.is_initialized", lambda: False)
    monkeypatch.setattr("orchestrator.placement.ray.init", start_late)
    monkeypatch.setattr("orchestrator.placement.end_rays_processes", lambda: ended.append(True))
    with pytest.raises(StartError) as caught:
        Cluster(ClusterSpec(), WorkersSpec(count=1)).start()
    assert str(caught.value) == (
        "cluster: expected Ray to start on this machine, received Exception: The current node timed out during "
        "startup. This could happen because ...; see that it has memory and CPUs to spare and try again, look into the "
        "newest session's logs in Ray's folder (RAY_TMPDIR, else /tmp/ray), or name a cluster that runs in "
        "cluster.address"
    )
    assert ended == [True]


def test_a_handler_of_rays_never_stands_in_place_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    before = signal.getsignal(signal.SIGTERM)
    with signals_kept():
        utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
        assert signal.getsignal(signal.SIGTERM) is before
    assert (signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler.__name__) == (before, "set_sigterm_handler")


TELL = """\
import ctypes, os
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG
print(os.getpgid(0) == os.getpid(), signal.value)
"""


def test_what_ray_starts_here_is_in_a_group_of_its_own_and_dies_with_us() -> None:
    from ray._private import utils

    def start() -> str:
        tie = utils.set_kill_on_parent_death_linux  # as Ray looks it up, in each child
        return subprocess.run([sys.executable, "-c", TELL], preexec_fn=tie, capture_output=True, text=True).stdout

    with out_of_our_group():
        assert start() == f"True {signal.SIGKILL.value}\n"
    assert start() == f"False {signal.SIGKILL.value}\n"
