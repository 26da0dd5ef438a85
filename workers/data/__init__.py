"""The global data order and the loader that walks it."""

from workers.data.loader import GlobalLoader
from workers.data.permutation import permute
from workers.data.sampler import GlobalBatches

__all__ = ["GlobalBatches", "GlobalLoader", "permute"]
