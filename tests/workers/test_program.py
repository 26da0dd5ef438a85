"""What `build` returns is checked at once, and every refusal says what to do."""

import pytest
import torch

from workers.engine import Engine
from workers.errors import ProgramError
from workers.program import Program, check_program


def engine():
    return Engine(lambda engine, batch: batch)


def program(**fields):
    return Program(**({"engines": {"trainer": engine()}} | fields))


def test_a_whole_program_passes():
    model = torch.nn.Linear(1, 1)
    whole = program(engines={"trainer": engine(), "e": engine()}, data={"e": None}, state={"model": model})
    assert check_program(whole, "build") is whole


def test_an_engine_is_found_by_name():
    one = program()
    assert one.engine("trainer") is one.engines["trainer"]


@pytest.mark.parametrize(
    ("name", "hint"), [("trainr", "did you mean 'trainer'?"), ("zzz", "there are 'evaluator', 'trainer'")]
)
def test_an_engine_that_is_not_there_gets_a_hint(name, hint):
    two = program(engines={"trainer": engine(), "evaluator": engine()})
    with pytest.raises(ProgramError) as error:
        two.engine(name)
    assert str(error.value) == f"program: expected the name of an engine, received {name!r}; {hint}"


REFUSED = [
    (
        None,
        "expected it to return a Program, received NoneType; end it with `return Program(engines=…, data=…, state=…)`",
    ),
    (program(engines={"trainer": 3}), "engines['trainer']: expected an Engine, received int; write Engine(step)"),
    (
        program(engines={}),
        "engines: expected one named 'trainer', received none; name the engine that trains 'trainer'",
    ),
    (
        program(engines={"train": engine()}),
        "engines: expected one named 'trainer', received ['train']; name the engine that trains 'trainer'",
    ),
    (program(data={"traner": []}), "data: expected names of engines, received 'traner'; did you mean 'trainer'?"),
    (program(data={"x": []}), "data: expected names of engines, received 'x'; there are 'trainer'"),
    (
        program(state={"lr": 0.1}),
        "state['lr']: expected state_dict() and load_state_dict(), received float; give it both, or leave it out of "
        "`state`",
    ),
]


@pytest.mark.parametrize(("built", "text"), REFUSED)
def test_what_can_not_be_run_is_refused(built, text):
    with pytest.raises(ProgramError) as error:
        check_program(built, "m:build(worker)")
    assert str(error.value) == f"m:build(worker): {text}"
