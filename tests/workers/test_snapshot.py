"""The ring of snapshots of one rank: which are held, what is in them, and what is told to the driver."""

import threading
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from tests.workers.training import CPU, OPTIMIZERS, SCHEDULERS, AccidentError, Odd, Training, at, equal
from workers.copies import unpacked
from workers.errors import ProgramError
from workers.events import Events
from workers.parcels import GateKey, SnapshotLabel
from workers.rank import Membership
from workers.rng import capture_rng, restore_rng
from workers.snapshot import SnapshotRing


@pytest.fixture(autouse=True)
def generators_and_threads_stay():
    state, threads = capture_rng(CPU), torch.get_num_threads()
    torch.set_num_threads(1)  # several only get in each other's way with tensors as small as these
    yield
    torch.set_num_threads(threads)
    restore_rng(state, CPU)


def test_a_snapshot_is_not_changed_by_what_it_was_restored_to():
    training = Training(OPTIMIZERS["AdamW"], SCHEDULERS["Sequential"])
    training.run(4)
    training.ring.take(at(4))
    slot = training.ring._slots[-1]
    memory, skeletons = slot.copies.memory.clone(), dict(slot.copies.skeletons)
    training.ring.restore(at(4))
    training.run()
    assert torch.equal(slot.copies.memory, memory)
    assert slot.copies.skeletons == skeletons


def test_a_ring_holds_the_last_two():
    training = Training()
    ring = training.ring
    assert ring.held == ()
    for iteration in (1, 2, 3):
        training.run(iteration)
        ring.take(at(iteration))
    assert ring.held == (at(2), at(3))
    ring.restore(at(2))
    assert ring.held == (at(2),)
    assert training.trainer.state.iteration == 2


def test_the_label_tells_a_gate_and_what_was_done_there():
    training = Training()
    gate = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)
    plain, arrived = at(5), SnapshotLabel(iteration=5, gate=gate)
    called = SnapshotLabel(iteration=5, gate=gate, order=7)
    for label in (plain, arrived, called):
        training.ring.take(label)
    assert training.ring.held == (arrived, called)


def test_taken_again_under_its_label_a_snapshot_is_replaced():
    training = Training()
    training.ring.take(at(0))
    training.ring.take(at(1))
    with torch.no_grad():
        training.net[0].weight.fill_(7)
    training.ring.take(at(1))
    assert training.ring.held == (at(0), at(1))
    with torch.no_grad():
        training.net[0].weight.fill_(8)
    training.ring.restore(at(1))
    assert training.net[0].weight.eq(7).all()


def test_the_memory_of_the_oldest_is_used_again():
    training = Training()
    addresses = []
    for iteration in range(1, 6):
        training.run(iteration)
        training.ring.take(at(iteration))
        addresses.append(training.ring._slots[-1].copies.memory.data_ptr())
    assert addresses[:3] == addresses[2:] or addresses[0::2] == [addresses[0]] * 3
    size = training.ring._slots[0].copies.memory.numel()
    tensors = [*training.net.parameters(), *training.net.buffers()]
    tensors += [value for state in training.optimizer.state.values() for value in state.values()]
    assert size < sum(tensor.nbytes for tensor in tensors) + 64 * len(tensors)


def test_what_a_snapshot_could_not_be_made_of_is_not_held():
    training = Training(odd=Odd())
    training.ring.take(at(1))
    training.ring.take(at(2))
    training.program.state["odd"].broken = True
    with pytest.raises(AccidentError):
        training.ring.take(at(3))
    assert training.ring.held == (at(1), at(2))


def test_an_entry_that_keeps_what_it_is_given_is_given_its_own():
    odd = Odd()
    training = Training(odd=odd)
    training.ring.take(at(0))
    for _ in range(2):
        odd.state["average"] += 1
        odd.state["names"].append("b")
        training.ring.restore(at(0))
        assert equal(odd.state, {"average": torch.zeros(3), "names": ["a"], "none": None})


def test_metrics_and_handlers_of_engines_come_back():
    training = Training()
    odd = Odd()
    training.trainer.attach("odd", odd)
    training.trainer.state.metrics["validation/accuracy"] = 0.5
    training.run(3)
    training.ring.take(at(3))
    seen, metrics = training.trainer.attached["loss"].state_dict(), dict(training.trainer.state.metrics)
    odd.state["names"].append("b")
    training.run(7)
    assert training.trainer.state.metrics.keys() == {"validation/accuracy", "loss"}
    training.ring.restore(at(3))
    assert equal(training.trainer.attached["loss"].state_dict(), seen)
    assert training.trainer.state.metrics == metrics == {"validation/accuracy": 0.5}
    assert training.trainer.state.metrics["validation/accuracy"] is metrics["validation/accuracy"]
    assert odd.state["names"] == ["a"]


