"""The weights and inputs that the original Caffe and caffe_lite both start from: numpy alone rebuilds them.

The recorded runs in `tests/reference` set every param to `weight(layer_name, index, shape)` before the first pass.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def weight(layer_name: str, index: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return param `index` of a layer: normals of variance 2 / fan-in for a first matrix, 0.1 times normals else."""
    normals = np.random.default_rng([zlib.crc32(layer_name.encode()), index]).standard_normal(tuple(shape))
    is_matrix = index == 0 and len(shape) > 1
    scale = np.sqrt(2.0 / int(np.prod(shape[1:]))) if is_matrix else 0.1
    return np.asarray(normals * scale, np.float32)


def data(seed: int, shape: Sequence[int], scale: float = 1.0) -> NDArray[np.float32]:
    """Return normals of standard deviation `scale`."""
    return np.asarray(np.random.default_rng(seed).standard_normal(tuple(shape)) * scale, np.float32)


def summary(array: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the sixteen figures that stand for a large blob in the recorded runs.

    They are its size, mean, mean magnitude, Euclidean norm, largest magnitude and eleven elements at even steps.
    """
    flat = np.asarray(array, np.float64).ravel()
    samples = flat[np.linspace(0, flat.size - 1, 11).astype(int)]
    magnitude = np.abs(flat)
    return np.concatenate([[flat.size, flat.mean(), magnitude.mean(), np.sqrt(flat @ flat), magnitude.max()], samples])
