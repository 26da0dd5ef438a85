"""The quick starts run, small, and do what they say."""

import torch

from examples import (
    quickstart,
    quickstart_custom_events,
    quickstart_many_handlers,
    quickstart_or_event,
    quickstart_save_every_10,
)


def test_the_quick_start_learns(capsys):
    assert quickstart.main(epochs=5, epoch_length=200) < 0.8
    printed = capsys.readouterr().out
    assert printed.startswith("epoch   5: largest error")
    assert "process function" in printed


def test_every_tenth_epoch_is_saved_and_gone_on_with(tmp_path, capsys):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    quickstart_save_every_10.main(stopped, epochs=25, epoch_length=2)
    assert [path.name for path in sorted(stopped.iterdir())] == ["epoch-010.pt", "epoch-020.pt"]
    model = quickstart_save_every_10.main(stopped, epochs=30, epoch_length=2)
    assert "going on after epoch 20" in capsys.readouterr().out
    undisturbed = quickstart_save_every_10.main(whole, epochs=30, epoch_length=2)
    for mine, theirs in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_handlers_of_one_event_speak_in_turn():
    said = quickstart_many_handlers.main(epochs=2, epoch_length=2)
    starts = [line.split(" ")[0] for line in said]
    assert starts == ["epoch", "epoch", "epoch", "epoch", "that"]
    assert said[0].startswith("epoch 1: last loss")


def test_one_handler_hears_two_events():
    assert quickstart_or_event.main(epochs=11, epoch_length=2) == [("EPOCH_COMPLETED", 10), ("COMPLETED", 11)]


def test_custom_events_let_handlers_into_the_step():
    norms = quickstart_custom_events.main(epochs=3, epoch_length=5)
    assert len(norms) == 3
    assert max(norms) < 1.0001  # clipped
