"""Which errors of a storage are worth another try, and how long to wait before it.

Used by both sides: for what is written of a checkpoint, and for what is listed, read and verified of all of them.
A full disk, a missing right or a damaged file stays what it is; a network file system that stumbled often does not.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["DELAYS", "is_transient", "retrying"]

DELAYS = (0.1, 0.5, 2.5)  # seconds before the second, third and fourth try
_TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EREMOTEIO,
    errno.EBUSY,  # s3fs: 503 SlowDown
}  # fmt: skip
_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def is_transient(error: OSError) -> bool:
    """Whether the same call may succeed a moment later.

    Example:
        >>> is_transient(OSError(errno.ESTALE, "stale handle")), is_transient(OSError(errno.ENOSPC, "disk full"))
        (True, False)
    """
    return isinstance(error, TimeoutError | ConnectionError) or error.errno in _TRANSIENT


def retrying(what: str, function: Callable[[], Result]) -> Result:
    """Call a function, and again after an error that may pass.

    Args:
        what: what it does, for the log.
        function: may be called several times.

    Raises:
        OSError: the last try failed, or one failed for good.

    Example:
        >>> retrying("add", lambda: 1 + 1)
        2
    """
    for number, delay in enumerate(DELAYS, start=1):
        try:
            return function()
        except OSError as error:
            if not is_transient(error):
                raise
            _logger.warning("%s: try %d failed, another follows in %g s: %s", what, number, delay, error)
            time.sleep(delay)
    return function()
