"""Process groups: which backend and interface, forming and leaving, and how the death of a peer looks."""

import contextlib
import datetime
import functools
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.processes import LIMIT, joined, ranks, serve_store
from tests.waiting import wait_until
from tests.workers.members import RaisedThereError, begin, first_to_end, form, members, together
from workers import process_group
from workers.faults import fault_kind
from workers.rank import Membership

GRACE = 0.15  # seconds that a rank waits for its own error before it cuts its links
ALONE = Membership(generation=0, rank=0, world_size=2)


@pytest.fixture(autouse=True)
def process_stays(monkeypatch):
    monkeypatch.setattr(process_group, "_cut_up_to", -1)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", process_group.interface_of("127.0.0.1") or "")


@pytest.fixture
def store():
    return serve_store()


def test_the_cpu_uses_gloo():
    assert process_group.backend_of(torch.device("cpu")) == "gloo"


def test_an_accelerator_has_gloo_beside_its_own_backend():
    assert process_group.backend_of(torch.device("cuda", 0)) == "cpu:gloo,cuda:nccl"


def test_the_interface_of_an_address_is_found():
    name = process_group.interface_of("127.0.0.1")
    assert name in {name for _, name in socket.if_nameindex()}


def test_an_address_that_is_not_here_has_no_interface():
    assert process_group.interface_of("203.0.113.7") is None


def test_leaving_without_a_group_does_nothing():
    process_group.leave()
    assert not dist.is_initialized()


def test_a_store_that_nobody_serves_is_an_error_within_the_timeout():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(dist.DistError) as error:
        process_group.form(ALONE, ("127.0.0.1", port), torch.device("cpu"), "127.0.0.1", timeout=0.5)
    assert fault_kind(error.value) == "communication"
    assert not dist.is_initialized()


def test_members_that_do_not_come_are_an_error_within_the_timeout(store):
    with pytest.raises(RuntimeError) as error:
        process_group.form(ALONE, ("127.0.0.1", store.port), torch.device("cpu"), "127.0.0.1", timeout=0.2)
    assert fault_kind(error.value) == "communication"
    process_group.leave()


def two_generations(membership, store):
    sums = []
    for generation in (0, 1):
        again = Membership(generation=generation, rank=membership.rank, world_size=membership.world_size)
        with joined(again, store):
            value = torch.ones(1)
            dist.all_reduce(value)
            sums.append(value.item())
    return sums, os.environ["GLOO_SOCKET_IFNAME"], dist.is_initialized()


def test_a_second_generation_forms_over_the_same_store():
    with ranks(2) as world:
        answers = world.run(two_generations)
    assert answers == [([2.0, 2.0], process_group.interface_of("127.0.0.1"), False)] * 2


# -------------------------------------------------------------------- faults
def reduce_for_ever(rank):
    value = torch.ones(1000)
    while True:
        dist.all_reduce(value)
        progress[0] += 1


progress = [0]


def reductions():
    return progress[0]


def sever_the_rest(group):
    """As a rank does when it hears of a loss: wait a moment for its own error, then cut; returns all errors."""
    first_to_end(group)
    for member in group:
        if not member.has_ended(GRACE):
            member.at_once(process_group.sever)
    return [error_of(member) for member in group]


def error_of(member):
    with pytest.raises(RaisedThereError) as error:
        member.end()
    return error.value.kind


def test_when_one_of_four_is_killed_all_others_raise():
    with members(4) as (group, store):
        assert together(group, form, 4, store) == [3] * 4
        begin(group, reduce_for_ever)
        wait_until(lambda: group[2].at_once(reductions) > 20, LIMIT, "the group reduces")
        group[2].kill()
        survivors = group[:2] + group[3:]
        assert sever_the_rest(survivors) == ["communication"] * 3
        for member in survivors:
            member.do(process_group.leave)
        assert together(survivors, form, 3, store, 1) == [2] * 3


class StopHere(torch.autograd.Function):
    """Stops the process in the middle of a backward pass, once, if it is armed."""

    armed = False

    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        if StopHere.armed:
            StopHere.armed = False
            os.kill(os.getpid(), signal.SIGSTOP)
        return gradient


trained = {}


def wrap(rank):
    if not trained:
        torch.manual_seed(0)
        trained["model"] = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(6)))
        trained["model"][2].register_forward_hook(lambda module, inputs, output: StopHere.apply(output))
        trained["optimizer"] = torch.optim.SGD(trained["model"].parameters(), lr=0.01)
    trained["wrapper"] = DistributedDataParallel(trained["model"], bucket_cap_mb=0.02)  # several buckets


