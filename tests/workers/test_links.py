"""Links: found among other connections, cut from any thread, bounded; and freeing a rank while a group is formed."""

import ctypes
import fcntl
import os
import socket
import struct
import threading

import pytest
import torch
import torch.distributed as dist

from tests.processes import LIMIT, serve_store
from tests.workers.members import RaisedThereError, begin, form, members, together
from workers import process_group, sockets
from workers.links import Links, StoreLine
from workers.rank import Membership

OPTIONS = {
    "user timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
}


class Strangers:
    """A server and its clients in one process: they connect, talk and part all the time, until `stop`."""

    def __init__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.talks = 0
        self.error = None
        self._thread.start()

    def stop(self):
        self._stop.set()
        self._thread.join(LIMIT)
        if self.error is not None:
            raise self.error
        return self.talks

    def _run(self):
        open_pairs = []
        try:
            while not self._stop.wait(0.001):
                with socket.create_server(("127.0.0.1", 0)) as server:  # new ones too, at the address that gloo uses
                    for _ in range(4):
                        client = socket.create_connection(server.getsockname())
                        open_pairs.append((client, server.accept()[0]))
                for client, served in open_pairs:
                    client.sendall(b"?")
                    assert served.recv(1) == b"?"
                    self.talks += 1
                for end in [end for pair in open_pairs[:-8] for end in pair]:
                    end.close()
                open_pairs = open_pairs[-8:]
        except Exception as error:
            self.error = error
        for end in [end for pair in open_pairs for end in pair]:
            end.close()


def among_strangers(rank, store):
    strangers = Strangers()
    found, cut = [], []
    for generation in range(4):
        found.append(form(rank, 3, store, generation))
        dist.barrier()
        cut.append(process_group.sever())
        process_group.leave()
    return found, cut, strangers.stop() > 0


def test_the_links_of_a_group_are_told_from_the_connections_of_strangers():
    with members(3) as (group, store):
        assert together(group, among_strangers, store) == [([2] * 4, [2] * 4, True)] * 3


def with_a_server_of_its_own(rank, store):
    form(rank, 2, store)
    with process_group.watched():  # opened in the same moment as the group, at the same address
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        served, _ = server.accept()
        dist.new_group([0, 1])
    dist.barrier()
    cut = process_group.sever()
    client.sendall(b"?")
    late = socket.create_connection(server.getsockname())
    late.sendall(b"!")
    return cut, served.recv(1) + server.accept()[0].recv(1)


def test_a_server_that_opens_while_a_group_forms_is_not_cut():
    with members(2) as (group, store):
        assert together(group, with_a_server_of_its_own, store) == [(2, b"?!")] * 2


def held():
    assert process_group._generation is not None
    return process_group._generation.links._ends


def options_of_links():
    return [{name: end.getsockopt(*option) for name, option in OPTIONS.items()} for end in held()]


def bounded(rank, store):
    form(rank, 2, store)
    at_first = options_of_links()
    process_group._generation.links.bound(3.0)
    with process_group.watched():
        dist.new_group([0, 1])
    later = options_of_links()
    dist.barrier()
    process_group.leave()
    return at_first, later


def test_every_link_is_bounded_those_of_later_groups_too():
    ten = {"user timeout": 10_000, "keepalive": 1, "idle": 3}
    three = {"user timeout": 3_000, "keepalive": 1, "idle": 1}
    with members(2) as (group, store):
        assert together(group, bounded, store) == [([ten], [three, three])] * 2


ALONE = Membership(generation=0, rank=0, world_size=1)


@pytest.fixture
def line():
    store = serve_store()
    line = StoreLine(("127.0.0.1", store.port), LIMIT)
    yield line
    line.cut()


def test_elsewhere_than_on_linux_nothing_is_found_and_nothing_cut(monkeypatch, line):
    monkeypatch.setattr(sockets.sys, "platform", "darwin")
    mine = Links(ALONE, limit=LIMIT)
    mine.meet_at(line)
    with mine:
        assert len(mine) == 0
    assert mine.sever() == 0


@pytest.mark.parametrize("moment", ["before the store", "before the block", "in the block"])
def test_what_is_cut_does_not_form(moment, line):
    mine = Links(ALONE, limit=LIMIT)

    def form_and_cut():
        if moment == "before the store":
            mine.sever()
        mine.meet_at(line)
        if moment == "before the block":
            mine.sever()
        with mine:
            mine.sever()

    with pytest.raises(dist.DistNetworkError, match="generation 0, rank 0 of 1: cut while it was formed"):
        form_and_cut()
    assert mine.sever() == 0


def test_the_line_to_the_store_is_cut_only_while_a_group_forms(line):
    formed, forming = Links(ALONE, limit=LIMIT), Links(ALONE, limit=LIMIT)
    formed.meet_at(line)
    with formed:
        pass
    formed.sever()
    assert line.answers()
    forming.meet_at(line)
    forming.sever()
    assert not line.answers()


CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1  # unshare(2), netdevice(7)


def enter_network(of=None):
    """Lead this thread into a network of its own, or into that of another process; returns why it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if of is None:
        failed = libc.unshare(CLONE_NEWNET)
    else:
        with open(f"/proc/{of}/ns/net") as network:
            failed = libc.setns(network.fileno(), CLONE_NEWNET)
    return os.strerror(ctypes.get_errno()) if failed else ""


def switch_network(flags):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def serve_here():
    served.append(serve_store())
    return "127.0.0.1", served[-1].port


served = []


def form_bounded(rank, store):
    form(rank, 2, store)
    process_group._generation.links.bound(1.0)
    dist.barrier()


def exchange_for_ever(rank):
    while True:
        if rank == 0:
            dist.recv(torch.empty(1), 1)
        else:
            dist.send(torch.ones(1), 0)


def test_both_ends_of_a_network_that_is_cut_raise():
    with members(2) as (group, _):
        one, other = group
        if refused := one.do(enter_network):
            pytest.skip(f"no process here may have a network of its own: {refused}")
        one.do(switch_network, IFF_UP)
        assert other.do(enter_network, one.pid) == ""
        together(group, form_bounded, one.do(serve_here))
        begin(group, exchange_for_ever)
        assert one.at_once(enter_network, one.pid) == ""
        one.at_once(switch_network, 0)
        for member in group:
            with pytest.raises(RaisedThereError, match="communication"):
                member.end()
