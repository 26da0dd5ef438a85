"""Tell whose fault an exception on a rank is: the user's code, a peer that is gone, memory, or what the run stands on.

When one rank fails, the others fail in their collectives; only the first is worth a report. Used by the session.
"""

from __future__ import annotations

import dis
import os
import re
from pathlib import Path

import torch
import torch.autograd
import torch.distributed as dist
import torch.nn.parallel

from workers.errors import UnreadableError
from workers.parcels import FaultKind
from workers.tracebacks import is_ours

__all__ = ["fault_kind"]

# What gloo, the store and NCCL say when a peer is gone or late; they raise plain RuntimeErrors from C++.
_LOST_PEER = re.compile(
    r"gloo[/.\\]|Connection (closed|reset) by peer|Connection refused|Socket (closed|Timeout)|Broken pipe"
    r"|NCCL (error|communicator)|ncclRemoteError|[Tt]imed out (waiting|after)|wait timeout|Application timeout caused"
)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory: you tried to allocate")  # torch, on the CPU
_TALKING = tuple(
    f"{Path(module.__file__ or '').parent}{os.sep}" for module in (dist, torch.nn.parallel, torch.autograd)
)
_KINDS = tuple(
    getattr(dist, name) for name in ("DistBackendError", "DistNetworkError", "DistStoreError") if hasattr(dist, name)
)


def fault_kind(error: BaseException) -> FaultKind:
    """Name the kind of fault.

    `communication` if the exception says that a peer or the store is gone, `memory` if there was not enough of it,
    `system` if a checkpoint can't be read, else `user`.

    Args:
        error: what the training thread caught; its causes are looked at too.

    Example:
        >>> fault_kind(ValueError("wrong shape"))
        'user'
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    if isinstance(error, UnreadableError):
        return "system"
    while cause is not None and all(cause is not known for known in seen):  # a chain may bite its own tail
        if isinstance(cause, _KINDS) or (
            isinstance(cause, RuntimeError) and _LOST_PEER.search(_text(cause)) and not _is_raised_by_others(cause)
        ):
            return "communication"
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or (
            isinstance(cause, RuntimeError) and _NO_MEMORY.search(_text(cause))
        ):
            return "memory"
        seen.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "user"


def _is_raised_by_others(error: BaseException) -> bool:
    """Whether a `raise` outside of what talks to peers brought it up, whatever it says: it is no word of a collective.

    Those raise in C++, below a call; of what is known to come from there, nothing can be told.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code, at = trace.tb_frame.f_code, trace.tb_lasti
    known = 0 <= at < len(code.co_code)  # a frame that C has made up has no code
    raised = known and dis.opname[code.co_code[at]] == "RAISE_VARARGS"
    return raised and not code.co_filename.startswith(_TALKING) and not is_ours(code.co_filename)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's __str__ may raise; then it is a user's exception
        return ""
