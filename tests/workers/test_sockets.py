"""Looking at this process' sockets: it finds what was opened meanwhile, and changes nothing."""

import fcntl
import os
import socket

from workers.sockets import inodes, opened_since


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
