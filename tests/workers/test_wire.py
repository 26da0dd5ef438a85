"""What crosses the wire: every message, order and parcel can be pickled; failures are text, whatever raised."""

import dataclasses
import pickle

import pytest

from workers import messages, orders, parcels
from workers.errors import ProgramError
from workers.events import Events
from workers.messages import Message
from workers.orders import Order
from workers.parcels import (
    Failure,
    GateKey,
    LoadPoint,
    MetricPack,
    Number,
    Planned,
    RankHandler,
    Receipt,
    Rewind,
    SnapshotLabel,
    Writing,
)  # fmt: skip
from workers.rank import Membership, Place
from workers.shards import Written

GATE = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=3, visit=1)
FAILURE = Failure(type_name="ValueError", text="wrong", traceback="Traceback …")
HANDLER = RankHandler(engine="trainer", event=Events.STARTED, where=(0, 2), pickled=b"x")
RECEIPT = Receipt(path="data/__0_0.distcp", size=9, sha256="ab")
PLANNED = Planned(plan=None, spread=("model",), state={"model": 4}, cursor={"seed": 0, "position": 8}, data={})
LABEL = SnapshotLabel(iteration=8, gate=GATE, order=4)
MEMBER = Membership(generation=2, rank=1, world_size=4)
EXAMPLES = {
    "place": Place(node="n", host="h", address="127.0.0.1", pid=1, gpus=("0",)),
    "device": "cpu",
    "seconds": 0.5,
    "engines": ("trainer",),
    "state_bytes": {"model": 4},
    "metrics": {"loss": 1.0},
    "iteration": 3,
    "gate": GATE,
    "epoch": 1,
    "epoch_length": None,
    "samples": 9,
    "packs": {"loss": Number(value=1.0), "accuracy": MetricPack(parts={"": ({"tp": [1, 2]}, 2)})},
    "output": {"loss": Number(value=1.0)},
    "order": 4,
    "failure": FAILURE,
    "kind": "user",
    "phase": "training",
    "text": "what was mended",
    "idle": 0.1,
    "drops": 0,
    "program": b"function",
    "config": {"lr": 0.1},
    "seed": 0,
    "membership": MEMBER,
    "gates": {"trainer": Events.EPOCH_COMPLETED(every=5) | Events.COMPLETED},
    "watches": {"trainer": Events.ITERATION_COMPLETED(every=10, after=2)},
    "handlers": (HANDLER,),
    "threads": 1,
    "shards": True,
    "cut": 5,
    "store": ("127.0.0.1", 1234),
    "timeout": 2.0,
    "forming": 2.0,
    "snapshots": "auto",
    "load": LoadPoint(url="s3://b/f", world_size=2, entries=("model",)),
    "max_epochs": 2,
    "max_iters": None,
    "engine": "evaluator",
    "pickled": b"call",
    "data": {"length": 9},
    "datasets": {"train": b"part"},
    "url": "s3://b/staging",
    "written": Written(receipts=(RECEIPT,), results=[]),
    "environment": {"A": "1"},
    "roots": ("/src",),
    "plan": None,
    "then": "terminate",
    "label": LABEL,
    "own": b"random numbers",
    "held": (LABEL,),
    "after": 4,
    "moves": 12,
    "completed": True,
    "busy": 0.3,
    "versions": {"torch": "2.13.0"},
    "kills": 1,
    "writing": Writing(path="data/__0_0.distcp", bytes=7),
    "given_up": ("s3://b/other",),
    "rewind": Rewind(label=LABEL, donor=0, newcomers=(1,), own=b"random numbers"),
}
STAMP = {"generation": 2, "worker": 3, "rank": 1, "seq": 7}
KINDS = [
    getattr(module, name)
    for module, root in ((messages, Message), (orders, Order))
    for name in module.__all__
    if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), root)
]


def example(kind):
    known = EXAMPLES | STAMP
    assert {field.name for field in dataclasses.fields(kind)} <= known.keys() | {"value"}
    return kind(**{field.name: known[field.name] for field in dataclasses.fields(kind) if field.name in known})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_and_order_survives_a_pickle(kind):
    value = example(kind)
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize(
    "value", [GATE, FAILURE, HANDLER, RECEIPT, PLANNED, EXAMPLES["load"], *EXAMPLES["packs"].values()]
)
def test_every_parcel_survives_a_pickle(value):
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("kind", [*KINDS, *(parcels.__dict__[n] for n in ("Failure", "Number", "GateKey", "Planned"))])
def test_what_travels_is_frozen_slotted_and_takes_names_only(kind):
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert all(field.kw_only for field in dataclasses.fields(kind))


def test_a_gate_is_named_by_its_engine_event_and_count():
    assert str(GATE) == "trainer EPOCH_COMPLETED #3"


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_failure_tells_type_text_and_traceback():
    failure = Failure.of(raised(ValueError("wrong shape")))
    assert (failure.type_name, failure.text, str(failure)) == ("ValueError", "wrong shape", "ValueError: wrong shape")
    assert failure.traceback.startswith("Traceback (most recent call last):")
    assert "raise error from cause" in failure.traceback
    assert failure.traceback.endswith("ValueError: wrong shape\n")


def test_a_failure_without_text_is_its_type():
    assert str(Failure.of(KeyError())) == "KeyError"


def test_a_failure_tells_its_causes_in_the_order_of_python():
    text = Failure.of(raised(RuntimeError("second"), raised(OSError("first")))).traceback
    assert text.index("OSError: first") < text.index("direct cause") < text.index("RuntimeError: second")


def test_a_refusal_of_ours_needs_no_traceback_if_no_line_of_the_user_led_to_it():
    assert Failure.of(ProgramError("state 'a': no")).traceback == ""
    assert Failure.of(raised(ProgramError("state 'a': no"))).traceback.endswith("ProgramError: state 'a': no\n")
    defect = Failure.of(ValueError("no line of the user's either"))
    assert defect.traceback == "ValueError: no line of the user's either\n"


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise TypeError("no words")


def test_an_exception_whose_str_raises_is_still_reported():
    failure = Failure.of(raised(SpeechlessError()))
    assert failure.text == "<no text: str() raised TypeError>"
    assert failure.type_name == "SpeechlessError"
    assert "raise error from cause" in failure.traceback
    assert "SpeechlessError" in failure.traceback


def test_a_broken_str_in_a_cause_does_not_lose_the_report():
    failure = Failure.of(raised(ValueError("outer"), raised(SpeechlessError())))
    assert failure.text == "outer"
    assert "ValueError: outer" in failure.traceback


def test_an_exception_that_python_can_not_format_is_still_reported(monkeypatch):
    def broken(error):
        raise RecursionError("too deep")

    monkeypatch.setattr("workers.parcels.traceback.format_exception", broken)
    failure = Failure.of(raised(ValueError("wrong")))
    assert failure.traceback.endswith("ValueError: wrong\n")
    assert "raise error from cause" in failure.traceback
