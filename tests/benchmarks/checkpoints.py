"""Checkpoints of 400 MB of state on two ranks: how long training waits, how fast bytes move, how much memory it takes.

Run `python tests/benchmarks/checkpoints.py`. The state is one model of 25 tensors of 16 MB, the same on both ranks; a
step is a matrix product of some 20 ms. Peers, in the same ranks and the same run, on the same disk:
- waiting: `torch.save` of the state on rank 0 while the other one waits; it neither syncs nor hashes.
- saving: `dcp.save` by both ranks, which syncs; ours syncs too, hashes every byte, and commits.
- loading: `dcp.load` in one process; ours verifies every byte meanwhile, in the same process, and gives nothing out
  before that is done. (A run that resumes verifies while its ranks start.)
Files are read from the page cache. Memory is the growth of the resident set at its peak during a save, per rank,
against the bytes that this rank writes; of ours the first save is measured, in which the copies' room is made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

RANKS = 2
TENSORS, FLOATS = 25, 4_000_000
MB = TENSORS * FLOATS * 4 / 1e6
SAVES = 5
EVERY = 120  # iterations between two saves, so that the one before is committed
TARGETS = {"waiting": 1 / 5, "saving": 0.8, "loading": 0.7, "memory": 1.2}


def big(worker: Any) -> Any:
    """A model of 400 MB of which little is trained; notes when it comes to a gate and when it goes on."""
    import torch

    from workers import Engine, Events, Program

    class Big(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(8, 1)
            self.ballast = torch.nn.ParameterList(
                torch.nn.Parameter(torch.randn(FLOATS), requires_grad=False) for _ in range(TENSORS)
            )

        def forward(self, x: Any) -> Any:
            return self.head(x)

    model = worker.prepare(Big())
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.01)
    matrix = torch.randn(700, 700)
    times: dict[str, list[float]] = {"arrived": [], "went on": []}

    def step(engine: Any, batch: Any) -> None:
        for _ in range(4):
            matrix @ matrix
        loss = model(torch.ones(4, 8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times["arrived"].append(time.monotonic()))
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: times["went on"].append(time.monotonic()))
    trainer.add_event_handler(
        Events.COMPLETED, lambda: _report.note(worker.config["folder"], f"times{worker.rank}", times)
    )
    return Program(engines={"trainer": trainer}, state={"model": model, "optimizer": optimizer})


# ---------------------------------------------------------------- on the ranks
def plain_state(worker: Any) -> dict[str, Any]:
    return {name: value.detach() for name, value in worker.program.state["model"].state_dict().items()}


def torch_save(worker: Any, path: str) -> float:
    """Rank 0 saves, the others wait; seconds."""
    import torch

    began = time.monotonic()
    if worker.rank == 0:
        torch.save(plain_state(worker), path)
    worker.barrier()
    return time.monotonic() - began


def dcp_save(worker: Any, path: str) -> float:
    """Both ranks save with torch's distributed checkpoint; seconds."""
    import torch.distributed.checkpoint as dcp

    worker.barrier()
    began = time.monotonic()
    dcp.save(plain_state(worker), checkpoint_id=path)
    return time.monotonic() - began


