"""The global data order and the loaders that walk it, and whatever else a rank reads."""

from workers.data.fingerprint import fingerprint_mismatch
from workers.data.loader import GlobalLoader
from workers.data.permutation import permute
from workers.data.randomness import SampleRng, sample_rng
from workers.data.sampler import GlobalBatches
from workers.data.sources import RankBatches, StatefulBatches

__all__ = [
    "GlobalBatches",
    "GlobalLoader",
    "RankBatches",
    "SampleRng",
    "StatefulBatches",
    "fingerprint_mismatch",
    "permute",
    "sample_rng",
]
