"""An optimizer takes up the state of its kind over its parameters; what is set in it on a rank is told."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from workers.errors import ProgramError
from workers.optimizers import check_optimizer, parameters_of, settings_of
from workers.program import Program

MEND = "build it as it was when that was saved, or start afresh"


def program(**state):
    return Program(engines={}, state=state)


def trained(kind, parameters, **given):
    optimizer = kind(parameters, **given)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def take_up(kind, saved_by, order=lambda found: found, model=None):
    """Check what one optimizer saved against another one over the same model."""
    model = model or nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    first = trained(saved_by, list(model.parameters()), lr=0.1)
    second = kind(order(list(model.parameters())), lr=0.2)
    then, now = (parameters_of(program(net=model, opt=one))["opt"] for one in (first, second))
    check_optimizer("opt", second, first.state_dict(), then, now)
    second.load_state_dict(first.state_dict())
    second.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_takes_up_what_one_of_its_kind_saved(kind):
    take_up(kind, kind)


def test_another_kind_of_optimizer_is_named_by_what_is_set_in_it():
    with pytest.raises(ProgramError) as caught:
        take_up(torch.optim.Adam, torch.optim.SGD)
    text = str(caught.value)
    assert text.startswith("checkpoint: state 'opt': expected the state of an Adam (with amsgrad, betas, ")
    assert "), received that of another optimizer (with dampening, momentum, nesterov); " in text
    assert text.endswith(MEND)


def test_what_another_version_of_torch_or_a_user_sets_is_no_other_optimizer():
    (parameter,) = parameters = [nn.Parameter(torch.ones(1))]
    optimizer, now = torch.optim.Adam(parameters), [[None, [1]]]
    optimizer.param_groups[0]["mine"] = 1
    state = torch.optim.Adam([parameter]).state_dict()
    check_optimizer("opt", optimizer, state, now, now)
    del state["param_groups"][0]["amsgrad"]
    check_optimizer("opt", optimizer, state, now, now)


def test_parameters_of_another_shape_are_named_with_their_place():
    with pytest.raises(ProgramError) as caught:
        take_up(torch.optim.Adam, torch.optim.Adam, order=lambda found: found[::-1])
    assert str(caught.value) == (
        "checkpoint: state 'opt': expected its parameter 0 to be net.0.weight of shape [3, 3], as it was saved, "
        "received net.2.bias of shape [1]; give it the parameters in the same order, or start afresh"
    )


def test_parameters_of_the_same_shapes_in_another_order_are_told_by_their_names():
    def swapped(found):
        return [*found[2:4], *found[:2], *found[4:]]

    with pytest.raises(ProgramError, match=r"parameter 0 to be net\.0\.weight .*received net\.1\.weight"):
        take_up(torch.optim.Adam, torch.optim.Adam, order=swapped)


def test_parameters_under_other_names_are_the_same_parameters():
    then = [["old.weight", [3, 3]], ["old.bias", [3]]]
    now = [["new.weight", [3, 3]], ["new.bias", [3]]]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))])
    check_optimizer("opt", optimizer, optimizer.state_dict(), then, now)
    check_optimizer("opt", optimizer, optimizer.state_dict(), None, now)


def test_settings_are_those_of_optimizers_and_schedulers():
    model = nn.Linear(2, 1)
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}]
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(0.25), betas=(0.5, 0.75))
    steps, plateau = StepLR(optimizer, 3), ReduceLROnPlateau(torch.optim.SGD([model.weight], lr=1.0))
    plateau.step(2.0)
    other = SimpleNamespace(state_dict=dict, load_state_dict=print)
    found = settings_of(program(model=model, adam=optimizer, steps=steps, plateau=plateau, other=other))
    assert found.keys() == {"adam", "steps", "plateau"}
    assert (found["adam"]["lr"], found["adam"]["betas"]) == ("[0.5, 0.25]", "[[0.5, 0.75], [0.5, 0.75]]")
    assert (found["steps"]["last_epoch"], found["plateau"]["best"]) == ("0", "2.0")
    assert "params" not in found["adam"]


def test_long_settings_are_told_apart_by_a_digest():
    first, second = (torch.optim.SGD([nn.Parameter(torch.ones(1))]) for _ in range(2))
    first.param_groups[0]["long"], second.param_groups[0]["long"] = list(range(99)), list(range(98))
    one, two = (settings_of(program(opt=optimizer))["opt"]["long"] for optimizer in (first, second))
    assert one != two
    assert len(one) == len(two) == 12
