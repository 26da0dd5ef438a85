"""One update a batch: that of the whole global batch, whatever pieces and ranks it is shared out over."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.processes import joined, ranks
from workers import Engine, Events, ProgramError, create_supervised_evaluator, create_supervised_trainer
from workers.rank import Membership
from workers.steps import supervised_eval_step, supervised_train_step
from workers.worker import Worker

CPU = torch.device("cpu")
SAMPLES = 13


def data(tokens=False):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 6, 3, generator=generator)
    y = torch.randint(0, 4, (SAMPLES, 6), generator=generator)
    if tokens:  # sample i has i % 7 words: none, one … all six
        y[torch.arange(6).expand(SAMPLES, 6) >= (torch.arange(SAMPLES) % 7).unsqueeze(1)] = -100
    return torch.utils.data.TensorDataset(x, y)


def mean_loss(logits, y):
    return functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def words(x, y):
    return (y != -100).sum()


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))


def trained(membership, batch_size, accumulate, tokens, *, clip=0.3, wrap=True):
    """The parameters after two passes with an uneven last batch, and the losses that this rank told."""
    worker = Worker(device=CPU, membership=membership, seed=3)
    model = worker.prepare(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    if wrap:
        worker.models.wrap(first=True)
    step = supervised_train_step(
        model, optimizer, mean_loss, accumulate=accumulate, clip=clip, tokens=words if tokens else None, worker=worker
    )
    losses = []
    for _ in range(2):
        for batch in worker.loader(data(tokens), global_batch_size=batch_size, shuffle=True):
            losses.append(step(Engine(step), batch).item())
    worker.models.unwrap()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), losses


def trained_on_ranks(membership, store, cases):
    with joined(membership, store):
        return [trained(membership, *case)[0] for case in cases]


CASES = [(8, 1, False), (8, 3, False), (5, 4, False), (8, 1, True), (8, 3, True), (4, 5, True)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_update_over_ranks_and_pieces_is_that_of_one_process(world_size):
    with ranks(world_size) as world:
        found = world.run(trained_on_ranks, CASES)
    for number, (batch_size, _, tokens) in enumerate(CASES):
        whole, _ = trained(Membership(generation=0, rank=0, world_size=1), batch_size, 1, tokens, wrap=False)
        for rank in found:
            assert (rank[number] - whole).abs().max() < 1e-6, CASES[number]


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(3, 14), accumulate=st.integers(1, 6), world=st.integers(1, 3), tokens=st.booleans())
def test_accumulated_gradients_are_those_of_the_whole_batch(batch_size, accumulate, world, tokens):
    """Ranks one after the other, their mean taken by hand: what DDP does, in one process."""
    steps = [rank_gradients(rank, world, batch_size, accumulate, tokens) for rank in range(world)]
    whole = rank_gradients(0, 1, batch_size, 1, tokens)
    for step, expected in enumerate(whole):
        mean = sum(rank[step] for rank in steps) / world
        assert (mean - expected).abs().max() < 1e-6


def rank_gradients(rank, world_size, batch_size, accumulate, tokens):
    """The gradients of each batch of a pass on one of the ranks."""

    class Counted(Worker):
        """Knows of the tokens of all ranks without a process group."""

        def all_reduce(self, value, op="sum"):
            return float(everywhere[len(found)])

    everywhere = [
        words(*batch).item() for batch in Worker(device=CPU, seed=3).loader(data(tokens), global_batch_size=batch_size)
    ]
    worker = Counted(device=CPU, seed=3, membership=Membership(generation=0, rank=rank, world_size=world_size))
    model, found = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = supervised_train_step(
        model, optimizer, mean_loss, accumulate=accumulate, tokens=words if tokens else None, worker=worker
    )
    for batch in worker.loader(data(tokens), global_batch_size=batch_size):
        step(Engine(step), batch)
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return found


def test_gradients_are_reduced_once_a_batch(monkeypatch):
    worker, model, within = Worker(device=CPU), net(), []

    @contextlib.contextmanager
    def no_sync(_):
        within.append(None)
        yield

    monkeypatch.setattr(worker, "no_sync", no_sync)
    step = supervised_train_step(
        model, torch.optim.SGD(model.parameters(), 0.1), mean_loss, accumulate=4, worker=worker
    )
    step(Engine(step), data()[:8])
    assert len(within) == 3


def test_the_loss_is_that_of_the_whole_batch_of_this_rank():
    model, batch = net(), data()[:7]
    expected = mean_loss(model(batch[0]), batch[1]).item()
    step = supervised_train_step(model, torch.optim.SGD(model.parameters(), 0.1), mean_loss, accumulate=3)
    assert step(Engine(step), batch).item() == pytest.approx(expected, abs=1e-6)


def test_gradients_are_clipped_together():
    model, batch = net(), data()[:8]
    before = copy.deepcopy(model)
    step = supervised_train_step(model, torch.optim.SGD(model.parameters(), 1.0), mean_loss, clip=0.01, accumulate=2)
    step(Engine(step), batch)
    moved = [a.detach() - b.detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_model_computes_in_bfloat16_and_keeps_its_own_parameters():
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step = supervised_train_step(model, torch.optim.SGD(model.parameters(), 0.1), mean_loss, amp="bf16")
    step(Engine(step), data()[:4])
    evaluate = supervised_eval_step(model, amp=True)
    evaluate(Engine(evaluate), data()[:4])
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert model[0].weight.dtype == model[0].weight.grad.dtype == torch.float32


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_is_halved():
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = supervised_train_step(model, optimizer, mean_loss, amp="fp16", scaler=scaler, clip=1.0, accumulate=2)
    x, y = data()[:4]
    step(Engine(step), (x * float("inf"), y))
    assert scaler.state_dict()["scale"] == 2.0**9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    step(Engine(step), (x, y))
    assert not any(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pytorch_ignites_names_make_engines():
    from torchmetrics.classification import MulticlassAccuracy

    model = nn.Sequential(net(), nn.Flatten(0, 1))
    batches = [(x.unsqueeze(0), y) for x, y in data()]
    trainer = create_supervised_trainer(
        model,
        torch.optim.Adam(model.parameters(), 0.1),
        functional.cross_entropy,
        prepare_batch=lambda batch, device: batch,
        output_transform=lambda x, y, y_pred, loss: (loss.item(), len(y_pred)),
    )
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output))
    trainer.run(batches, max_epochs=8)
    evaluator = create_supervised_evaluator(
        model, {"accuracy": MulticlassAccuracy(4, average="micro")}, prepare_batch=lambda batch, device: batch
    )
    assert losses[-1][0] < losses[0][0]
    assert losses[0][1] == 6
    assert evaluator.run(batches).metrics["accuracy"] > 0.4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accumulate": 0}, "accumulate: expected a whole number from 1 on, received 0; it is in how many pieces"),
        ({"clip": 0.0}, "clip: expected the largest norm that gradients may have, a number above 0, received 0.0;"),
        ({"clip": "1"}, "clip: expected the largest norm that gradients may have, a number above 0, received '1';"),
        ({"clip": True}, "clip: expected the largest norm that gradients may have, a number above 0, received True;"),
        ({"amp": "fp16"}, "amp: expected a scaler for float16, received none, so that small gradients"),
        ({"amp": "fp8"}, "amp: expected 'bf16', 'fp16' or True, received 'fp8'; leave it out to compute in"),
        ({"scaler": True}, "scaler: expected a torch.amp.GradScaler, received bool; make one with"),
    ],
)
def test_arguments_that_can_not_be_are_refused(options, text):
    model = net()
    with pytest.raises(ProgramError) as error:
        supervised_train_step(model, torch.optim.SGD(model.parameters(), 0.1), mean_loss, **options)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda logits, y: logits.flatten(), r"a tensor of shape \(24,\); take its mean\(\)"),
        (lambda logits, y: logits.detach().mean(), "one without gradients; compute it from the prediction as it is"),
        (lambda logits, y: {"loss": 1.0}, r"\{'loss': 1.0\} \(dict\); return the tensor that is to become small"),
        (lambda logits, y: 1.0, r"1.0 \(float\); return"),
        (lambda logits, y: None, r"None \(NoneType\); return"),
    ],
)
def test_a_loss_that_is_none_is_refused_with_its_mend(loss, text):
    model = net()
    step = supervised_train_step(model, torch.optim.SGD(model.parameters(), 0.1), loss)
    with pytest.raises(ProgramError, match=rf"^loss: expected a function that gives a tensor of one number, .* {text}"):
        step(Engine(step), (torch.ones(1, 6, 3), torch.zeros(1, 6)))


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf")])
def test_a_count_of_tokens_that_is_none_is_refused(count):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = supervised_train_step(model, optimizer, mean_loss, tokens=lambda x, y: count)
    with pytest.raises(ProgramError, match=r"^tokens: expected how many tokens a batch has, .* received "):
        step(Engine(step), next(iter(torch.utils.data.DataLoader(data(), batch_size=2))))
