"""Training on one rank: an engine that fires events, and what hangs on it. Usable alone, without Ray."""

from workers.dispatch import RemovableEventHandle
from workers.engine import Engine
from workers.errors import DataLoaderEmptyError, RankfireError
from workers.events import Event, EventEnum, Events
from workers.state import State

__all__ = [
    "DataLoaderEmptyError",
    "Engine",
    "Event",
    "EventEnum",
    "Events",
    "RankfireError",
    "RemovableEventHandle",
    "State",
]
