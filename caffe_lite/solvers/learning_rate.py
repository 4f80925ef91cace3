"""The learning rate at each iteration: Caffe's seven policies.

    fixed      base_lr
    step       base_lr * gamma ^ floor(iter / stepsize)
    exp        base_lr * gamma ^ iter
    inv        base_lr * (1 + gamma * iter) ^ (-power)
    multistep  base_lr * gamma ^ (number of stepvalues up to iter)
    poly       base_lr * (1 - iter / max_iter) ^ power
    sigmoid    base_lr / (1 + exp(-gamma * (iter - stepsize)))

*Caffe's quirks.*  ``inv``, ``poly`` and ``sigmoid`` are rounded to float32 step by step, as the original's are, so
that the log shows the same digits.  ``multistep`` keeps its step in the solver state and takes at most one step an
iteration, so a ``stepvalue`` in the past of a resumed run is caught up with one iteration at a time.  Where the
original takes a field that a formula needs for zero when it is missing, it is an error here; ``poly`` stays at zero
after ``max_iter``, where the original's formula has no value.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

from numpy import float32

from caffe_lite.errors import SolverError, suggest

__all__ = ["POLICIES", "LearningRate", "Policy"]

logger = logging.getLogger("caffe_lite")


@dataclasses.dataclass(frozen=True)
class Policy:
    """A formula in words and as a function of (param, iteration, current step), and the fields it needs."""

    formula: str
    fields: tuple[str, ...]
    scale: Callable[[Any, int, int], float]


def _power(base: float, exponent: float) -> float:
    """Return base ^ exponent for a base of at least zero; what overflows is infinite, as in C."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _inv(param: Any, iteration: int, step: int) -> float:
    base = float32(1) + float32(param.gamma) * float32(iteration)
    return float(float32(_power(float(base), -param.power)))


def _poly(param: Any, iteration: int, step: int) -> float:
    base = float32(1) - float32(iteration) / float32(param.max_iter)
    return float(float32(_power(float(base), param.power))) if iteration < param.max_iter else 0.0


def _sigmoid(param: Any, iteration: int, step: int) -> float:
    x = float32(param.gamma) * float32(iteration - param.stepsize)
    # Written so that exp never overflows.
    power = float32(math.exp(-abs(float(x))))
    return float((float32(1) if x >= 0 else power) / (float32(1) + power))


def _steps(param: Any, iteration: int, step: int) -> float:
    return _power(param.gamma, step)


POLICIES = {
    "fixed": Policy("base_lr", (), lambda param, iteration, step: 1.0),
    "step": Policy("base_lr * gamma ^ floor(iter / stepsize)", ("gamma", "stepsize"), _steps),
    "exp": Policy("base_lr * gamma ^ iter", ("gamma",), lambda param, iteration, step: _power(param.gamma, iteration)),
    "inv": Policy("base_lr * (1 + gamma * iter) ^ (-power)", ("gamma", "power"), _inv),
    "multistep": Policy("base_lr * gamma ^ (number of stepvalues up to iter)", ("gamma", "stepvalue"), _steps),
    "poly": Policy("base_lr * (1 - iter / max_iter) ^ power", ("max_iter", "power"), _poly),
    "sigmoid": Policy("base_lr / (1 + exp(-gamma * (iter - stepsize)))", ("gamma", "stepsize"), _sigmoid),
}


class LearningRate:
    """The rate that a ``SolverParameter`` asks for; its fields are read anew each time, so they may be changed.

    Raises `SolverError` if the policy is unknown, or if a field that it needs is missing or out of range.

    Attributes:
        current_step: how many steps ``step`` and ``multistep`` have taken; part of the solver state.
    """

    def __init__(self, param: Any) -> None:
        self._param = param
        self.current_step = 0
        _check(param)

    def advance(self, iteration: int) -> float:
        """Return the rate for `iteration`, having taken the step that falls on it."""
        param = self._param
        if param.lr_policy == "step":
            self.current_step = iteration // param.stepsize
        elif param.lr_policy == "multistep":
            step = self.current_step
            if step < len(param.stepvalue) and iteration >= param.stepvalue[step]:
                self.current_step = step + 1
                logger.info("MultiStep Status: Iteration %d, step = %d", iteration, step + 1)
        return self.at(iteration)

    def at(self, iteration: int) -> float:
        """Return the rate for `iteration` at the current step."""
        param = self._param
        return float(param.base_lr * POLICIES[param.lr_policy].scale(param, iteration, self.current_step))


def _check(param: Any) -> None:
    name = param.lr_policy
    if name not in POLICIES:
        problem = f"unknown lr_policy '{name}'." if name else "lr_policy is missing."
        known = f"Known policies: {', '.join(POLICIES)}."
        raise SolverError(" ".join(filter(None, [problem, suggest(name, POLICIES), known])))
    policy = POLICIES[name]
    for field in ("base_lr", *policy.fields):
        present = len(param.stepvalue) if field == "stepvalue" else param.HasField(field)
        if not present:
            raise SolverError(f"{field} is missing. lr_policy '{name}' needs it: rate = {policy.formula}.")
    for field in ("stepsize", "max_iter"):
        if field in policy.fields and getattr(param, field) <= 0:
            raise _out_of_range(param, field, "more than 0")
    if "gamma" in policy.fields and param.gamma < 0:
        raise _out_of_range(param, "gamma", "at least 0")


def _out_of_range(param: Any, field: str, expected: str) -> SolverError:
    formula = POLICIES[param.lr_policy].formula
    value = f"{getattr(param, field):g}"
    return SolverError(
        f"{field} is out of range for lr_policy '{param.lr_policy}' (rate = {formula}). "
        f"Expected {expected}, received {value}."
    )
