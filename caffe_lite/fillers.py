"""The fillers: what a param, or a DummyData top, holds before anything is learned.

`fill(filler_param, shape, rng)` is all there is to call.  The seven types and the ``FillerParameter`` fields they read:

    constant            value
    uniform             min, max                x ~ U(min, max)
    gaussian            mean, std, sparse       x ~ N(mean, std²)
    positive_unitball   -                       x ~ U(0, 1), then every row (all axes after the first) sums to one
    xavier              variance_norm           x ~ U(-sqrt(3 / n), sqrt(3 / n))
    msra                variance_norm           x ~ N(0, 2 / n)
    bilinear            -                       the interpolation weights of an upsampling Deconvolution

For a shape (s0, s1, ...) of `count` elements, fan_in = count / s0 and fan_out = count / s1 (count where there is no
s1); n is fan_in (``FAN_IN``, the default), fan_out (``FAN_OUT``) or their mean (``AVERAGE``).

Caffe's quirks: these fans are those of a convolution, (num_output, channels, ...); an inner product's fan_out therefore
counts its outputs, and ``transpose: true`` swaps the two.  ``sparse`` keeps an element with probability sparse / s0:
s0 is the number of outputs, although the field is about the inputs that an output keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from caffe_lite.errors import NetError, ShapeError, suggest

__all__ = ["FILLERS", "fill"]

Shape: TypeAlias = tuple[int, ...]
Array: TypeAlias = NDArray[np.float32]
Filler: TypeAlias = Callable[[Any, Shape, np.random.Generator], Array]


def fill(filler_param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    """Return a float32 array of `shape`, filled as the ``FillerParameter`` says, with random numbers from `rng`.

    Raises:
        NetError: an unknown type, or options that the type cannot work with.
        ShapeError: a shape that the type cannot fill.
    """
    kind = filler_param.type
    if kind not in FILLERS:
        hint = suggest(kind, FILLERS)
        raise NetError(f"unknown filler type '{kind}'. {hint}{' ' if hint else ''}Known types: {', '.join(FILLERS)}.")
    if 0 in shape:
        raise ShapeError(f"a {kind} filler needs at least one element. Received shape {shape}.")
    if filler_param.sparse != -1 and kind != "gaussian":
        raise NetError(f"sparse belongs to the gaussian filler. Received sparse {filler_param.sparse}, type '{kind}'.")
    return FILLERS[kind](filler_param, shape, rng)


def _constant(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    return np.full(shape, param.value, np.float32)


def _uniform(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    if not param.min <= param.max:
        raise NetError(f"a uniform filler needs min <= max. Received min {param.min:g}, max {param.max:g}.")
    return _draw_uniform(param.min, param.max, shape, rng)


def _gaussian(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    if not param.std > 0:
        raise NetError(f"a gaussian filler needs std > 0. Received std {param.std:g}.")
    values = _draw_gaussian(param.mean, param.std, shape, rng)
    if param.sparse != -1:
        outputs = _leading(shape, "gaussian")
        if not 0 <= param.sparse <= outputs:
            raise NetError(f"sparse must be -1 (off) or 0 to {outputs} for shape {shape}. Received {param.sparse}.")
        values *= rng.random(shape, dtype=np.float32) < param.sparse / outputs
    return values


def _positive_unitball(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    rows = _draw_uniform(0, 1, shape, rng).reshape(_leading(shape, "positive_unitball"), -1)
    rows /= rows.sum(axis=1, keepdims=True)
    return rows.reshape(shape)


def _xavier(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    limit = math.sqrt(3 / _fan(param, shape))
    return _draw_uniform(-limit, limit, shape, rng)


def _msra(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    return _draw_gaussian(0, math.sqrt(2 / _fan(param, shape)), shape, rng)


def _bilinear(param: Any, shape: Shape, rng: np.random.Generator) -> Array:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ShapeError(f"a bilinear filler needs a square kernel, shape (n, c, k, k). Received shape {shape}.")
    size = shape[3]
    factor = math.ceil(size / 2)
    center = (size - 1) / (2 * factor)
    ramp = 1 - np.abs(np.arange(size) / factor - center)
    return np.broadcast_to(np.outer(ramp, ramp), shape).astype(np.float32)


FILLERS: dict[str, Filler] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}


# Drawn and scaled in float32: the fillers of a large net would otherwise be its peak of memory.


def _draw_uniform(low: float, high: float, shape: Shape, rng: np.random.Generator) -> Array:
    values = rng.random(shape, dtype=np.float32)
    values *= np.float32(high - low)
    values += np.float32(low)
    return values


def _draw_gaussian(mean: float, std: float, shape: Shape, rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    values += np.float32(mean)
    return values


def _leading(shape: Shape, kind: str) -> int:
    if not shape:
        raise ShapeError(f"a {kind} filler like this needs at least one axis. Received shape {shape}.")
    return shape[0]


def _fan(param: Any, shape: Shape) -> float:
    """Return n, by which xavier and msra divide."""
    count = math.prod(shape)
    fan_in = count / _leading(shape, param.type)
    fan_out = count / shape[1] if len(shape) > 1 else count
    if param.variance_norm == param.FAN_OUT:
        return fan_out
    if param.variance_norm == param.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_in
