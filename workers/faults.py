"""Tell whose fault an exception on a rank is: the user's code, or a peer that is gone.

When one rank fails, the others fail in their collectives; only the first is worth a report. Used by the session.
"""

from __future__ import annotations

import re

import torch.distributed as dist

from workers.parcels import FaultKind

__all__ = ["fault_kind"]

# What gloo, the store and NCCL say when a peer is gone or late; they raise plain RuntimeErrors from C++.
_LOST_PEER = re.compile(
    r"gloo[/.\\]|Connection (closed|reset) by peer|Connection refused|Socket (closed|Timeout)|Broken pipe"
    r"|NCCL (error|communicator)|ncclRemoteError|[Tt]imed out (waiting|after)|wait timeout|Application timeout caused"
)
_KINDS = tuple(
    getattr(dist, name) for name in ("DistBackendError", "DistNetworkError", "DistStoreError") if hasattr(dist, name)
)


def fault_kind(error: BaseException) -> FaultKind:
    """`communication` if the exception says that a peer or the store is gone, else `user`.

    Args:
        error: what the training thread caught; its causes are looked at too.

    Example:
        >>> fault_kind(ValueError("wrong shape"))
        'user'
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _KINDS) or (isinstance(seen, RuntimeError) and _LOST_PEER.search(str(seen))):
            return "communication"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "user"
