"""Process groups: which backend and interface, forming and leaving, and how the death of a peer looks."""

import datetime
import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist

from tests.processes import LIMIT, joined, ranks
from workers import process_group
from workers.faults import fault_kind
from workers.rank import Membership

ALONE = Membership(generation=0, rank=0, world_size=2)


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", process_group.interface_of("127.0.0.1") or "")


@pytest.fixture
def store():
    limit = datetime.timedelta(seconds=LIMIT)
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)


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


def lose_a_peer(rank, store, pipe):
    member = Membership(generation=0, rank=rank, world_size=2)
    with joined(member, store):
        dist.barrier()
        if rank == 1:
            os._exit(3)
        try:
            dist.all_reduce(torch.ones(1))
        except Exception as error:
            pipe.send(fault_kind(error))


def test_the_death_of_a_peer_is_told_from_a_fault_of_the_user(store):
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    pair = [context.Process(target=lose_a_peer, args=(rank, ("127.0.0.1", store.port), there)) for rank in (0, 1)]
    for process in pair:
        process.start()
    assert here.poll(LIMIT)
    assert here.recv() == "communication"
    for process in pair:
        process.join(LIMIT)
    assert [process.exitcode for process in pair] == [0, 3]


def test_a_second_generation_forms_over_the_same_store():
    with ranks(2) as world:
        answers = world.run(two_generations)
    assert answers == [([2.0, 2.0], process_group.interface_of("127.0.0.1"), False)] * 2
