"""Whose fault it is: the user's, or a peer's that is gone."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.parallel.distributed
import torch.utils.data

import workers.collectives
from workers.faults import fault_kind

LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1",
    "[enforce fail at gloo/transport/tcp/buffer.cc:72] Timed out waiting 2000ms for recv operation to complete",
    "Connection reset by peer",
    "Socket Timeout",
    "Broken pipe",
    "NCCL communicator was aborted on rank 0",
    "ncclRemoteError: A call failed possibly due to a network error",
    "wait timeout after 2000ms, keys: /generation-0/0",
]


@pytest.mark.parametrize("text", LOST)
def test_a_peer_that_is_gone_is_no_fault_of_the_user(text):
    assert fault_kind(RuntimeError(text)) == "communication"


@pytest.mark.parametrize("kind", ["DistBackendError", "DistNetworkError", "DistStoreError"])
def test_torch_has_types_for_some_of_them(kind):
    assert fault_kind(getattr(dist, kind)("anything")) == "communication"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong shape"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
        RuntimeError(),
        ConnectionResetError("Connection reset by peer"),
    ],
)
def test_everything_else_is_the_users(error):
    assert fault_kind(error) == "user"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_memory_that_runs_out_is_told_from_other_mistakes(error):
    assert fault_kind(error) == "memory"
    assert fault_kind(chain(ValueError("step failed"), __cause__=error)) == "memory"


def test_what_torch_says_where_there_is_no_memory_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert fault_kind(raised.value) == "memory"


PEER = "Connection closed by peer"


def raised_in(filename, error):
    """As it comes out of code in such a file."""
    try:
        exec(compile("def fail(error):\n    raise error\nfail(error)", filename, "exec"), {"error": error})
    except Exception as came:
        return came


@pytest.mark.parametrize("filename", ["/home/user/storage.py", torch._utils.__file__, torch.utils.data.__file__])
def test_words_of_a_lost_peer_are_the_users_where_other_code_raised_them(filename):
    assert fault_kind(raised_in(filename, RuntimeError(PEER))) == "user"
    assert fault_kind(raised_in(filename, dist.DistBackendError(PEER))) == "communication"


@pytest.mark.parametrize("module", [dist, torch.nn.parallel.distributed, workers.collectives])
def test_they_are_a_peers_where_a_collective_raised_them(module):
    assert fault_kind(raised_in(module.__file__, RuntimeError(PEER))) == "communication"


def test_what_was_raised_because_of_a_lost_peer_is_no_fault_of_the_user():
    lost = raised_in(dist.__file__, RuntimeError(PEER))
    mine = raised_in("/home/user/train.py", chain(RuntimeError(f"the step failed: {PEER}"), __cause__=lost))
    assert fault_kind(mine) == "communication"


def test_what_a_call_into_c_raised_may_be_a_peers():
    with pytest.raises(RuntimeError, match=PEER) as raised:
        torch.device(PEER)  # says that this is no device, in C++
    assert fault_kind(raised.value) == "communication"


def chain(error, **links):
    for name, link in links.items():
        setattr(error, name, link)
    return error


def test_causes_and_contexts_are_looked_at():
    lost = RuntimeError("Connection closed by peer")
    assert fault_kind(chain(ValueError("step failed"), __cause__=lost)) == "communication"
    assert fault_kind(chain(ValueError("step failed"), __context__=lost)) == "communication"


def test_a_context_that_was_suppressed_is_not():
    lost = RuntimeError("Connection closed by peer")
    assert fault_kind(chain(ValueError("mine"), __context__=lost, __suppress_context__=True)) == "user"


def test_a_chain_that_bites_its_tail_has_an_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert fault_kind(first) == "user"


class SpeechlessError(RuntimeError):
    def __str__(self):
        raise TypeError("no words")


def test_an_exception_whose_str_raises_is_the_users():
    assert fault_kind(SpeechlessError()) == "user"