def resident(worker: Any, *, peak: bool) -> int:
    """Bytes resident in this rank now, and forget the peak; or at the peak since then."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(WHICH[peak]))
    return int(line.split()[1]) << 10


WHICH = {False: "VmRSS", True: "VmHWM"}


# ---------------------------------------------------------------- on the driver
def child(folder: Path) -> None:
    import ray

    from orchestrator import Orchestrator
    from workers import Events

    ray.init(**_report.RAY)
    orchestrator = Orchestrator(big, workers=RANKS, config={"folder": str(folder)}, storage=folder / "runs")
    found: dict[str, Any] = {"ours": [], "dcp": [], "torch.save": []}

    @orchestrator.on(Events.ITERATION_COMPLETED(once=2), blocking=True)
    def compare(run: Any) -> None:
        before = run.call(resident, peak=False)
        url = run.checkpoint(wait=True)
        after = run.call(resident, peak=True)
        shares = [sum(f.stat().st_size for f in Path(url).glob(f"data/__{rank}_*")) for rank in range(RANKS)]
        found["memory"] = [(peak - was) / share for was, peak, share in zip(before, after, shares, strict=True)]
        for turn in range(SAVES):
            began = time.monotonic()
            run.checkpoint(wait=True)
            found["ours"].append(time.monotonic() - began)
            run.registry.remove(run.registry.committed()[:-1])
            before = run.call(resident, peak=False)
            found["dcp"].append(max(run.call(dcp_save, str(folder / f"dcp{turn}"))))
            after = run.call(resident, peak=True)
            found.setdefault("dcp memory", [(b - a) / s for a, b, s in zip(before, after, shares, strict=True)])
            found["torch.save"].append(max(run.call(torch_save, str(folder / f"plain{turn}.pt"))))
            Path(folder / f"plain{turn}.pt").unlink()
        found["reads"] = reads(run.registry.committed()[-1], folder / "dcp0")

    @orchestrator.on(Events.ITERATION_COMPLETED(every=EVERY), blocking=True)
    def save(run: Any) -> None:
        run.checkpoint()

    orchestrator.on(Events.ITERATION_COMPLETED, blocking=True)(lambda run: None)
    orchestrator.run(max_epochs=1, epoch_length=SAVES * EVERY + EVERY // 2)
    _report.note(folder, "found", found)
    ray.shutdown()


def reads(checkpoint: Any, peer: Path) -> dict[str, list[float]]:
    """Seconds of verified loads of ours, and of loads of the peer's, in turns."""
    import torch
    import torch.distributed.checkpoint as dcp

    from orchestrator.checkpoints.reading import read_verified

    def ours() -> None:
        read_verified(checkpoint)

    def theirs() -> None:
        state = {f"ballast.{i}": torch.empty(FLOATS) for i in range(TENSORS)}
        state |= {"head.weight": torch.empty(1, 8), "head.bias": torch.empty(1)}
        dcp.load(state, checkpoint_id=peer, no_dist=True)

    def seconds(function: Callable[[], None]) -> float:
        began = time.monotonic()
        function()
        return time.monotonic() - began

    for function in (ours, theirs):
        function()
    turns = [(seconds(ours), seconds(theirs)) for _ in range(SAVES)]
    return {"ours": [turn[0] for turn in turns], "dcp": [turn[1] for turn in turns]}


def waits(folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds that the slower rank stood at each gate with a save, and at each without."""
    ranks = _report.read(folder, "times*")
    stood = [
        max(on[i + 1] - at[i] for at, on in ((rank["arrived"], rank["went on"]) for rank in ranks)) * 1e3
        for i in range(2, SAVES * EVERY)
    ]
    saves = [stood[number * EVERY - 3] for number in range(1, SAVES + 1)]
    others = [value for i, value in enumerate(stood) if (i + 3) % EVERY]
    return saves, others


def main() -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    with _report.private_folder() as root:
        folder = _report.measure(root, "checkpoints", [str(Path(__file__).resolve()), "--child"], timeout=300)
        (found,) = _report.read(folder, "found")
        saves, others = waits(folder)
    gate = statistics.median(others)
    plain = [seconds * 1e3 for seconds in found["torch.save"]]
    rows = [("", "ours", "peer", "ours / peer", "target", "")]
    ratio = (statistics.median(saves) - gate) / statistics.median(plain)
    rows.append(
        ("training waits, ms", _report.spread([s - gate for s in saves], "{:.0f}"), _report.spread(plain, "{:.0f}"),
         f"{ratio:.3f}", f"≤ {TARGETS['waiting']:.2f}", _report.verdict(ratio <= TARGETS["waiting"]))
    )  # fmt: skip
    for name, key, ours, theirs in (
        ("save, MB/s", "saving", found["ours"], found["dcp"]),
        ("verified load, MB/s", "loading", found["reads"]["ours"], found["reads"]["dcp"]),
    ):
        speeds = [[MB / seconds for seconds in side] for side in (ours, theirs)]
        ratio = statistics.median(speeds[0]) / statistics.median(speeds[1])
        rows.append(
            (name, _report.spread(speeds[0], "{:.0f}"), _report.spread(speeds[1], "{:.0f}"), f"{ratio:.2f}",
             f"≥ {TARGETS[key]}", _report.verdict(ratio >= TARGETS[key]))
        )  # fmt: skip
    worst = max(found["memory"])
    rows.append(
        ("memory at the peak, of the share", _report.spread(found["memory"]), _report.spread(found["dcp memory"]), "",
         f"≤ {TARGETS['memory']}", _report.verdict(worst <= TARGETS["memory"]))
    )  # fmt: skip
    _report.table(rows)
    print(f"\na gate without a save: {gate:.1f} ms; it is left out of the first row's left side")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checkpoints of 400 MB on two ranks, ours and torch's.")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.folder)
    else:
        main()
