"""What training changes, by names that a user knows."""

import torch
from torch import nn

from workers import Worker
from workers.parameters import named_optimizer_states, named_parameters


def test_parameters_are_named_by_the_entry_of_the_state_and_the_module() -> None:
    worker = Worker()
    model, other = worker.prepare(nn.Linear(2, 1)), worker.prepare(nn.Linear(2, 1, bias=False))
    worker.prepare(nn.Linear(2, 1).requires_grad_(False))  # nothing to train
    named = dict(named_parameters(worker.models, {"net": model, "step": object()}))
    assert list(named) == ["net.weight", "net.bias", "Linear.weight"]
    assert named["net.weight"] is model.weight
    assert named["Linear.weight"] is other.weight


def test_what_ddp_ignores_is_left_out() -> None:
    worker = Worker()
    module = nn.Linear(2, 1)
    module._ddp_params_and_buffers_to_ignore = ["bias"]  # type: ignore[assignment]
    model = worker.prepare(module)
    assert [name for name, _ in named_parameters(worker.models, {"model": model})] == ["model.weight"]


def test_optimizers_tell_what_they_remember_of_prepared_models() -> None:
    worker = Worker()
    model, other = worker.prepare(nn.Linear(2, 1)), nn.Linear(2, 1)
    adam, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(other.parameters(), momentum=0.9)
    for module, optimizer in ((model, adam), (other, sgd)):
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    state = {"model": model, "adam": adam, "sgd": sgd, "again": torch.optim.Adam(model.parameters())}
    named = dict(named_optimizer_states(worker.models, state))
    assert list(named) == [f"adam.state[{n}].{key}" for n in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")]
    assert named["adam.state[1].step"].item() == 1.0
