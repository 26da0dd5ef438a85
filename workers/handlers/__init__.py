"""Handlers for an `Engine`, on a rank or in a notebook; the driver attaches the same: `orchestrator.attach(…)`."""

from workers.handlers.batch_size_finder import BatchSizeFinder
from workers.handlers.check_divergence import DIVERGED, CheckDivergence
from workers.handlers.early_stopping import EarlyStopping
from workers.handlers.ema import EMA
from workers.handlers.garbage_collection import GarbageCollection
from workers.handlers.lr_finder import LRFinder
from workers.handlers.lr_schedule import LRSchedule
from workers.handlers.memory import Memory
from workers.handlers.norms import Norms
from workers.handlers.profile import Profile
from workers.handlers.reduce_lr_on_plateau import ReduceLROnPlateau
from workers.handlers.terminate_on_nan import NOT_FINITE, TerminateOnNan
from workers.handlers.throughput import Throughput
from workers.handlers.time_limit import TimeLimit
from workers.handlers.timers import Timers

__all__ = [
    "DIVERGED",
    "EMA",
    "NOT_FINITE",
    "BatchSizeFinder",
    "CheckDivergence",
    "EarlyStopping",
    "GarbageCollection",
    "LRFinder",
    "LRSchedule",
    "Memory",
    "Norms",
    "Profile",
    "ReduceLROnPlateau",
    "TerminateOnNan",
    "Throughput",
    "TimeLimit",
    "Timers",
]
