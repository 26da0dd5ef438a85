"""A keyed permutation of 0 … n-1 that is computed, not stored: any position in O(1), nothing that grows with n.

A balanced Feistel network over the next even power of two, walked in cycles until the value falls below n. Being a
bijection for every key, it visits each sample of a pass exactly once, whoever asks for which position.
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002), the cycle-walking construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["permute"]

ROUNDS = 6
_MASK64 = (1 << 64) - 1


def permute(positions: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Map positions of a pass to sample indices.

    Args:
        positions: integers in 0 … n-1, any shape.
        n: number of samples, at least 1.
        key: any integer; another key is another order.

    Returns:
        int64 indices in 0 … n-1, the shape of `positions`.

    Raises:
        ValueError: n is not positive, or a position lies outside 0 … n-1.

    Example:
        >>> sorted(permute(range(5), 5, key=1).tolist())
        [0, 1, 2, 3, 4]
    """
    asked = np.asarray(positions, dtype=np.int64)
    if n < 1:
        raise ValueError(f"permute: n: expected at least 1, received {n}")
    if asked.size and (asked.min() < 0 or asked.max() >= n):
        raise ValueError(
            f"permute: positions: expected 0 … {n - 1}, received {asked.min()} … {asked.max()}; take them modulo n"
        )
    bits = max(2, (n - 1).bit_length())
    half = (bits + bits % 2) // 2
    keys = _round_keys(key)
    indices = asked.astype(np.uint64)
    outside = np.ones(indices.shape, dtype=bool)
    while outside.any():  # on average at most four walks, since the domain is below 4 n
        indices[outside] = _encrypt(indices[outside], half, keys)
        outside = indices >= np.uint64(n)
    return indices.astype(np.int64)


def _round_keys(key: int) -> list[np.uint64]:
    """One 64-bit key per round; consecutive keys and rounds give unrelated words (splitmix64's finaliser)."""
    keys = []
    for round_number in range(ROUNDS):
        word = (key * ROUNDS + round_number + 1) * 0x9E3779B97F4A7C15 & _MASK64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK64
        keys.append(np.uint64(word ^ word >> 31))
    return keys


def _encrypt(values: NDArray[np.uint64], half: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    """All rounds over numbers of 2 * half bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(32)
            left, right = right, left ^ (mixed & mask)
    joined: NDArray[np.uint64] = (left << shift) | right
    return joined
