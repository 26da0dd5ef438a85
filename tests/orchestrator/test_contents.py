"""What the driver notes in a checkpoint of its own: names of metrics, and what of the config has changed since."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import Checkpoint, SpecError
from orchestrator.contents import changed_config, check_names, digests_of, states_of
from tests.orchestrator.linear import journal, make
from workers import Events


def test_a_config_that_changed_is_told_once_when_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs, config in (
        (1, {"lr": 0.1, "of": {"x": 1}}),
        (2, {"lr": 0.1, "of": {"x": 1}}),
        (3, {"lr": 0.2, "y": 1}),
    ):
        orchestrator = make(tmp_path, config=config)
        orchestrator.attach(Checkpoint())
        orchestrator.run(max_epochs=epochs)
        told = [line for line in capsys.readouterr().err.splitlines() if "config has changed" in line]
        assert len(told) == (epochs == 3)
    assert "since checkpoint step-00000006: lr, of.x (gone), y (new); what the checkpoint holds" in told[0]
    assert [line["text"] for line in journal(tmp_path) if line["event"] == "CONFIG_CHANGED"] == [
        "lr, of.x (gone), y (new)"
    ]


def test_a_config_is_noted_without_its_values() -> None:
    noted = digests_of({"token": "hunter2", "lr": 0.1})
    assert noted.keys() == {"token", "lr"}
    assert "hunter2" not in str(noted)
    assert changed_config(noted, digests_of({"token": "hunter3", "lr": 0.1})) == "token"


@pytest.mark.parametrize("value", [object(), {1, 2}, float, b"x"])
def test_what_json_does_not_know_is_not_compared(value: Any) -> None:
    assert digests_of({"a": value, "b": {"c": value, "d": []}}).keys() == {"b.d"}


def test_of_many_keys_some_are_told() -> None:
    assert changed_config({}, digests_of({f"k{number}": number for number in range(11)})) == (
        ", ".join(f"k{number} (new)" for number in (0, 1, 10, 2, 3, 4, 5, 6)) + " and 3 more"
    )


def test_a_metric_without_a_text_as_its_name_is_named(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.metrics.update({5: 1.0}))
    with pytest.raises(SpecError) as caught:
        orchestrator.run(max_epochs=1)
    assert str(caught.value) == (
        "run.metrics[5]: expected a text as the name of a metric, received 5 (int); name it 'metric/5', for example"
    )
    check_names({"5": 1.0})


def test_a_handler_whose_state_json_can_not_hold_is_named() -> None:
    stop = SimpleNamespace(state_dict=lambda: {"bad": 3})
    odd = SimpleNamespace(state_dict=lambda: {"bad": {1, 2}})
    assert states_of({"Stop": stop}) == {"Stop": {"bad": 3}}
    with pytest.raises(SpecError) as caught:
        states_of({"Stop": stop, "Odd": odd})
    assert str(caught.value) == (
        "orchestrator.checkpoint: state_dict() of handler Odd: expected numbers, texts, lists and dictionaries of them "
        "by texts, which JSON can hold, received something else: Object of type set is not JSON serializable; leave it "
        "out, or give its parts"
    )


@pytest.mark.parametrize("state", [{1: "a"}, {"deep": [{None: 1}]}, {"deep": ({True: 1},)}])
def test_a_key_that_json_would_make_a_text_is_refused(state: Any) -> None:
    with pytest.raises(SpecError, match=r"of handler Odd: .* received something else: key \w+ is no text; leave it"):
        states_of({"Odd": SimpleNamespace(state_dict=lambda: state)})
