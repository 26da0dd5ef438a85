"""The driver's own log: what it prints while a run is on, and with what it ended, in `logs/driver.log`.

Lines that Ray repeats for ranks are left out: each rank has a file of its own. Called by `training.py`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from orchestrator.errors import FencedError, TrainingError
from workers.logs import LineLog, LogPlace, Tee

__all__ = ["driver_log"]

_OF_A_RANK = re.compile(r"(?:\x1b\[[0-9;]*m)*\(RankActor\b[^)]*\)")


@contextlib.contextmanager
def driver_log(place: LogPlace) -> Iterator[None]:
    """Around a run: standard output and error go where they went, and line by line into the driver's log."""
    log = LineLog(place, "driver", "driver")
    out, err = Tee(sys.stdout, "out", log), Tee(sys.stderr, "err", log)
    for tee in (out, err):
        tee.passes = lambda text: _OF_A_RANK.match(text) is None
    sys.stdout, sys.stderr = out, err
    try:
        yield
    except FencedError:  # the log is another driver's now
        raise
    except BaseException as error:
        told = [error.traceback] if isinstance(error, TrainingError) and error.traceback else []
        for line in "\n".join([*told, f"error: {str(error) or type(error).__name__}"]).splitlines():
            log.take("err", line)
        raise
    finally:
        if sys.stdout is out:  # who put another stream there wants it to stay
            sys.stdout = out.stream
        if sys.stderr is err:
            sys.stderr = err.stream
        out.finish()
        err.finish()
        log.close()