def train(rank, stops=False):
    """Three steps; returns the parameters' sum, which is equal on all ranks."""
    StopHere.armed = stops
    for _ in range(3):
        trained["optimizer"].zero_grad()
        trained["wrapper"](torch.full((2, 64), 1.0 + rank)).square().mean().backward()
        trained["optimizer"].step()
    return sum(float(p.detach().double().sum()) for p in trained["model"].parameters())


def let_go():
    trained.pop("wrapper")
    process_group.leave()


def test_a_rank_that_is_stopped_in_backward_is_left_behind_and_comes_back():
    with members(3) as (group, store):
        stopped, survivors = group[1], [group[0], group[2]]
        together(group, form, 3, store, 0)
        together(group, wrap)
        for rank, member in enumerate(group):
            member.begin(train, rank, rank == 1)
        stopped.await_stop()
        assert not any(member.has_ended(GRACE) for member in survivors)
        assert [member.at_once(process_group.sever) for member in survivors] == [2, 2]
        assert [error_of(member) for member in survivors] == ["communication"] * 2

        for member in survivors:
            member.do(let_go)
        together(survivors, form, 2, store, 1)
        together(survivors, wrap)
        sums = together(survivors, train)
        assert sums[0] == sums[1]

        stopped.resume()
        assert error_of(stopped) == "communication"
        for member in group:
            member.do(let_go)
        assert together(group, form, 3, store, 2) == [2] * 3
        together(group, wrap)
        assert len(set(together(group, train))) == 1


def meet_before(rank, world_size, store):
    """So that all lines to the store are there already: looking up a name for a new one can take five seconds."""
    form(rank, world_size, store, 1000)
    process_group.leave()
    store_of(store)


def test_a_member_that_does_not_come_is_named_and_its_substitute_is_met():
    with members(3) as (group, store):
        here = group[:2]
        together(here, meet_before, 2, store)
        begin(here, form, 3, store, 0, 1.0)
        for member in here:
            with pytest.raises(RaisedThereError, match=r"expected 3 members within 1 s, not here: rank 2'"):
                member.end(4.0)  # gloo alone: five seconds, or for ever
        assert together(group, form, 3, store, 1) == [2] * 3


def test_a_rank_that_waits_for_others_to_come_is_freed():
    with members(2) as (group, store):
        group[0].begin(form, 0, 2, store)
        wait_until(lambda: store_of(store).check(["generation-0/here/0"]), LIMIT, "the first member is there")
        assert group[0].at_once(process_group.sever) == 0
        assert error_of(group[0]) == "communication"
        assert together(group, form, 2, store, 1) == [1, 1]


def test_a_generation_that_was_cut_before_is_not_formed(store):
    address = ("127.0.0.1", store.port)
    assert process_group.sever(0) == 0
    with pytest.raises(dist.DistNetworkError, match="cut while it was formed"):
        process_group.form(ALONE, address, torch.device("cpu"), "127.0.0.1", timeout=LIMIT)
    later = Membership(generation=1, rank=0, world_size=1)
    process_group.form(later, address, torch.device("cpu"), "127.0.0.1", timeout=LIMIT)
    process_group.sever(0)  # comes late
    dist.barrier()
    process_group.leave()


@functools.cache
def store_of(address):
    host, port = address
    limit = datetime.timedelta(seconds=LIMIT)
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)


