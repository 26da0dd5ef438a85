"""FSDP2 on gloo: trains as one process would, and its checkpoints are those of any strategy, at any world size."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.checkpoints.plan import GlobalPlan
from tests.processes import joined, ranks
from workers import Engine, Program, attach_metric
from workers.errors import ProgramError
from workers.evaluating import evaluate
from workers.handlers.ema import AveragedWeights
from workers.locations import storage_at
from workers.rank import Membership
from workers.sharded import shares_in
from workers.sharding import broadcast
from workers.shards import Shards, load_state
from workers.steps import supervised_eval_step, supervised_train_step
from workers.worker import Worker

CPU = torch.device("cpu")
X = torch.randn(22, 5, generator=torch.Generator().manual_seed(1))
DATA = torch.utils.data.TensorDataset(X, X.sum(1, keepdim=True).repeat(1, 2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)  # each rank counts its own, and rank 0's counts
        return x + torch.tanh(self.layer(x))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def built(membership, strategy, **options):
    """A program as `build` makes it, in a group that is there."""
    worker = Worker(device=CPU, membership=membership, seed=3, formed=True)
    torch.manual_seed(membership.rank)  # rank 0's parameters become everybody's
    model = worker.prepare(Tower(), strategy, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    if membership.world_size > 1:
        worker.models.wrap(first=True)
    return worker, model, optimizer


def train(worker, model, optimizer, averages=None, **options):
    step = supervised_train_step(model, optimizer, nn.functional.mse_loss, clip=0.5, worker=worker, **options)
    losses = []
    for batch in worker.loader(DATA, global_batch_size=8, shuffle=True):
        losses.append(step(Engine(step), batch).item())
        if averages is not None:
            averages.update(decay=0.5)
    return losses


def whole(state):
    """A nested state with whole tensors; a collective."""
    if isinstance(state, torch.Tensor):
        return state.full_tensor().detach() if hasattr(state, "full_tensor") else state.detach().clone()
    if isinstance(state, dict):
        return {key: whole(item) for key, item in state.items()}
    return [whole(item) for item in state] if isinstance(state, list | tuple) else state


def flat(state):
    """Its tensors, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for item in items for tensor in flat(item)]


def same(one, other):
    return len(flat(one)) == len(flat(other)) > 10 and all(map(torch.equal, flat(one), flat(other)))


def save(path, state, rank=0):
    """Write a checkpoint, as ranks and driver do."""
    shards, storage = Shards(state, {}, rank), storage_at(path)
    plans = gathered(shards.plan())
    plan = GlobalPlan(dict(enumerate(plans)), ("model",))
    found = shards.freeze(plan.part(rank), {}).write(storage)
    results = gathered(found.results)
    if rank == 0:
        plan.write_index(storage, dict(enumerate(results)))


def gathered(value):
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def trained_and_saved(membership, store, strategy, path, options):
    with joined(membership, store):
        worker, model, optimizer = built(membership, strategy, **options)
        averages = AveragedWeights(model)
        train(worker, model, optimizer, averages, accumulate=2)
        worker.models.share_buffers()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": averages.state_dict()}
        save(path, state, membership.rank)
        return whole(state)


def taken_up(membership, store, strategy, path):
    with joined(membership, store):
        worker, model, optimizer = built(membership, strategy)
        entries = {"model": model, "optimizer": optimizer, "ema": AveragedWeights(model)}
        state = load_state(storage_at(path), shares=shares_in(entries))
        for name, entry in entries.items():
            entry.load_state_dict(state[name])
        found = whole({name: entry.state_dict() for name, entry in entries.items()})
        train(worker, model, optimizer)
        return found, whole(model.state_dict())


@pytest.fixture(scope="module")
def worlds():
    with ranks(2) as two, ranks(3) as three:
        yield {2: two, 3: three}


@pytest.fixture(scope="module")
def saved(worlds, tmp_path_factory):
    """(strategy, world size) → where its checkpoint is, and the whole state that is in it."""
    found = {}
    for strategy, size in (("fsdp", 2), ("fsdp", 3), ("ddp", 2)):
        path = str(tmp_path_factory.mktemp(f"{strategy}{size}"))
        found[strategy, size] = path, worlds[size].run(trained_and_saved, strategy, path, {})
    return found


def test_all_strategies_train_alike(saved):
    _, expected = saved["ddp", 2]
    for key, (_, states) in saved.items():
        assert all(same(state, states[0]) for state in states), key
        for entry in ("model", "ema"):
            for name, weight in states[0][entry].items():
                assert "seen" in name or torch.allclose(weight, expected[0][entry][name], atol=1e-5), (key, name)


@pytest.mark.parametrize(("before", "size"), [("fsdp", 3), ("fsdp", 2), ("ddp", 2)])
@pytest.mark.parametrize(("after", "new_size"), [("fsdp", 2), ("fsdp", 3), ("ddp", 3)])
def test_a_checkpoint_of_one_strategy_is_taken_up_by_another(worlds, saved, before, size, after, new_size):
    path, states = saved[before, size]
    found = worlds[new_size].run(taken_up, after, path)
    assert all(same(state, states[0]) for state, _ in found)
    assert all(torch.equal(model["head.weight"], found[0][1]["head.weight"]) for _, model in found)
    assert not torch.equal(found[0][1]["head.weight"], states[0]["model"]["head.weight"])


