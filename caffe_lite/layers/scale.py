"""Bias and Scale: one summand or one factor for each channel, or for each index over any run of axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer, Device

LONGEST_ROW = 4096  # elements: a single long row is cut, so that threads can share it
SHORTEST_ROW = 64
TILE, CHUNK = 256, 64  # channels and items that one row of work sums, where neighbours differ in channel


@dataclasses.dataclass(frozen=True)
class Spread:
    """A blob seen as (outer, channels, inner), and its cut into rows for the kernels: see kernels/scale.cu."""

    outer: int
    channels: int
    inner: int

    @property
    def mapping(self) -> str:
        """The ending of the kernels' names."""
        return "planes" if self.inner != 1 else "columns"

    @property
    def columns(self) -> int:
        """The length of a row."""
        if self.inner != 1:
            return self.inner if self.outer * self.channels > 1 else _row_length(self.inner)
        return self.channels if self.outer > 1 else _row_length(self.channels)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.outer * self.channels * self.inner // self.columns if self.columns else 0

    @property
    def period(self) -> int:
        """After how many rows the channels begin again."""
        return self.channels if self.inner != 1 else self.channels // max(1, self.columns)

    @property
    def column_sums(self) -> tuple[int, ...]:
        """The kernels' ``ColumnSums``: outer, channels, chunk, chunks, tile, tiles."""
        return self.outer, self.channels, CHUNK, -(-self.outer // CHUNK), TILE, -(-self.channels // TILE)

    @property
    def partials(self) -> int:
        """The number of partial sums."""
        return self.rows if self.inner != 1 else -(-self.outer // CHUNK) * self.channels


def _row_length(count: int) -> int:
    """Return the largest divisor of `count` that makes a good row, or `count`."""
    lengths = range(min(LONGEST_ROW, count), SHORTEST_ROW - 1, -1)
    return next((length for length in lengths if count % length == 0), count)


class AlongAxes(Layer):
    """What Bias and Scale share: an operand, learned or a second bottom, whose axes are a run of the bottom's.

    A subclass names the operand in `noun`.  `options` are its own message, with ``axis`` and ``num_axes``.
    """

    min_bottoms = 1
    max_bottoms = 2
    exact_tops = 1
    in_place = True
    noun: ClassVar[str]

    def __init__(self, param: Any, phase: int, device: Device) -> None:
        super().__init__(param, phase, device)
        self.partial = Blob(device)

    def operand_shape(self, bottom: list[Blob], options: Any) -> tuple[int, ...]:
        """Return the shape of the operand: the second bottom's, or what ``axis`` and ``num_axes`` say.

        Raises `NetError` or `ShapeError` if these do not fit the first bottom.
        """
        if len(bottom) > 1:
            return bottom[1].shape
        axes, shape = int(options.num_axes), bottom[0].shape
        if axes < -1:
            raise NetError(f"num_axes must be 0 or more, or -1 for all axes from axis on. Received {axes}.")
        if axes == 0:
            return ()
        axis = self.axis_of(bottom[0], options.axis)
        if axis + axes > len(shape):
            raise ShapeError(
                f"the {self.noun} would have more axes than there are. Expected axis {axis} + num_axes {axes} to be at "
                f"most {len(shape)}, the number of axes of bottom {bottom[0]}. Use num_axes: -1 for all."
            )
        return shape[axis:] if axes == -1 else shape[axis : axis + axes]

    def fit(self, bottom: Blob, operand: Blob, options: Any) -> None:
        """Set `spread` for an operand along axes of `bottom`.  Raises `ShapeError` if the shapes do not agree."""
        shape, wanted = bottom.shape, operand.shape
        axis = self.axis_of(bottom, options.axis) if wanted else 0
        end = axis + len(wanted)
        if shape[axis:end] != wanted:
            raise ShapeError(
                f"the {self.noun} must have the bottom's shape from axis {axis} on. Expected the first axes of "
                f"{shape[axis:]}, received {operand} for bottom {bottom}. Use another axis or num_axes."
            )
        self.spread = Spread(math.prod(shape[:axis]), math.prod(wanted), math.prod(shape[end:]))
        self.partial.reshape(self.spread.partials)

    def apply(self, kernel: str, *buffers: Buffer) -> None:
        """Launch `kernel` over all elements; `buffers` are the source, the operands and the target."""
        spread = self.spread
        sizes = spread.rows, spread.columns, spread.period
        self.launch(f"{kernel}_{spread.mapping}", spread.rows * spread.columns, *sizes, *buffers)

    def reduce(self, kernel: str, adds: bool, *buffers: Buffer) -> None:
        """Launch `kernel` to sum over all but the channels.

        `buffers` are the sources and the channels' diff, which is overwritten unless `adds`.
        """
        *sources, diff = buffers
        spread, partial = self.spread, self.partial.data_buffer
        if spread.mapping == "planes":
            self.launch(f"{kernel}_planes", spread.rows, spread.rows, spread.columns, *sources, partial)
        else:
            cut = spread.column_sums
            chunks, tiles = cut[3], cut[5]
            if chunks == 1:
                self.launch(f"{kernel}_columns", tiles, tiles, cut, int(adds), *sources, diff)
                return
            self.launch(f"{kernel}_columns", chunks * tiles, chunks * tiles, cut, 0, *sources, partial)
        channels = spread.channels
        sizes = channels, spread.partials // channels if channels else 0
        self.launch("scale_backward_sum", channels, *sizes, int(adds), partial, diff)

    def check_params(self, expected: Sequence[tuple[int, ...]], bottom: Blob) -> None:
        """Raise `ShapeError` unless the params have the `expected` shapes."""
        given = [blob.shape for blob in self.blobs]
        if given != list(expected):
            raise ShapeError(
                f"the params do not fit bottom {bottom} and the options. Expected shapes {list(expected)}, received "
                f"{given}. Change axis or num_axes, or leave the params out of the prototxt."
            )


@register("Bias")
class Bias(AlongAxes):
    """Adds one summand for each channel, or for each index over `num_axes` axes from `axis` on.

        forward   top = bottom + bias
        backward  bottom_diff = top_diff      bias_diff = sum of top_diff over all other axes

    Shapes: bottom (d_0, d_1, ...), top alike; the bias (d_axis, d_axis+1, ...) is a param, or the second bottom.  A
    param's diff is added to, a bottom's overwritten.  May run in place.

    Prototxt: ``bias_param { axis (1, may be negative), num_axes (1; 0: a scalar; -1: all from axis on), filler
    (constant 0) }``.  With a second bottom, whose own axes count, only `axis` is looked at.

    *Caffe's quirks.*  For a scalar `axis` does not matter, and need not exist.
    """

    noun = "bias"

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Make the bias, unless it is a bottom.  Raises `NetError` or `ShapeError` for options that do not fit."""
        shape = self.operand_shape(bottom, self.param.bias_param)
        learned = [shape] if len(bottom) == 1 else []
        if learned and not self.blobs:
            self.add_param(shape, self.param.bias_param.filler)
        self.check_params(learned, bottom[0])

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` if bottom and bias do not agree."""
        self.fit(bottom[0], self._bias(bottom), self.param.bias_param)
        top[0].reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the sum."""
        self.apply("bias_forward", bottom[0].data_buffer, self._bias(bottom).data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradients that are wanted: of the bias, of the bottom."""
        learned = len(bottom) == 1
        if self.param_propagate_down[0] if learned else propagate_down[1]:
            self.reduce("bias_backward", learned, top[0].diff_buffer, self._bias(bottom).diff_buffer)
        if propagate_down[0] and bottom[0] is not top[0]:
            self.device.copy(top[0].diff_buffer, bottom[0].diff_buffer)

    def _bias(self, bottom: list[Blob]) -> Blob:
        return bottom[1] if len(bottom) > 1 else self.blobs[0]


@register("Scale")
class Scale(AlongAxes):
    """Multiplies by one factor for each channel, or for each index over `num_axes` axes from `axis` on.

        forward   top = bottom scale + bias
        backward  bottom_diff = top_diff scale      scale_diff = sum of top_diff bottom over all other axes
                                                    bias_diff = sum of top_diff over all other axes

    Shapes: bottom (d_0, d_1, ...), top alike; the scale (d_axis, d_axis+1, ...) is a param, or the second bottom; the
    bias, a param if `bias_term`, has the same shape.  A param's diff is added to, a bottom's overwritten.  May run in
    place: a copy of the bottom is then kept for the scale's gradient, unless the scale learns nothing (lr_mult 0).

    Prototxt: ``scale_param { axis (1, may be negative), num_axes (1; 0: a scalar; -1: all from axis on), filler
    (constant 1), bias_term (false), bias_filler (constant 0) }``.  With a second bottom, whose own axes count,
    `num_axes` and `filler` are not looked at.

    *Caffe's quirks.*  The filler's default is 1, every other layer's 0.  For a scalar `axis` does not matter, and need
    not exist.  Params from a prototxt may lack the bias, which is then made.
    """

    noun = "scale"

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Make scale and bias.  Raises `NetError` or `ShapeError` for options that do not fit."""
        options = self.param.scale_param
        shape = self.operand_shape(bottom, options)
        expected = [shape] * (len(bottom) == 1) + [shape] * bool(options.bias_term)
        if len(bottom) == 1 and not self.blobs:
            one = caffe_pb2.FillerParameter(type="constant", value=1)
            self.add_param(shape, options.filler if options.HasField("filler") else one)
        if options.bias_term and len(self.blobs) == len(expected) - 1:
            self.add_param(shape, options.bias_filler)
        self.check_params(expected, bottom[0])
        self._kept = Blob(self.device)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` if bottom, scale and bias do not agree."""
        scale = self._scale(bottom)
        self.fit(bottom[0], scale, self.param.scale_param)
        if self._bias is not None and self._bias.shape != scale.shape:
            raise ShapeError(
                f"the bias must have the scale's shape. Expected {self._bias.shape}, received {scale}. Give the second "
                "bottom the shape that it had when the net was built."
            )
        top[0].reshape(bottom[0].shape)
        self._kept.reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the product; in place, keep the bottom first."""
        source, scale = bottom[0].data_buffer, self._scale(bottom).data_buffer
        if bottom[0] is top[0] and (len(bottom) > 1 or self.param_propagate_down[0]):
            self.device.copy(source, self._kept.data_buffer)
        if self._bias is None:
            self.apply("scale_forward", source, scale, top[0].data_buffer)
        else:
            self.apply("scale_bias_forward", source, scale, self._bias.data_buffer, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradients that are wanted: of bias and scale, and last, as it may be in place, of the bottom."""
        scale, learned, top_diff = self._scale(bottom), len(bottom) == 1, top[0].diff_buffer
        if self._bias is not None and self.param_propagate_down[-1]:
            self.reduce("bias_backward", True, top_diff, self._bias.diff_buffer)
        if self.param_propagate_down[0] if learned else propagate_down[1]:
            source = self._kept if bottom[0] is top[0] else bottom[0]
            self.reduce("scale_backward", learned, source.data_buffer, top_diff, scale.diff_buffer)
        if propagate_down[0]:
            self.apply("scale_forward", top_diff, scale.data_buffer, bottom[0].diff_buffer)

    @property
    def _bias(self) -> Blob | None:
        return self.blobs[-1] if self.param.scale_param.bias_term else None

    def _scale(self, bottom: list[Blob]) -> Blob:
        return bottom[1] if len(bottom) > 1 else self.blobs[0]
