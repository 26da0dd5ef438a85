"""What the kernel tells of lack of memory. Who was killed for it can't tell by itself: others on its machine can.

Told in every pulse; the driver looks at its own machine too.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["kernel_kills"]

_COUNTERS = Path("/proc/vmstat")


def kernel_kills() -> int:
    """Processes of this machine that were killed for lack of memory since it was started, in containers as well.

    Returns:
        Their number; 0 where the kernel does not count them.

    Example:
        >>> kernel_kills() >= 0
        True
    """
    try:
        counters = _COUNTERS.read_text()
    except OSError:  # not Linux, or a sandbox
        return 0
    told = dict(line.split(maxsplit=1) for line in counters.splitlines())
    return int(told.get("oom_kill", 0))
