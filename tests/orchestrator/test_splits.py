"""Ray data sets of a run: split once, a part for each rank that trains, nothing for a spare; and what is refused."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import Orchestrator, SpecError, TrainingError
from orchestrator.splits import Splits
from workers import Engine, Program, ProgramError, Worker
from workers.building import make_worker
from workers.data.sources import NoPart
from workers.orders import Build
from workers.rank import Membership


class Rows:
    """Stands for a Ray data set of so many rows."""

    def __init__(self, rows: int = 8) -> None:
        self.rows = rows
        self.splits: list[tuple[int, bool]] = []

    def streaming_split(self, n: int, *, equal: bool) -> list["Part"]:
        self.splits.append((n, equal))
        return [Part(range(rank, self.rows, n)) for rank in range(n)]


class Part:
    """Stands for a rank's part of it."""

    def __init__(self, rows: range) -> None:
        self.rows = rows

    def iter_torch_batches(self, *, batch_size: int, drop_last: bool, device: str) -> Iterator[Any]:
        return iter(torch.tensor(self.rows).split(batch_size))


def member(rank: int, world_size: int = 2) -> Membership:
    return Membership(generation=0, rank=rank, world_size=world_size)


def test_every_rank_gets_its_part_of_one_split() -> None:
    dataset = Rows()
    splits = Splits({"train": dataset}, 2)
    parts = [pickle.loads(splits.of(member(rank))["train"]) for rank in (0, 1)]
    assert [part.rows for part in parts] == [range(0, 8, 2), range(1, 8, 2)]
    assert dataset.splits == [(2, True)]


def test_nothing_is_split_before_it_is_asked_for_or_held_after_the_end() -> None:
    dataset = Rows()
    splits = Splits({"train": dataset}, 2)
    assert dataset.splits == []
    splits.of(member(0))
    splits.close()
    assert splits._parts == {}


def test_a_spare_builds_with_names_that_have_nothing_under_them() -> None:
    order = Build(
        program="m:build", config={}, seed=0, membership=member(2), datasets=Splits({"a": Rows()}, 2).of(member(2))
    )
    assert order.datasets == {"a": b""}
    worker = make_worker(order)
    assert isinstance(worker.dataset("a"), NoPart)
    worker.loader(worker.dataset("a"), global_batch_size=4)


@pytest.mark.parametrize(
    ("registered", "hint"),
    [
        ({"train": Rows()}, "; did you mean 'train'?"),
        ({"x": Rows(), "b": Rows()}, "; there are 'b', 'x'"),
        ({}, "; there are none"),
    ],
)
def test_a_name_that_is_not_registered_is_told_with_the_one_that_is(registered: dict[str, Any], hint: str) -> None:
    with pytest.raises(ProgramError) as error:
        Worker(datasets=registered).dataset("trian")
    assert str(error.value) == (
        "worker.dataset('trian'): expected a name that was registered with orchestrator.dataset(name, ds), "
        f"received 'trian'{hint}"
    )


def build(worker: Worker) -> Program:
    seen: list[int] = []
    loader = worker.loader(worker.dataset(worker.config["name"]), global_batch_size=2)
    trainer = Engine(lambda engine, batch: seen.extend(batch.tolist()))
    trainer.seen = seen  # type: ignore[attr-defined]
    return Program(engines={"trainer": trainer}, data={"trainer": loader})


def make(tmp_path: Path, name: str = "train") -> Orchestrator:
    return Orchestrator(build, workers=0, storage=tmp_path, config={"name": name})


def test_without_workers_the_one_rank_reads_all_of_it(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    orchestrator.dataset("train", Rows())
    orchestrator.on("COMPLETED")(
        lambda run: seen.extend(run.call(lambda worker: worker.program.engines["trainer"].seen, rank=0))
    )
    orchestrator.run(max_epochs=2)
    assert seen == [*range(8)] * 2


def test_a_program_that_asks_for_another_name_is_told_so(tmp_path: Path) -> None:
    orchestrator = make(tmp_path, "trian")
    orchestrator.dataset("train", Rows())
    with pytest.raises(TrainingError, match=r"received 'trian'; did you mean 'train'\?"):
        orchestrator.run(max_epochs=1)


def test_a_name_is_registered_once(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.dataset("train", Rows())
    with pytest.raises(SpecError) as error:
        orchestrator.dataset("train", Rows())
    assert str(error.value) == (
        "orchestrator.dataset('train'): expected a name of its own for each data set, received one that is taken; "
        "choose another"
    )


def test_what_can_not_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        make(tmp_path).dataset("train", [1, 2])
    assert str(error.value) == (
        "orchestrator.dataset('train'): expected a ray.data.Dataset (an object with streaming_split), received list; "
        "make one with ray.data, or give the data to worker.loader in build(worker)"
    )


def test_after_the_start_nothing_is_registered(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.dataset("train", Rows())
    orchestrator.run(max_epochs=1)
    with pytest.raises(SpecError) as error:
        orchestrator.dataset("more", Rows())
    assert str(error.value) == (
        "orchestrator.dataset('more'): expected it before the run, received it when the run has started; register it "
        "before run()"
    )