def test_an_engine_goes_on_from_a_gate_without_firing_it_again():
    training = Training()
    fired = []
    label = SnapshotLabel(iteration=5, gate=GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1))
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: fired.append(training.trainer.state.epoch))
    training.trainer.add_phase_handler("gate", Events.EPOCH_COMPLETED(once=1), lambda: training.ring.take(label))
    training.fail = 8, "forward"
    with pytest.raises(AccidentError):
        training.trainer.run(training.data, max_epochs=2)
    training.fail = 0, ""
    training.ring.restore(label)
    training.trainer.run(training.data, max_epochs=2)
    assert fired == [1, 2]
    assert training.trainer.state.iteration == 10


def own_batches(worker):
    return worker.loader(torch.randn(4, 4) for _ in range(30))


class Stream:
    """Data that knows its place."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while True:
            self.place += 1
            yield torch.full((4, 4), float(self.place))

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Noisy(torch.utils.data.Dataset):
    """Samples that are drawn anew whenever they are asked for."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.randn(4) + i


def once(worker):
    return worker.loader(torch.randn(4, 4) for _ in range(30))


def shuffled(worker):
    return worker.loader(DataLoader(Noisy(), batch_size=8, shuffle=True))


def stateful(worker):
    sampler = RandomSampler(Noisy(), generator=torch.Generator().manual_seed(1))
    return worker.loader(StatefulDataLoader(Noisy(), batch_size=8, sampler=sampler))


def placed(worker):
    return worker.loader(Stream())


@pytest.mark.filterwarnings("ignore::workers.errors.FastForwardWarning")
@pytest.mark.parametrize("make", [once, shuffled, stateful, placed])
@pytest.mark.parametrize("since", [0, 3, 5, 7])
def test_data_that_the_rank_brings_comes_again_in_its_order(make, since):
    training = Training(data=make)
    training.run_taking(since)
    undisturbed = training.told()
    for accident in (1, 4, 6):
        training.ring.restore(at(since))
        training.fail = since + accident, "forward"
        with pytest.raises(AccidentError):
            training.run()
        training.fail = 0, ""
        training.ring.restore(at(since))
        training.run()
        assert equal(training.told(), undisturbed)


def test_the_place_in_a_part_of_the_data_is_no_place_in_another_world():
    training = Training(data=placed)
    training.run(2)
    training.ring.take(at(2))
    training.worker.membership = Membership(generation=1, rank=0, world_size=2)
    with pytest.raises(ProgramError, match=r"^snapshot: data\['trainer'\]: expected the world size at which it was "):
        training.ring.restore(at(2))


def test_what_can_not_be_copied_is_named():
    odd = Odd()
    odd.state["lock"] = threading.Lock()
    training = Training(odd=odd)
    with pytest.raises(ProgramError, match=r"^snapshot: state 'odd': expected what can be copied, .* received "):
        training.ring.take(at(0))
    del training.program.state["odd"]
    training.trainer.attach("odd", odd)
    with pytest.raises(ProgramError, match=r"^snapshot: state 'engines and data': expected what can be copied, "):
        training.ring.take(at(0))
    assert training.ring.held == ()


def small_and_large():
    return {"small": Odd(8), "large": Odd((1 << 18) + 1), "larger": Odd(1 << 19)}


def test_what_may_differ_between_ranks_goes_to_the_driver_as_long_as_it_is_small():
    training = Training(scaled=True, **small_and_large())
    own = unpacked(training.ring.take(at(0)))
    assert own["apart"].keys() == {"net", "scaler", "small"}
    assert own["apart"]["net"]["tensors"].keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert equal(own["apart"]["small"], training.program.state["small"].state)


def test_what_goes_along_comes_back():
    class Pace:
        every = 8

        def state_dict(self):
            return {"every": self.every}

        def load_state_dict(self, state):
            self.every = state["every"]

    training, pace = Training(), Pace()
    ring = SnapshotRing(training.worker, training.program, {"pace": pace})
    ring.take(at(0))
    pace.every = 100
    ring.restore(at(0))
    assert pace.every == 8


def test_own_is_small():
    assert len(Training(OPTIMIZERS["AdamW"], partial(SCHEDULERS["OneCycle"])).ring.take(at(0))) < 20_000
