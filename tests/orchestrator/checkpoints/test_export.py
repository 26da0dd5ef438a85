"""What a file format can hold of a state, whatever the state is made of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator import Orchestrator
from orchestrator.checkpoints.export import write_entry
from orchestrator.checkpoints.references import find
from orchestrator.checkpoints.registry import Committed
from orchestrator.errors import SpecError
from tests.orchestrator import linear
from workers import Events, Program, Worker
from workers.locations import storage_at

MATRIX = torch.arange(6.0).view(2, 3)
STATES: dict[str, Any] = {
    "nested": {"a": {"b": MATRIX, 0: [torch.tensor(7), torch.tensor(True)]}, "none": torch.empty(0, 3)},
    "shared": {
        "tied": MATRIX,
        "again": MATRIX,
        "turned": MATRIX.t(),
        "row": MATRIX[1],
        "wide": MATRIX[:, :1].expand(2, 4),
    },
    "mixed": {"w": MATRIX, "lr": 0.1, "deep": {"name": "x", "nothing": None}},
    "clash": {"a": {"b": MATRIX}, "a.b": MATRIX},
    "reserved": {"__metadata__": MATRIX},
    "strange": {"c": torch.zeros(2, dtype=torch.complex128)},
    "half": {"b": MATRIX.bfloat16(), "c": MATRIX.to(torch.complex64), "i": torch.tensor([2], dtype=torch.int8)},
}


class Held:
    """An entry of a program's state that holds what it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def build(worker: Worker) -> Program:
    program = linear.build(worker)
    return replace(program, state={**program.state, **{name: Held(state) for name, state in STATES.items()}})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Committed:
    storage = tmp_path_factory.mktemp("export")
    run = Orchestrator(build, workers=0, run="held", storage=storage)
    run.listen(Events.EPOCH_COMPLETED, lambda run: run.checkpoint())
    run.run(1)
    return find("held", storage_at(storage))


def flat(checkpoint: Committed, entry: str, folder: Path) -> dict[str, torch.Tensor]:
    write_entry(checkpoint, folder / "s.safetensors", entry=entry)
    return dict(load_file(folder / "s.safetensors"))


def refusal(checkpoint: Committed, entry: str, folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        flat(checkpoint, entry, folder)
    assert list(folder.iterdir()) == []
    return str(caught.value).partition("s.safetensors: ")[2]


def test_nested_names_are_joined_with_dots(checkpoint: Committed, tmp_path: Path) -> None:
    loaded = flat(checkpoint, "nested", tmp_path)

    assert set(loaded) == {"a.b", "a.0.0", "a.0.1", "none"}
    assert torch.equal(loaded["a.b"], MATRIX)
    assert (loaded["a.0.0"].item(), loaded["a.0.0"].shape, loaded["a.0.1"].item()) == (7, (), True)
    assert loaded["none"].shape == (0, 3)


def test_what_shares_memory_or_lies_across_is_written_out(checkpoint: Committed, tmp_path: Path) -> None:
    loaded = flat(checkpoint, "shared", tmp_path)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATES["shared"].items())


def test_tensors_that_share_memory_once_loaded_are_written_out(
    checkpoint: Committed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.checkpoints.export.read_verified", lambda checkpoint, entries: STATES)

    loaded = flat(checkpoint, "shared", tmp_path)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATES["shared"].items())


def test_kinds_of_numbers_are_kept(checkpoint: Committed, tmp_path: Path) -> None:
    loaded = flat(checkpoint, "half", tmp_path)

    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        "b": torch.bfloat16, "c": torch.complex64, "i": torch.int8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        (
            "mixed",
            "expected an entry 'mixed' of nothing but tensors, received other values: lr, deep.name, deep.nothing",
        ),
        ("clash", "expected names that differ when joined with dots, and none that is __metadata__, received 'a.b'"),
        (
            "reserved",
            "expected names that differ when joined with dots, and none that is __metadata__, received '__metadata__'",
        ),
        ("strange", "expected tensors that safetensors can hold, received torch.complex128"),
    ],
)
def test_what_safetensors_can_not_hold_is_named(entry: str, wrong: str, checkpoint: Committed, tmp_path: Path) -> None:
    assert refusal(checkpoint, entry, tmp_path) == f"{wrong}; write a .pt file"


@pytest.mark.parametrize("entry", list(STATES))
def test_a_pt_file_holds_every_state_as_it_was(entry: str, checkpoint: Committed, tmp_path: Path) -> None:
    write_entry(checkpoint, tmp_path / "s.pt", entry=entry)

    loaded = torch.load(tmp_path / "s.pt", weights_only=True)
    assert same(loaded, STATES[entry])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
