"""A storage, tried from every node of a cluster: the node that can't write is named before a run finds out.

Called by `rankfire doctor`.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.launch.access import see_entry
from orchestrator.launch.checks import Probe, probe_storage

__all__ = ["probe_from_nodes"]

PATIENCE = 60.0  # seconds for all nodes


def probe_from_nodes(address: str, url: str, *, insecure: bool) -> list[Probe]:
    """Try a storage from every node that lives.

    Args:
        address: `host:port` of the cluster, or "auto".
        url: path or URL of the storage, absolute.
        insecure: whether the cluster may be open to everybody.

    Raises:
        StartError: the cluster does not let this user in, or everybody.
    """
    if address.rpartition(":")[2].isdigit() and see_entry(address, address, os.environ, insecure=insecure):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        look: Any = ray.remote(num_cpus=0, max_retries=0)(_probe)
        asked = {
            node["NodeManagerHostname"] + "/" + node["NodeID"][:8]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(url)
            for node in nodes
        }
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
        return [_answer(name, ref, ref in ready) for name, ref in asked.items()]
    finally:
        if mine:
            ray.shutdown()


def _probe(url: str) -> dict[str, object]:
    return probe_storage(url).as_dict()


def _answer(name: str, ref: Any, ready: bool) -> Probe:
    if not ready:
        return Probe(host=name, error=f"no answer within {PATIENCE:g} s")
    try:
        return Probe(**{**ray.get(ref), "host": name})
    except Exception as error:  # whatever kept a node from looking is what is to be told
        return Probe(host=name, error=f"{type(error).__name__}: {error}".splitlines()[0])
