"""PReLU: a ReLU that learns its slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError
from caffe_lite.layers.base import register
from caffe_lite.layers.neuron import KeptBottom, Neuron
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer


@register("PReLU")
class PReLU(Neuron):
    """Flattens what is negative by a factor that is learned, one for each channel or one for all.

    Forward: y = max(x, 0) + a[c] * min(x, 0).
    Backward: dx = dy where x > 0, else a[c] * dy; da[c] += sum over channel c of dy * min(x, 0).

    Shapes: bottom (num, channels, ...), at least two axes; the top has the bottom's; one param: a, (channels,), or a
    single number, shape (), if channel_shared.

    ``prelu_param { filler, channel_shared }``: filler of a, constant 0.25 by default; false by default.

    Caffe's quirks: in place a copy of x is kept, so that the gradient is right even where a is negative.  Unlike ReLU
    it needs a channel axis.  At x = 0 the gradient is a.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options, shape = self.param.prelu_param, bottom[0].shape
        self._need_channels(bottom[0])
        self._kept = KeptBottom(self.device)
        self._sums: Buffer | None = None
        self._shared = bool(options.channel_shared)
        if not self.blobs:
            default = caffe_pb2.FillerParameter(type="constant", value=0.25)
            filler = options.filler if options.HasField("filler") else default
            self.add_param(() if self._shared else (shape[1],), filler)
        self._check_slopes(bottom[0])

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        shape = bottom[0].shape
        self._need_channels(bottom[0])
        self._check_slopes(bottom[0])
        self._kept.reshape(bottom[0], top[0])
        num, channels, positions = shape[0], shape[1], math.prod(shape[2:])
        # One slope a column where a channel is a single element; else rows have one slope each.
        self._by_column = positions == 1 and not self._shared
        self._rows, self._columns = (num, channels) if positions == 1 else (num * channels, positions)
        if not self._by_column and (self._sums is None or self._sums.size != self._rows):
            self._sums = self.device.alloc(self._rows)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._kept.keep(bottom[0])
        self._launch_elements("prelu_forward", bottom[0].data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        x, dy = self._kept.buffer(bottom[0]), top[0].diff_buffer
        if self.param_propagate_down[0]:  # before dx, which may overwrite dy
            self._launch_slopes(x, dy)
        if propagate_down[0]:
            self._launch_elements("prelu_backward", x, dy, bottom[0].diff_buffer)

    def _launch_elements(self, kernel: str, *buffers: Buffer) -> None:
        rows, columns, slopes = self._rows, self._columns, self.blobs[0]
        if self._by_column:
            self.launch(f"{kernel}_columns", rows * columns, rows, columns, slopes.data_buffer, *buffers)
        else:
            self.launch(kernel, rows * columns, rows, columns, slopes.count, slopes.data_buffer, *buffers)

    def _launch_slopes(self, x: Buffer, dy: Buffer) -> None:
        rows, columns, slopes = self._rows, self._columns, self.blobs[0]
        if self._by_column:
            self.launch("prelu_backward_slopes_columns", columns, columns, rows, x, dy, slopes.diff_buffer)
            return
        assert self._sums is not None
        self.launch("prelu_backward_slopes_rows", rows, rows, columns, x, dy, self._sums)
        self.launch("prelu_backward_slopes", slopes.count, slopes.count, rows, self._sums, slopes.diff_buffer)

    def _need_channels(self, bottom: Blob) -> None:
        if len(bottom.shape) < 2:
            raise ShapeError(
                f"the bottom must have a channel axis. Expected at least 2 axes, received {bottom}. Reshape it."
            )

    def _check_slopes(self, bottom: Blob) -> None:
        expected, given = 1 if self._shared else bottom.shape[1], self.blobs[0].shape
        if self.blobs[0].count != expected:
            whose = "channel_shared" if self._shared else "the channels"
            raise ShapeError(
                f"the slopes do not fit {whose} of bottom {bottom}. Expected {expected}, received shape {given}. Give "
                "the bottom as many channels as there are slopes."
            )
