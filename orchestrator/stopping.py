"""Stopping a run from elsewhere: a request in its folder, `stop/TOKEN.json`, which only the owner that it means heeds.

Whoever can write where the run is stored can stop it, from any machine; the driver then does what it does at Ctrl-C.
Called by `rankfire stop` and by `training.py`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from orchestrator.notice import notice
from workers.folder import Folder
from workers.storage import Storage

__all__ = ["Heeding", "asked_to_stop", "request_stop"]

FOLDER = "stop"
LOOK = 0.5  # seconds between two looks into a folder
LOOK_FAR = 3.0  # the same on an object store, where each one is paid for


def request_stop(home: Storage, token: int) -> str | None:
    """Ask the owner of a run to stop it well.

    Args:
        home: the run's folder.
        token: the owner's fencing token, so that no later owner takes it for its own.

    Returns:
        None, or who has asked before, in words.
    """
    asked = {"by": f"{_user()}@{socket.gethostname()}", "time": time.time()}
    try:
        home.claim(_name(token), (json.dumps(asked) + "\n").encode())
    except FileExistsError:
        return asked_to_stop(home, token) or "somebody"
    return None


def asked_to_stop(home: Storage, token: int) -> str | None:
    """Who has asked this owner to stop, and when, in words; None: nobody."""
    try:
        asked = json.loads(home.read(_name(token)))
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(asked["time"]))
        return f"{asked['by']} at {when}"
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "somebody"


class Heeding:
    """A context in which requests to stop are heeded, looked for by a thread of its own.

    Args:
        home: the run's folder.
        token: the fencing token of this owner.
        stop: called at most once, on the thread.
    """

    def __init__(self, home: Storage, token: int, stop: Callable[[], None]) -> None:
        self._home = home
        self._token = token
        self._stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rankfire-stop", daemon=True)

    def __enter__(self) -> Heeding:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=30.0)
        with contextlib.suppress(OSError):  # it means nothing any more
            self._home.remove(FOLDER)

    def _look(self) -> None:
        pause = LOOK if isinstance(self._home, Folder) else LOOK_FAR
        while not self._ended.wait(pause):
            with contextlib.suppress(OSError):  # a storage that stumbles is asked again
                who = asked_to_stop(self._home, self._token)
                if who is not None:
                    notice(f"{who} asked to stop: stopping at the next iteration")
                    self._stop()
                    return


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "somebody"


def _name(token: int) -> str:
    return f"{FOLDER}/{token:08d}.json"
