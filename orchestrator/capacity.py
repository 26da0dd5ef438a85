"""What workers reserve, whether a cluster could ever hold them, and where a replacement may live. Pure.

Called by `placement.py` before it asks for places, and by `group.py` for what an actor takes of its place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from orchestrator.errors import CapacityError
from orchestrator.spec import WorkersSpec

__all__ = ["bundle_of", "check_capacity", "fits", "in_words", "local_cpus", "nodes_for"]

OVERSUBSCRIBE = 8  # ranks per core that a laptop may be asked for
_KEYS = {"CPU": "cpus", "GPU": "gpus"}  # resource → its key in a job file


def bundle_of(workers: WorkersSpec) -> dict[str, float]:
    """What one worker reserves.

    Example:
        >>> bundle_of(WorkersSpec(count=2, cpus=1.0))
        {'CPU': 1.0}
    """
    bundle = {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}
    return {name: amount for name, amount in bundle.items() if amount}


def fits(labels: Mapping[str, str], selectors: Mapping[str, str]) -> bool:
    """Whether a node has the labels that workers want.

    Args:
        labels: of the node.
        selectors: by name: VALUE, !VALUE, in(A,B) or !in(A,B).

    Example:
        >>> fits({"gpu": "H100"}, {"gpu": "in(A100,H100)"}), fits({"gpu": "H100"}, {"gpu": "!H100"})
        (True, False)
    """
    for name, selector in selectors.items():
        wanted = selector.removeprefix("!")
        values = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
        if (labels.get(name) in values) == selector.startswith("!"):
            return False
    return True


def check_capacity(
    workers: WorkersSpec, nodes: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]] | None = None
) -> None:
    """See whether nodes could hold the workers if nothing else ran there.

    Args:
        workers: how many, and what each needs.
        nodes: the total resources of every node.
        labels: those of every node.

    Raises:
        CapacityError: they never could; says what is asked and what is there.
    """
    if workers.labels and labels is not None:
        fit = [node for node, its in zip(nodes, labels, strict=True) if fits(its, workers.labels)]
        if not fit:
            raise CapacityError.of(
                asked=f"workers on nodes with the labels {_labels_in_words(workers.labels)}",
                there="; ".join(sorted({_labels_in_words(its) for its in labels})),
                mend="change workers.labels, or start nodes with `ray start --labels`",
            )
        nodes = fit
    count, bundle = workers.count + workers.spares, bundle_of(workers)
    rooms = [min(int((node.get(name, 0.0) + 1e-9) / amount) for name, amount in bundle.items()) for node in nodes]
    asked = f"{count} workers of {in_words(bundle)} each, placed {workers.placement}"
    if workers.placement == "STRICT_PACK":
        enough = max(rooms, default=0) >= count
    elif workers.placement == "STRICT_SPREAD":
        enough = sum(1 for room in rooms if room) >= count
    else:
        enough = sum(rooms) >= count
    if not enough:
        raise CapacityError.of(asked=asked, there=_there(nodes, bundle), mend=_mend(count, bundle, nodes))


def local_cpus(workers: WorkersSpec) -> int:
    """CPUs that a local Ray is told it has: all cores, or more if a few more ranks are asked for.

    Raises:
        CapacityError: so many that they would only hinder each other.
    """
    cores = os.cpu_count() or 1
    asked = (workers.count + workers.spares) * workers.cpus
    if asked > cores * OVERSUBSCRIBE:
        raise CapacityError.of(
            asked=f"{workers.count + workers.spares} workers of {workers.cpus:g} CPU each",
            there=f"this machine with {cores} cores (at most {OVERSUBSCRIBE} ranks share one)",
            mend="ask for fewer workers, or give cluster.address",
        )
    return max(cores, int(-(-asked // 1)))


def nodes_for(placement: str, *, avoid: Collection[str], homes: Collection[str]) -> str | None:
    """Where one more worker may live: a label selector for node ids; None: anywhere.

    Args:
        placement: how the workers are laid over the nodes.
        avoid: ids of nodes on which it shall not live.
        homes: those of the nodes on which the others live.

    Example:
        >>> nodes_for("PACK", avoid=["a", "b"], homes=["c"])
        '!in(a,b)'
        >>> nodes_for("STRICT_PACK", avoid=["a"], homes=["c"])
        'in(c)'
        >>> nodes_for("STRICT_SPREAD", avoid=["a"], homes=["c"])
        '!in(a,c)'
    """
    there = set(homes) - set(avoid)
    if placement == "STRICT_PACK" and there:
        return f"in({','.join(sorted(there))})"
    away = set(avoid) | (there if placement == "STRICT_SPREAD" else set())
    return f"!in({','.join(sorted(away))})" if away else None


def in_words(resources: Mapping[str, float]) -> str:
    """Amounts by resource, as people read them.

    Example:
        >>> in_words({"CPU": 2.0, "GPU": 0.5})
        '2 CPU, 0.5 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _mend(count: int, bundle: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """What to ask less of: what no node has enough of for one worker, else what all together are short of."""
    for name, amount in bundle.items():
        if all(node.get(name, 0.0) < amount for node in nodes):
            if name in _KEYS:
                return f"ask for fewer {_KEYS[name]}, or add nodes that have them"
            return f"ask for less of {name!r}, or add nodes that have it"
    for name, amount in bundle.items():
        if name != "CPU" and sum(node.get(name, 0.0) for node in nodes) < count * amount:
            return f"ask for fewer workers or {_KEYS.get(name, repr(name))}, or add nodes"
    return "ask for fewer workers or add nodes"


def _labels_in_words(labels: Mapping[str, str]) -> str:
    """Those that people set; Ray's own are left out."""
    own = {name: value for name, value in labels.items() if not name.startswith("ray.io/")}
    return ", ".join(f"{name}: {value}" for name, value in sorted(own.items())) or "no labels"


def _there(nodes: Sequence[Mapping[str, float]], bundle: Mapping[str, float]) -> str:
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in bundle}
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in bundle}
    several = f", at most {in_words(best)} on one" if len(nodes) > 1 else ""
    return f"a cluster of {len(nodes)} node{'s' if len(nodes) != 1 else ''} with {in_words(total)} in all{several}"
