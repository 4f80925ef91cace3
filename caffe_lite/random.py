"""The seed everything random in a net comes from.

`set_random_seed` makes what follows repeatable: each net takes the next seed of the sequence, and each of its layers
derives its own from that and the layer's name, so that a new layer does not change what the others draw.
"""

from __future__ import annotations

import zlib

import numpy as np

_seeds = np.random.default_rng()


def set_random_seed(seed: int) -> None:
    """Start the sequence of seeds anew.  `seed` is a non-negative integer."""
    global _seeds
    _seeds = np.random.default_rng(seed)


def next_seed() -> int:
    """Return the next seed of the sequence, an integer of 63 bits."""
    return int(_seeds.integers(2**63))


def layer_generator(net_seed: int, layer_name: str) -> np.random.Generator:
    """Return the generator that belongs to `layer_name` in a net with `net_seed`."""
    return np.random.default_rng([net_seed, zlib.crc32(layer_name.encode())])