def test_a_sharded_checkpoint_is_taken_up_by_a_plain_model(saved):
    path, states = saved["fsdp", 3]
    state = load_state(storage_at(path))
    model = Tower()
    entries = {"model": model, "optimizer": torch.optim.AdamW(model.parameters()), "ema": AveragedWeights(model)}
    for name, entry in entries.items():
        entry.load_state_dict(state[name])
    assert same({name: entry.state_dict() for name, entry in entries.items()}, states[0])


def evaluated_with_averages(membership, store):
    with joined(membership, store):
        worker, model, optimizer = built(membership, "fsdp")
        averages = AveragedWeights(model)
        trained = []
        for _ in range(2):  # the second time the model was called, and is trained on, after averages stood in its place
            train(worker, model, optimizer, averages)
            weights, means = whole(model.state_dict()), whole(averages.state_dict())
            averages.swap()
            with torch.no_grad():
                answers = model(X)
            averages.swap()
            assert not torch.equal(weights["head.weight"], means["head.weight"])
            given_back = whole(dict(model.named_parameters()))
            assert all(torch.equal(weight, weights[name]) for name, weight in given_back.items())
            trained.append((weights, means, answers))
        return trained


def test_averages_of_sharded_weights_stand_in_their_place(worlds):
    for trained in worlds[2].run(evaluated_with_averages):
        for weights, means, answers in trained:
            plain = Tower()
            plain.load_state_dict(weights | means)
            with torch.no_grad():
                torch.testing.assert_close(plain(X), answers)


def in_bfloat16(membership, store):
    with joined(membership, store):
        worker, model, optimizer = built(membership, "fsdp", mixed_precision="bf16", shard_each=[nn.Linear])
        seen = []
        model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        losses = [train(worker, model, optimizer) for _ in range(6)]
        return losses[0][0], losses[-1][-1], set(seen), model.head.weight.dtype


def test_parameters_are_gathered_in_bfloat16_and_kept_in_float32(worlds):
    for first, last, computed, kept in worlds[2].run(in_bfloat16):
        assert last < first / 2
        assert (computed, kept) == ({torch.bfloat16}, torch.float32)


def with_a_scaler(membership, store):
    with joined(membership, store):
        worker, model, optimizer = built(membership, "fsdp")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        step = supervised_train_step(
            model, optimizer, nn.functional.mse_loss, amp="fp16", scaler=scaler, clip=1.0, worker=worker
        )
        x = torch.ones(2, 5)
        x[0, 0] = float("inf") if membership.rank == 1 else 1.0
        before = whole(model.state_dict())
        step(Engine(step), (x, torch.ones(2, 2)))
        after = whole(dict(model.named_parameters()))
        skipped = all(torch.equal(after[name], before[name]) for name in after)
        step(Engine(step), (torch.ones(2, 5), torch.ones(2, 2)))
        return skipped, scaler.get_scale(), torch.equal(whole(model.head.weight), before["head.weight"])


def test_a_gradient_that_overflows_on_one_rank_has_all_leave_the_step_out(worlds):
    assert worlds[2].run(with_a_scaler) == [(True, 512.0, False)] * 2


def evaluated(membership, store):
    with joined(membership, store):
        worker, model, _ = built(membership, "fsdp")
        engine = Engine(supervised_eval_step(model, worker=worker))
        attach_metric(engine, "loss", "mean", output=lambda out: out[0].mean())
        data = worker.loader(torch.utils.data.Subset(DATA, range(7)), global_batch_size=3)
        program = Program(engines={"trainer": Engine(lambda *_: None), "evaluator": engine}, data={"evaluator": data})
        return evaluate(worker, program, "evaluator").state.iteration


def test_ranks_with_fewer_batches_take_part_in_every_forward_pass(worlds):
    assert worlds[2].run(evaluated) == [3, 2]


def test_a_rank_alone_has_the_plain_model():
    worker = Worker(device=CPU, formed=True)
    model = worker.prepare(Tower(), "fsdp")
    assert worker.models.shards
    assert not worker.models.sharded
    assert type(copy.deepcopy(model)) is Tower


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (nn.Linear(2, 1, device="meta"), {}, "parameter 'weight': expected one whose rows can be shared out, received"),
        (
            nn.ParameterList([torch.ones(())]),
            {},
            "parameter '0': expected one whose rows can be shared out, received o",
        ),
        (
            nn.Linear(2, 1),
            {"shard_each": [nn.LSTM]},
            "shard_each: expected classes of parts of the model, received LSTM",
        ),
        (
            nn.Linear(2, 1),
            {"mixed_precision": "fp8"},
            "mixed_precision: expected 'bf16' or a MixedPrecisionPolicy, rec",
        ),
    ],
)
def test_what_can_not_be_sharded_is_refused(model, options, text):
    with pytest.raises(ProgramError) as error:
        Worker(device=CPU).prepare(model, "fsdp", **options)
    assert str(error.value).startswith(f"worker.prepare(strategy='fsdp'): {text}")


def test_before_the_ranks_have_met_a_model_is_whole():
    worker = Worker(device=CPU, membership=Membership(generation=0, rank=0, world_size=2))
    model = worker.prepare(Tower(), "fsdp")
    assert worker.models.shards
    assert model.head.weight.shape == (2, 5)
    assert type(model.head.weight) is nn.Parameter


def test_a_process_group_that_was_destroyed_is_an_error_with_a_mend():
    assert not dist.is_initialized()
    with pytest.raises(ProgramError) as caught:
        broadcast([torch.ones(1)])
    assert str(caught.value) == (
        "the ranks' process group: expected it to be there until the run ends, received none on this rank, where it "
        "was destroyed; leave out torch.distributed.destroy_process_group(): Rankfire forms the group and ends it"
    )
