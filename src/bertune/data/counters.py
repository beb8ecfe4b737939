"""Random numbers keyed by where they are used, and never by what was drawn before.

A number is a function of a seed, a name and the place it belongs to, so that work which is taken up in the middle, cut
otherwise or done in another order sees the same ones.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def spread(values: np.ndarray) -> np.ndarray:
    """uint64 to uint64: the finaliser of SplitMix (Steele et al. 2014), which makes neighbours unlike each other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def base(*words: object) -> np.uint64:
    """The key of a whole stream of numbers, from whatever names it: a seed, a purpose, a pass."""
    digest = hashlib.blake2b(" ".join(map(str, words)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def keyed(start: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """uint64, as `numbers` (integers from 0): the key of each number of the stream `start`."""
    with np.errstate(over="ignore"):
        return spread(start + numbers.astype(np.uint64) * _GOLDEN)


def uniform(drawn: np.ndarray, site: int) -> np.ndarray:
    """float64 in [0, 1), as `drawn` (keys): the draw number `site` of each key."""
    with np.errstate(over="ignore"):
        mixed = spread(drawn + np.uint64(site) * _GOLDEN)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)
