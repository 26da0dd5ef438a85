"""Looking at this process' sockets: it finds what was opened meanwhile, and changes nothing."""

import fcntl
import os
import socket
import threading

from tests.processes import LIMIT
from tests.waiting import wait_until
from workers.sockets import calling_since, inodes, opened_since, shut


def test_finding_changes_nothing_of_what_it_looks_at():
    before = frozenset(inodes())
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client, socket.socket(type=socket.SOCK_DGRAM) as udp:
        socket.setdefaulttimeout(5.0)
        try:
            found = {end.descriptor: end for end in opened_since(before)}
            copy = found[client.fileno()].held()
        finally:
            socket.setdefaulttimeout(None)
        assert copy is not None
        copy.close()
        flags = [fcntl.fcntl(end, fcntl.F_GETFL) & os.O_NONBLOCK for end in (server, client)]
        assert set(found) == {server.fileno(), client.fileno()}
        assert (found[server.fileno()].listens, found[client.fileno()].listens) == (True, False)
        assert found[client.fileno()].peer == server.getsockname()
        assert udp.fileno() not in found
    assert flags == [0, 0]


def test_a_descriptor_that_was_taken_over_is_not_held():
    server = socket.create_server(("127.0.0.1", 0))
    [end] = [end for end in opened_since(frozenset()) if end.descriptor == server.fileno()]
    server.close()
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, end.descriptor)
    assert end.held() is None
    for descriptor in {other, end.descriptor}:
        os.close(descriptor)


def test_who_calls_somebody_that_does_not_answer_is_freed_and_nobody_else():
    errors = []

    def call(address):
        try:
            socket.create_connection(address, timeout=LIMIT).close()
        except OSError as error:
            errors.append(error)

    full = socket.create_server(("127.0.0.1", 0), backlog=0)  # the kernel lets one in, and drops others
    with full, socket.create_connection(full.getsockname()) as answered:
        before = frozenset(inodes())
        caller = threading.Thread(target=call, args=(full.getsockname(),))
        caller.start()
        wait_until(lambda: [end.close() for end in calling_since(before)], what="a call without an answer")
        assert calling_since(frozenset(inodes())) == []
        shut(calling_since(before))
        caller.join(LIMIT)
        assert not caller.is_alive()
        assert answered.getpeername() == full.getsockname()
    assert len(errors) == 1
    assert not isinstance(errors[0], TimeoutError)
