"""How training is shown: a line per epoch where there is no terminal, a bar where there is one."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.handlers import Progress
from workers.messages import Pulse
from workers.parcels import Number
from workers.state import State


class FakeDriver:
    def __init__(self) -> None:
        self.state = State()
        self.evaluated: dict[str, int] = {}
        self.listened: list[tuple[str, dict[str, object]]] = []

    def listen(self, event: object, handler: object, **how: object) -> None:
        self.listened.append((repr(event), how))

    def at(self, epoch: int, iteration: int, **metrics: object) -> Any:
        self.state.epoch, self.state.iteration, self.state.metrics = epoch, iteration, metrics
        return self


def shown(progress: Progress) -> str:
    file: Any = progress.console.file
    return str(file.getvalue())


def plain(max_epochs: int | None = 3) -> Progress:
    return Progress(max_epochs, None if max_epochs else 100, console=Console(file=io.StringIO(), width=40))


def on_a_terminal(max_iters: int | None = None) -> Progress:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    return Progress(None if max_iters else 3, max_iters, console=console)


def pulse(rank: int = 0, iteration: int = 7, samples: int = 0, **output: Number) -> Pulse:
    return Pulse(
        generation=0, worker=rank, rank=rank, seq=0, phase="training", iteration=iteration, epoch=1,
        moves=0, idle=0.0, busy=0.0,
        samples=samples, drops=0, output=output,
    )  # fmt: skip


def test_it_listens_behind_all_others_and_makes_nobody_wait() -> None:
    driver: Any = FakeDriver()
    plain().attach(driver)
    assert driver.listened == [("EPOCH_COMPLETED", {"blocking": False, "phase": "gate"})]


def test_each_epoch_is_one_line_with_metrics_and_speed_however_narrow_the_output_is() -> None:
    progress, driver = plain(), FakeDriver()
    run = SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0)
    progress.begin(run)
    run.samples, run.training_seconds = 1000, 2.0
    progress(driver.at(1, 10, loss=0.25, best=3))
    run.samples, run.training_seconds = 3000, 3.0
    progress(driver.at(2, 20, loss=0.125))
    assert shown(progress).splitlines() == [
        "epoch 1/3  iteration 10  loss 0.2500  best 3  500 samples/s  2.00 s",
        "epoch 2/3  iteration 20  loss 0.1250  2000 samples/s  1.00 s",
    ]


def test_a_run_that_goes_on_counts_what_it_has_done_itself() -> None:
    progress = plain()
    run = SimpleNamespace(samples=4000, samples_before=3000, training_seconds=2.0)
    progress.begin(run, iteration=30)
    progress(FakeDriver().at(2, 40))
    assert shown(progress) == "epoch 2/3  iteration 40  500 samples/s  2.00 s\n"


def test_data_that_does_not_count_its_samples_has_a_speed_in_iterations() -> None:
    progress = plain(max_epochs=None)
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=4.0))
    progress(FakeDriver().at(1, 10))
    assert shown(progress) == "epoch 1  iteration 10  2.5 iterations/s  4.00 s\n"


def test_no_time_is_no_speed() -> None:
    progress = plain()
    progress.begin(SimpleNamespace(samples=10, samples_before=0, training_seconds=0.0))
    progress(FakeDriver().at(1, 10))
    assert shown(progress) == "epoch 1/3  iteration 10  0.00 s\n"


def test_metrics_in_brackets_are_no_markup() -> None:
    progress = plain()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress(FakeDriver().at(1, 10, **{"[red]": 1, "matrix": [[1, 2]]}))
    assert "[red] 1  matrix [[1, 2]]" in shown(progress)


def test_an_epoch_before_the_run_is_a_defect() -> None:
    with pytest.raises(AssertionError, match=r"before begin\(\)"):
        plain()(FakeDriver().at(1, 10))


def test_pulses_show_nothing_where_there_is_no_terminal() -> None:
    progress = plain()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress.pulse({0: pulse()})
    progress.close()
    assert shown(progress) == ""


def test_a_terminal_has_a_bar_that_pulses_move() -> None:
    progress = on_a_terminal(max_iters=100)
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress.pulse({1: pulse(1), 0: pulse(0, 42, loss=Number(value=0.123456))})
    bars = progress._bars
    assert bars is not None
    (task,) = bars.tasks
    progress.close()
    assert (task.description, task.completed, task.total) == ("epoch 1", 42, 100)
    assert task.fields["numbers"] == "loss 0.1235  0 samples/s"
    assert "epoch 1" in shown(progress)
    assert "42/100" in shown(progress)


def test_the_speed_is_that_of_all_ranks_over_at_least_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("orchestrator.handlers.progress.time.monotonic", lambda: now[0])
    progress = on_a_terminal()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    speeds = []
    for seconds, samples in ((0.0, 1000), (2.0, 1100), (0.5, 1200), (1.5, 1500)):  # 1000 before it went on
        now[0] += seconds
        progress.pulse({rank: pulse(rank, samples=samples, loss=Number(value=1.0)) for rank in (0, 1)})
        assert progress._bars is not None
        speeds.append(progress._bars.tasks[0].fields["numbers"].split()[-2])
    progress.close()
    assert speeds == ["0", "100", "100", "400"]


def test_a_closed_bar_is_gone_and_may_be_closed_again() -> None:
    progress = on_a_terminal()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    for _ in range(2):
        progress.close()
    assert progress._bars is None
    progress.pulse({0: pulse()})


def test_a_run_counted_in_epochs_tells_how_many() -> None:
    progress = on_a_terminal()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress.pulse({0: pulse()})
    assert progress._bars is not None
    assert progress._bars.tasks[0].description == "epoch 1/3"
    progress.close()


@pytest.mark.parametrize("name", ["loss[/b]", "acc[top5]", "a/[/]"])
def test_names_in_brackets_are_no_markup_on_a_bar_either(name: str) -> None:
    progress = on_a_terminal()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress.pulse({0: pulse(**{name: Number(value=1.0)})})
    assert progress._bars is not None
    progress._bars.refresh()
    progress.close()
    assert f"{name} 1" in shown(progress)


def test_a_terminal_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    progress = Progress(3, None)
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    progress(FakeDriver().at(1, 10, loss=1.0))
    progress.close()


def test_metrics_of_an_evaluation_are_shown_in_the_epoch_that_measured_them() -> None:
    progress, driver = plain(), FakeDriver()
    progress.begin(SimpleNamespace(samples=0, samples_before=0, training_seconds=0.0))
    for epoch, measured in ((1, 10), (2, 10), (3, 30)):
        driver.evaluated = {"validation/accuracy": measured}
        progress(driver.at(epoch, 10 * epoch, **{"loss": 1.0, "validation/accuracy": 1}))
    assert ["validation/accuracy" in line for line in shown(progress).splitlines()] == [True, False, True]
    assert shown(progress).count("loss 1.0000") == 3
