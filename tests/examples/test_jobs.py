"""The examples' jobs, small, on ranks that are plain processes: what they end with is pinned."""

import os
import sys

import pytest

from orchestrator import Orchestrator
from orchestrator.specfile import load_spec
from tests.process_ranks import ProcessGroup
from tests.test_house import TOP


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """Run a job file with some values changed; gives its result, and what was printed."""
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])
    monkeypatch.chdir(TOP)
    monkeypatch.setattr(sys, "path", [str(TOP), *sys.path])

    def job(path, *sets):
        spec = load_spec(TOP / "examples" / path, sets=[f"storage={tmp_path}", *sets], roots=[str(TOP)])
        result = Orchestrator.from_spec(spec, roots=[str(TOP)]).run()
        assert result.failure is None
        return result, capfd.readouterr().out

    return job


SMALL = (
    "config.layers=2",
    "config.width=64",
    "config.length=64",
    "config.batch_size=32",
    "config.lr=0.005",
    "config.ema=0.9",
)
SHORT = ("config.steps=60", "config.warm_up=10", "train.epoch_length=20", "train.max_epochs=3")
TINY = ("config.layers=1", "config.width=16", "config.heads=2", "config.length=32")


def test_the_gpt_learns_to_write(run):
    result, _ = run("gpt/job.yaml", *SMALL, *SHORT)
    assert result.metrics["validation/loss"] == pytest.approx(2.45, abs=0.15)  # 4.6 before it has learnt anything
    assert os.path.basename(result.checkpoint).startswith("step-00000060")


def test_the_gpt_is_sharded_by_one_word_and_learns_the_same(run):
    sharded, _ = run("gpt/job.yaml", *SMALL, *SHORT, "config.strategy=fsdp", "run=sharded")
    assert sharded.metrics["validation/loss"] == pytest.approx(2.45, abs=0.15)


def test_the_digits_are_learnt_by_a_model_that_is_sharded(run):
    result, _ = run("digits/job_fsdp.yaml", "train.max_epochs=5", "guard={nan: 1, divergence: 5}")
    assert result.metrics["loss"] == pytest.approx(0.14, abs=0.06)
    assert result.metrics["validation/accuracy"] > 0.93


def test_the_gan_learns_and_its_events_are_heard(run):
    result, printed = run("gan/job.yaml", "train.max_epochs=8")
    assert result.metrics["discriminator"] == pytest.approx(0.5, abs=0.2)
    assert result.metrics["generator"] == pytest.approx(1.0, abs=0.5)
    assert "200 updates of the generator" in printed


@pytest.mark.parametrize(
    ("path", "sets", "text"),
    [
        ("gpt/job.yaml", [*TINY, "train.epoch_length=1", "train.max_epochs=5"], "epoch 5 writes: The "),
        ("digits/job_fsdp.yaml", ["train.epoch_length=1", "train.max_epochs=5"], "epoch 5: the first filter's norm is"),
        ("gan/job.yaml", ["train.epoch_length=1", "train.max_epochs=1"], "=="),
    ],
)
def test_handlers_beside_the_model_tell_of_it(run, path, sets, text):
    _, printed = run(path, *sets, "workers=0")
    assert text in printed
