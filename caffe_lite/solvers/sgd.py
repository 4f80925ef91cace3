"""Stochastic gradient descent with momentum, and what the solvers that build on it share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from caffe_lite.devices.tape import Program
from caffe_lite.errors import SolverError, suggest
from caffe_lite.solvers.base import Solver, logger, register
from caffe_lite.solvers.learning_rate import LearningRate

__all__ = ["SGDSolver"]

REGULARIZATIONS = ("L2", "L1")
NOT_CLIPPED = np.array([0, 1], np.float32)  # norm and factor


@register("SGD")
class SGDSolver(Solver):
    """Gradient descent with momentum.

    g = clip * diff / iter_size + decay_mult * weight_decay * (weight, or its sign)
    history = momentum * history + lr_mult * rate * g
    weight -= history

    where clip = min(1, clip_gradients / |all diffs|).  The update, history, is left in the params' diffs.

    Fields: ``base_lr``, ``lr_policy`` and what it needs (see `learning_rate`), ``momentum``, ``weight_decay``,
    ``regularization_type`` {L2, L1}, ``clip_gradients``, ``iter_size``.

    *Caffe's quirks.*  The gradients are clipped before they are averaged over ``iter_size``: the limit applies to their
    sum.  The learning rate is inside the history, so that a smaller rate leaves past steps as they were.

    A solver type that shares all but the last two lines overrides `launch_update`.
    """

    def __init__(self, solver: str | os.PathLike[str] | Any, solver_file: str | os.PathLike[str] | None = None) -> None:
        super().__init__(solver, solver_file)
        device, parameters = self.net.device, self.net.parameters
        self._rate = device.alloc(1)
        self._norm_and_clip = device.alloc(2)
        self._row_squares = device.alloc(parameters.rows)
        self._lr_mult = device.alloc(parameters.rows)
        self._decay_mult = device.alloc(parameters.rows)
        device.upload(self._lr_mult, np.array(parameters.lr_mults, np.float32)[parameters.row_owner])
        device.upload(self._decay_mult, np.array(parameters.decay_mults, np.float32)[parameters.row_owner])
        self._update: Program | None = None
        self._recorded: tuple[Any, ...] = ()

    def check_param(self) -> None:
        """Raise `SolverError` for settings that cannot be run."""
        super().check_param()
        self._learning_rate = LearningRate(self.param)
        kind = self.param.regularization_type
        if kind not in REGULARIZATIONS:
            hint = suggest(kind, REGULARIZATIONS)
            known = f"Expected one of {', '.join(REGULARIZATIONS)}."
            raise SolverError(" ".join(filter(None, [f"unknown regularization_type '{kind}'.", hint, known])))

    @property
    def lr(self) -> float:
        """The learning rate of the present iteration."""
        return self._learning_rate.at(self.iter)

    @property
    def current_step(self) -> int:
        """How many steps of the learning rate policy have been taken; part of the solver state."""
        return self._learning_rate.current_step

    @current_step.setter
    def current_step(self, step: int) -> None:
        self._learning_rate.current_step = step

    def apply_update(self) -> None:
        """Update the params from their diffs, leave the update in the diffs, and count the iteration."""
        rate = self._learning_rate.advance(self.iter)
        if self._due(self.param.display):
            logger.info("Iteration %d, lr = %.6g", self.iter, np.float32(rate))
        device = self.net.device
        device.upload(self._rate, np.array([rate], np.float32))
        self._update_program().run()
        if self.param.clip_gradients >= 0:
            self._log_clipping()
        self.iter += 1

    def constants(self) -> tuple[Any, ...]:
        """Return the settings that are written into the recorded update; it is recorded anew when they change."""
        param = self.param
        return param.momentum, param.weight_decay, param.regularization_type, param.iter_size, param.clip_gradients

    def launch_update(self) -> None:
        """Launch the update of all params, given the clip factor."""
        param, parameters = self.param, self.net.parameters
        self.net.device.launch(
            "sgd_update",
            parameters.rows,
            parameters.rows,
            param.momentum,
            param.weight_decay,
            1.0 / param.iter_size,
            int(param.regularization_type == "L1"),
            self._rate,
            self._norm_and_clip,
            self._lr_mult,
            self._decay_mult,
            parameters.diff,
            self.history.buffer,
            parameters.data,
        )

    def _update_program(self) -> Program:
        # share_with gives the net other memory: all of it, or that of some params.
        device, parameters = self.net.device, self.net.parameters
        strays = parameters.strays()
        constants = (*self.constants(), parameters.data.pointer, *((own.pointer, to.pointer) for own, to in strays))
        if self._update is None or constants != self._recorded:
            device.upload(self._norm_and_clip, NOT_CLIPPED)
            self._update = Program(device)
            with self._update.recording():
                for own, place in strays:
                    device.copy(own, place)
                if self.param.clip_gradients >= 0:
                    self._launch_clip()
                self.launch_update()
                for own, place in strays:
                    device.copy(place, own)
            self._recorded = constants
        return self._update

    def _launch_clip(self) -> None:
        device, parameters = self.net.device, self.net.parameters
        rows, limit = parameters.rows, self.param.clip_gradients
        device.launch("solver_row_squares", rows, rows, parameters.diff, self._row_squares)
        device.launch("solver_clip", 1, 1, rows, limit, self._row_squares, self._norm_and_clip)

    def _log_clipping(self) -> None:
        norm, clip = self.net.device.download(self._norm_and_clip)
        if clip < 1:
            logger.info(
                "Gradient clipping: scaling down gradients (L2 norm %.6g > %.6g) by scale factor %.6g",
                norm, self.param.clip_gradients, clip,
            )  # fmt: skip
