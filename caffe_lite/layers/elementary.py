"""Elementary functions of each element: AbsVal, Power, Exp, Log, Threshold, Clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError
from caffe_lite.layers.base import register
from caffe_lite.layers.neuron import Neuron


def power_of(base: float, exponent: float) -> float:
    """Return base^exponent, rounded to a float32; infinite or NaN where C's pow is."""
    with np.errstate(all="ignore"):
        return float(np.float32(np.power(np.float64(base), np.float64(exponent))))


def natural_log_of_base(options: Any) -> float:
    """Return log(base) of an ``ExpParameter`` or ``LogParameter``, in which -1 stands for e.

    Raises `NetError` unless the base is positive and finite.
    """
    base: float = options.base
    if base == -1:
        return 1.0
    if not 0 < base < math.inf:
        raise NetError(f"base must be positive and finite, or -1 for e. Received base {base:g}.")
    return math.log(base)


@register("AbsVal")
class AbsVal(Neuron):
    """Takes away the sign.

    Forward: y = abs(x).
    Backward: dx = dy * sign(x), 0 where x is 0.

    Shapes: any; the top has the bottom's.

    It has no options.

    Caffe's quirks: it may not work in place, since the sign would be lost.
    """

    in_place = False

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("abs_forward", bottom[0], bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("abs_backward", bottom[0], bottom[0].data_buffer, *diffs)


@register("Power")
class Power(Neuron):
    """Raises a linear function of each element to a power; with power 1 it is that function.

    Forward: y = (scale * x + shift)^power.
    Backward: dx = dy * power * scale * (scale * x + shift)^(power - 1).

    Shapes: any; the top has the bottom's.

    ``power_param { power, scale, shift }``: 1, 1 and 0 by default.

    Caffe's quirks: if power or scale is 0, y is the constant 1 or shift^power whatever x is, NaN included.  A negative
    base gives NaN unless the power is whole.  In place the backward pass takes y for x, so that the gradient is wrong
    unless power is 0 or 1, here as there.  Unlike the original's, the gradient is no NaN where the base is 0 and the
    power is above 1.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.power_param
        self._power: float = options.power
        self._linear: tuple[float, float] = options.scale, options.shift
        self._factor: float = options.power * options.scale  # of the derivative

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        x, y = bottom[0].data_buffer, top[0].data_buffer
        if self._factor == 0:
            self.device.fill(y, power_of(self._linear[1], self._power))
        elif self._power == 1:
            self.launch_each("power_forward_linear", bottom[0], *self._linear, x, y)
        elif self._power == 2:
            self.launch_each("power_forward_square", bottom[0], *self._linear, x, y)
        else:
            self.launch_each("power_forward", bottom[0], self._power, *self._linear, x, y)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if not propagate_down[0]:
            return
        x, dy, dx = bottom[0].data_buffer, top[0].diff_buffer, bottom[0].diff_buffer
        if self._factor == 0:
            self.device.fill(dx, 0)
        elif self._power == 1:
            self.launch_each("power_backward_linear", bottom[0], self._factor, dy, dx)
        elif self._power == 2:
            self.launch_each("power_backward_square", bottom[0], self._factor, *self._linear, x, dy, dx)
        else:
            at_zero = self._factor * power_of(0, self._power - 1)
            options = self._factor, *self._linear, at_zero
            self.launch_each("power_backward", bottom[0], *options, x, top[0].data_buffer, dy, dx)


@register("Exp")
class Exp(Neuron):
    """Raises a base to a linear function of each element.

    Forward: y = base^(scale * x + shift).
    Backward: dx = dy * y * scale * log(base).

    Shapes: any; the top has the bottom's.

    ``exp_param { base, scale, shift }``: -1, which stands for e, 1 and 0 by default; base must be positive otherwise.

    Caffe's quirks: it is computed as base^shift * exp(log(base) * scale * x), so that a large shift may overflow where
    the result would not.  It may work in place.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.exp_param
        self._inner = natural_log_of_base(options) * options.scale
        self._outer = power_of(math.e if options.base == -1 else options.base, options.shift)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        values = bottom[0].data_buffer, top[0].data_buffer
        self.launch_each("exp_forward", bottom[0], self._inner, self._outer, *values)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("exp_backward", bottom[0], self._inner, top[0].data_buffer, *diffs)


@register("Log")
class Log(Neuron):
    """Takes the logarithm of a linear function of each element.

    Forward: y = log(scale * x + shift) / log(base).
    Backward: dx = dy * scale / (log(base) * (scale * x + shift)).

    Shapes: any; the top has the bottom's.

    ``log_param { base, scale, shift }``: -1, which stands for e, 1 and 0 by default; base must be positive otherwise,
    and not 1.

    Caffe's quirks: what is not positive gives -inf or NaN.  In place the backward pass takes y for x, so that the
    gradient is wrong, here as there.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.log_param
        log_base = natural_log_of_base(options)
        if log_base == 0:
            raise NetError("base must not be 1, whose logarithm is 0. Received base 1.")
        self._linear: tuple[float, float] = options.scale, options.shift
        self._factor = 1 / log_base

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        values = bottom[0].data_buffer, top[0].data_buffer
        self.launch_each("log_forward", bottom[0], *self._linear, self._factor, *values)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            factor, diffs = self._linear[0] * self._factor, (top[0].diff_buffer, bottom[0].diff_buffer)
            self.launch_each("log_backward", bottom[0], *self._linear, factor, bottom[0].data_buffer, *diffs)


@register("Threshold")
class Threshold(Neuron):
    """Says of each element whether it exceeds a threshold.

    Forward: y = 1 where x > threshold, else 0.
    Backward: none; it is an error to ask for it.

    Shapes: any; the top has the bottom's.

    ``threshold_param { threshold }``: 0 by default.

    Caffe's quirks: NaN exceeds nothing.  It may work in place.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._threshold: float = self.param.threshold_param.threshold

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("threshold_forward", bottom[0], self._threshold, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            raise NetError("a threshold has no gradient. Set propagate_down: false, or lr_mult 0 in the layers below.")

    def allow_force_backward(self, bottom_index: int) -> bool:
        return False


@register("Clip")
class Clip(Neuron):
    """Keeps each element between two bounds.

    Forward: y = max(min, min(x, max)).
    Backward: dx = dy where min <= x <= max, else 0.

    Shapes: any; the top has the bottom's.

    ``clip_param { min, max }``: both are required.

    Caffe's quirks: in place the backward pass takes y for x, which lies between the bounds, so that all of dy goes
    through, here as there.  NaN stays NaN, where the original makes it min.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.clip_param
        if not self.param.HasField("clip_param"):
            raise NetError("the bounds are missing. Expected clip_param { min: ... max: ... }.")
        self._bounds: tuple[float, float] = options.min, options.max

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.launch_each("clip_forward", bottom[0], *self._bounds, bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            diffs = top[0].diff_buffer, bottom[0].diff_buffer
            self.launch_each("clip_backward", bottom[0], *self._bounds, bottom[0].data_buffer, *diffs)