def stop_while_forming(rank, store, generation):
    """Stop this process as soon as the others can read where it listens."""

    def stop():
        client.wait([f"generation-{generation}/0//cpu//0/{rank}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    client = store_of(store)
    threading.Thread(target=stop).start()
    return form(rank, 2, store, generation)


def begin_to_stop(group, store, forming=LIMIT):
    """Rank 1 stops while the group forms, until rank 0 waits for its call; who calls whom is decided by the ports."""
    waiting, stopped = group
    for generation in range(30):
        stopped.begin(stop_while_forming, 1, store, generation)
        waiting.begin(form, 0, 2, store, generation, forming)
        stopped.await_stop()
        if not waiting.has_ended(GRACE):
            return
        waiting.end()
        waiting.do(process_group.leave)
        come_back(stopped)
    pytest.fail("rank 0 never had to wait for a call")


def come_back(member):
    member.resume()
    member.at_once(process_group.sever)
    with contextlib.suppress(RaisedThereError):
        member.end()
    member.do(process_group.leave)


def test_a_rank_that_waits_for_the_call_of_a_stopped_member_is_freed():
    with members(2) as (group, store):
        waiting, stopped = group
        begin_to_stop(group, store)
        assert waiting.at_once(process_group.sever) == 0
        assert error_of(waiting) == "communication"
        come_back(stopped)
        assert together(group, form, 2, store, 99) == [1, 1]


def test_a_member_that_stops_while_the_group_forms_is_noticed_within_the_bound():
    with members(2) as (group, store):
        together(group, meet_before, 2, store)
        begin_to_stop(group, store, forming=1.0)
        with pytest.raises(RaisedThereError, match="not formed within 1 s, so a member is gone"):
            group[0].end(4.0)  # gloo alone: five seconds


def hang_for_good():
    """As after a lost wake-up: what waits here is reached by no cut."""
    assert process_group._generation is not None
    for end in process_group._generation.links._ends:
        end.detach()
    process_group._generation.links._ends.clear()


def is_reducing():
    frame = sys._current_frames()[threading.main_thread().ident]
    return any(call.name == "all_reduce" for call in traceback.extract_stack(frame))


def test_leaving_does_not_wait_for_a_collective_that_hangs():
    with members(2) as (group, store):
        one, other = group
        together(group, form, 2, store)
        one.begin(reduce_for_ever, 0)
        wait_until(lambda: one.at_once(is_reducing), LIMIT, "a collective waits for the other rank")
        one.at_once(hang_for_good)
        one.at_once(process_group.sever)
        one.at_once(process_group.leave)
        assert not one.has_ended(GRACE)
        assert one.at_once(form, 0, 1, store, 1) == 0
        other.kill()
        assert error_of(one) == "communication"


def make_a_pair(rank, store):
    form(rank, 2, store)
    with process_group.watched():
        pair = dist.new_group([0, 1])
    assert pair is not None
    backend = pair._get_backend(torch.device("cpu"))
    return backend.options._timeout.total_seconds(), len(process_group._generation.links)


def reduce_in_a_pair(rank):
    [pair] = [group for group in process_group._world.pg_names if group is not dist.group.WORLD]
    while True:
        dist.all_reduce(torch.ones(1), group=pair)


def test_groups_made_later_get_the_timeout_and_are_cut_too():
    with members(2) as (group, store):
        assert together(group, make_a_pair, store) == [(10 * LIMIT, 2)] * 2
        group[0].begin(reduce_in_a_pair, 0)
        assert not group[0].has_ended(GRACE)
        assert group[0].at_once(process_group.sever) == 2
        assert error_of(group[0]) == "communication"


def threads_of_gloo():
    return [name for task in Path("/proc/self/task").iterdir() if "gloo" in (name := (task / "comm").read_text())]


def work_and_leave(rank, store):
    form(rank, 2, store)
    for _ in range(20):
        dist.all_reduce(torch.ones(1))  # nobody here holds the tensor: the last to let it go is gloo's thread
    before = threads_of_gloo()
    process_group.leave()
    return len(before) > 0, threads_of_gloo()


def test_no_thread_of_gloo_is_left_that_could_meet_the_end_of_the_interpreter():
    with members(2) as (group, store):
        assert together(group, work_and_leave, store) == [(True, [])] * 2


def ten_generations(rank, store):
    """Threads, descriptors and pages after each."""
    seen = []
    for generation in range(10):
        form(rank, 2, store, generation)
        wrap(rank)
        train(rank)
        if generation % 2:
            process_group.sever()
            with contextlib.suppress(RuntimeError):
                dist.all_reduce(torch.ones(1))
        let_go()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "graveyard"], LIMIT, "groups are gone")
        process = psutil.Process()
        seen.append((process.num_threads(), process.num_fds(), process.memory_info().rss))
    return seen


def test_ten_generations_leave_no_thread_and_no_descriptor():
    with members(2) as (group, store):
        for seen in together(group, ten_generations, store):
            threads, descriptors, memory = zip(*seen[2:], strict=True)
            assert len(set(threads)) == 1, threads
            assert len(set(descriptors)) == 1, descriptors
            assert memory[-1] - memory[0] < 8 << 20, memory


class Communicator:
    """In place of NCCL, which needs devices: notes what is asked of it."""

    asked: ClassVar = []

    def __init__(self, name):
        self._name = name

    def __getattr__(self, request):
        return lambda: self.asked.append((self._name, request))


class GroupOnDevices:
    _device_types = (torch.device("cpu"), torch.device("cuda"))

    def __init__(self, name):
        self._backends = {"cpu": object(), "cuda": Communicator(name)}

    def _get_backend(self, device):
        return self._backends[device.type]


def test_communicators_of_devices_are_aborted_as_one_and_in_one_order(monkeypatch, store):
    address = ("127.0.0.1", store.port)
    member = Membership(generation=0, rank=0, world_size=1)
    process_group.form(member, address, torch.device("cpu"), "127.0.0.1", timeout=LIMIT)
    names = {GroupOnDevices(name): name for name in ("0", "1")}
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_nccl_available", lambda: True)
        patch.setattr(dist, "ProcessGroupNCCL", Communicator, raising=False)
        patch.setattr(process_group, "_world", SimpleNamespace(pg_names=names))
        process_group.sever()
    process_group.leave()
    assert Communicator.asked == [("0", "_group_start"), ("1", "abort"), ("0", "abort"), ("0", "_group_end")]
