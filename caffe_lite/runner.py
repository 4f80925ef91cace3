"""NetRunner: runs what `NetStructure` has built.

A pass over a range of layers is recorded once as a `Program` and replayed until a blob's shape or memory changes: the
blobs' `watch` then drops all programs and marks the net stale, and the next pass lets every layer reshape and records
again.  Layers run one by one, each reshaped just before it runs, with `debug_info`, from a layer on that changed its
shape in the middle of a pass, and after a change of shape where a layer is Python: only its forward pass knows the
shapes of its tops.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_lite import debug_info
from caffe_lite.devices.tape import Program
from caffe_lite.errors import CaffeError, NetError
from caffe_lite.structure import NetStructure

if TYPE_CHECKING:
    from caffe_lite.devices.base import Device
    from caffe_lite.prototxt import Source


class _ReshapedError(Exception):
    """A layer's `prepare` has changed shapes: the program that runs does not fit any more."""

    def __init__(self, index: int) -> None:
        self.index = index


class NetRunner(NetStructure):
    """Forward and backward passes over any range of a net's layers."""

    def __init__(self, param: Any, device: Device, seed: int, source: Source | None = None) -> None:
        super().__init__(param, device, seed, source)
        self._debug_info = bool(param.debug_info)
        self._programs: dict[tuple[bool, int, int], Program] = {}  # by whether it is forward, start and end
        self._stale = False  # whether a shape has changed since the layers last reshaped
        self._last = len(self.layers) - 1
        self._has_python_layer = any(layer.python_backward for layer in self.layers)
        self._checks = [index for index, layer in enumerate(self.layers) if layer.checks_values]
        for blob in [*self._blobs, *(param.blob for param in self.parameters.all)]:
            blob.watch = self._weakly(NetRunner._drop_programs)

    @property
    def debug_info(self) -> bool:
        """Whether each pass logs the mean absolute value of every blob; layers run one by one then."""
        return self._debug_info

    @debug_info.setter
    def debug_info(self, value: bool) -> None:
        self._debug_info = value
        self._programs.clear()

    def run_forward(self) -> None:
        """Run the whole net forward; compute nothing in Python."""
        self._run_forward(0, self._last)

    def run_backward(self) -> None:
        """Run the whole net backward; with `debug_info`, log the params' norms as well."""
        self._run_backward(self._last, 0)
        if self._debug_info:
            debug_info.log_norms(self)

    def loss(self) -> float:
        """Return the sum over all tops of loss weight times data, after a forward pass."""
        return self._loss_of(0, self._last)

    def clear_param_diffs(self) -> None:
        """Launch: set the diffs of all params to zero."""
        if self.parameters.rows:
            self.device.fill(self.parameters.diff, 0.0)

    def reshape(self) -> None:
        """Let every layer size its tops anew; a pass does this by itself where a shape has changed.

        Raises `ShapeError` where shapes do not fit together; after a fitting reshape the net works again.
        """
        self._reshape_from(0)

    def seek(self, passes: int) -> None:
        """Go on as after `passes` forward passes: data layers find their place, random layers their numbers."""
        for index, layer in enumerate(self.layers):
            with self.at(index):
                layer.seek(passes)
            if layer.passes is not None:
                self.device.upload(layer.passes, np.array([passes]))

    def _run_forward(self, start: int, end: int) -> None:
        program = self._programs.get((True, start, end)) or self._record_forward(start, end)
        if program is None:
            self._forward_by_layer(start, end)
        else:
            try:
                program.run()
            except _ReshapedError as change:
                self._forward_by_layer(change.index, end, prepared=True)
        for index in self._checks:
            if start <= index <= end:
                try:
                    self.layers[index].check(self.bottoms[index])
                except CaffeError as error:
                    raise self.placed(index, error) from error.__cause__

    def _run_backward(self, start: int, end: int) -> None:
        program = self._programs.get((False, start, end)) or self._record_backward(start, end)
        if program is not None:
            program.run()
            return
        for index in range(start, end - 1, -1):
            self._launch_backward(index)
            if self.layer_need_backward[index]:
                debug_info.log_backward(self, index)

    def _record_forward(self, start: int, end: int) -> Program | None:
        """Return the program of a forward pass, or None where layers must run one by one."""
        if self._debug_info or (self._stale and self._has_python_layer):
            return None
        if self._stale:
            self.reshape()
        program = Program(self.device)
        with program.recording():
            for index in range(start, end + 1):
                if self.layers[index].runs_python:
                    program.step(self._weakly(NetRunner._prepare_step, index))
                self._launch_forward(index)
        return self._programs.setdefault((True, start, end), program)

    def _record_backward(self, start: int, end: int) -> Program | None:
        if self._stale:
            self.reshape()
        if self._debug_info:
            return None
        program = Program(self.device)
        with program.recording():
            for index in range(start, end - 1, -1):
                if self.layers[index].python_backward:
                    program.step(self._weakly(NetRunner._launch_backward, index))
                else:
                    self._launch_backward(index)
        return self._programs.setdefault((False, start, end), program)

    def _forward_by_layer(self, start: int, end: int, prepared: bool = False) -> None:
        """Run layers one by one, reshaping as they go; `prepared` says that the first has its batch already."""
        for index in range(start, end + 1):
            layer = self.layers[index]
            if not (prepared and index == start):
                if self._stale and not layer.python_backward:  # a Python layer reshapes in `prepare`
                    with self.at(index):
                        layer.reshape(self.bottoms[index], self.tops[index])
                if layer.runs_python:
                    self._prepare(index)
            self._launch_forward(index)
            if self._debug_info:
                debug_info.log_forward(self, index)
        if self._stale and end == self._last and (start == 0 or prepared):
            self.fill_loss_weights()
            self._stale = False

    def _weakly(self, method: Callable[..., None], *args: int) -> Callable[[], None]:
        """Return a call of `method` that does not keep the net alive, so that a net goes with its last user."""
        reference = weakref.ref(self)

        def call() -> None:
            net = reference()
            if net is not None:
                method(net, *args)

        return call

    def _prepare_step(self, index: int) -> None:
        self._prepare(index)
        if self._stale:
            raise _ReshapedError(index)

    def _prepare(self, index: int) -> None:
        with self.at(index):
            self.layers[index].prepare(self.bottoms[index], self.tops[index])

    def _launch_forward(self, index: int) -> None:
        layer = self.layers[index]
        with self.at(index):
            if layer.passes is not None:
                self.device.launch("count_pass", 1, 1, layer.passes)
            layer.forward(self.bottoms[index], self.tops[index])

    def _launch_backward(self, index: int) -> None:
        layer, needs = self.layers[index], self.bottom_need_backward[index]
        if self.layer_need_backward[index] and (any(needs) or any(layer.param_propagate_down)):
            with self.at(index):
                try:
                    layer.backward(self.tops[index], needs, self.bottoms[index])
                except NotImplementedError:
                    raise NetError(
                        "this layer has no backward. Set propagate_down: false where a loss depends on it."
                    ) from None

    def _reshape_from(self, first: int) -> None:
        for index in range(first, len(self.layers)):
            with self.at(index):
                self.layers[index].reshape(self.bottoms[index], self.tops[index])
        self.fill_loss_weights()
        self._stale = False

    def _drop_programs(self) -> None:
        self._programs.clear()
        self._stale = True

    def _loss_of(self, start: int, end: int) -> float:
        losses = (weight * float(blob.data.sum()) for index, blob, weight in self.loss_tops if start <= index <= end)
        return sum(losses, 0.0)
