"""Schedules of torch, stepped by the engine: the same rates as by hand, with a warm-up, through a resume."""

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.workers.handlers.regression import regression
from workers import Events, Worker
from workers.handlers import LRSchedule, ReduceLROnPlateau

SCHEDULERS: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, 4, gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[4]
    ),
}


def rates(schedule: LRSchedule, epochs: int = 2) -> list[float]:
    made, seen = regression(), []
    schedule.optimizer = made.optimizer
    made.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(made.optimizer.param_groups[0]["lr"]))
    schedule.attach(made.trainer)
    made.train(epochs)
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rates_are_those_of_the_scheduler_stepped_by_hand(name: str) -> None:
    made, expected = regression(), []
    scheduler = SCHEDULERS[name](made.optimizer)
    for _ in range(12):
        expected.append(made.optimizer.param_groups[0]["lr"])
        made.optimizer.step()
        scheduler.step()
    assert rates(LRSchedule(SCHEDULERS[name])) == expected


def test_a_warm_up_leads_to_the_rate_at_which_the_scheduler_begins() -> None:
    seen = rates(LRSchedule(SCHEDULERS["step"], warm_up=5))
    assert seen[:6] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.05])
    assert seen[6:] == pytest.approx([0.05, 0.05, 0.05, 0.025, 0.025, 0.025])


def test_one_that_counts_epochs_is_stepped_at_their_ends() -> None:
    seen = rates(LRSchedule(lambda o: lr_scheduler.ExponentialLR(o, 0.5), event=Events.EPOCH_COMPLETED), epochs=3)
    assert seen == [0.05] * 6 + [0.025] * 6 + [0.0125] * 6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_its_place_is_saved_with_the_engine(name: str) -> None:
    def started() -> Any:
        made = regression(worker=Worker())
        LRSchedule(SCHEDULERS[name], warm_up=2).attach(made.trainer)
        return made

    whole = started().train(3)
    part = started().train(1)
    rest = started()
    rest.optimizer.load_state_dict(part.optimizer.state_dict())
    rest.trainer.load_state_dict(part.trainer.state_dict())
    rest.trainer.run(rest.data, max_epochs=3)
    assert rest.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    assert whole.trainer.state.metrics["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_a_rate_in_a_tensor_stays_in_it() -> None:
    made = regression()
    made.optimizer = torch.optim.Adam(made.model.parameters(), lr=torch.tensor(0.1))
    rate = made.optimizer.param_groups[0]["lr"]
    LRSchedule(warm_up=4, optimizer=made.optimizer).attach(made.trainer)
    made.trainer.run(made.data, max_iters=2)
    assert made.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.075)


def test_an_optimizer_that_is_not_there_is_refused() -> None:
    made = regression(worker=Worker())
    with pytest.raises(ValueError, match=r"optimizer='adam': expected the name of an optimizer .* there are 'optim"):
        LRSchedule(optimizer="adam").attach(made.trainer)
    made.trainer.worker = None
    with pytest.raises(ValueError, match="received an engine alone; give the optimizer itself"):
        LRSchedule().attach(made.trainer)


def test_arguments_that_cant_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LRSchedule\(warm_up\): expected a whole number of at least 0, received 2.5"):
        LRSchedule(warm_up=2.5)  # type: ignore[arg-type]
    made = regression()
    with pytest.raises(ValueError, match=r"LRSchedule\(scheduler\): .* received one that gives 5 \(int\); write"):
        LRSchedule(lambda o: 5, optimizer=made.optimizer).attach(made.trainer)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau\(cooldown\): expected a whole number .* received 1.5"):
        ReduceLROnPlateau("loss", cooldown=1.5)  # type: ignore[arg-type]
