"""The fully connected layer.  docs/inner_product.md tells it from the formula to the launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register


def add_weights_and_bias(
    layer: Layer, bottom: Blob, weight_shape: Sequence[int], num_output: int, options: Any
) -> None:
    """Give `layer` weights of `weight_shape` and, if ``options.bias_term``, a bias of `num_output` elements.

    `options` is the layer's own message with ``weight_filler``, ``bias_filler`` and ``bias_term``.  Params that are
    there already (from the prototxt's ``blobs``) stay, if their shapes fit.  Raises `ShapeError` otherwise.
    """
    shapes = [tuple(weight_shape)] + [(num_output,)] * bool(options.bias_term)
    if not layer.blobs:
        for shape, filler in zip(shapes, (options.weight_filler, options.bias_filler), strict=False):
            layer.add_param(shape, filler)
    given = [blob.shape for blob in layer.blobs]
    if given != shapes:
        raise ShapeError(
            f"the params do not fit bottom {bottom} and the options. Expected shapes {shapes}, received {given}. "
            "Change the options, or leave the params out of the prototxt."
        )


@register("InnerProduct")
class InnerProduct(Layer):
    """Multiplies each item of the bottom by a matrix of weights and adds a bias.

    With the bottom as a matrix X (one row an item) and the top as Y:

        forward   Y = X Wᵀ + b                                  Y = X W + b  if `transpose`
        backward  dX = dY W      dW += dYᵀ X      db += column sums of dY
                  dX = dY Wᵀ     dW += Xᵀ dY                    if `transpose`

    Shapes: bottom (d_0, ..., d_axis, ...), whose axes from `axis` on are flattened into the K inputs of one product;
    top (d_0, ..., d_axis-1, num_output); params: weights (num_output, K), or (K, num_output) if `transpose`, and
    bias (num_output,).

    Prototxt: ``inner_product_param { num_output, bias_term (true), weight_filler, bias_filler, axis (1, may be
    negative), transpose (false) }``.

    *Caffe's quirks.*  The weights are stored with one row an output, so that ``xavier`` and ``msra`` count K as the
    fan-in; with `transpose` they count num_output, because they only look at the shape.  The top has two axes when
    `axis` is 1, even where the bottom has four.  K may not change after setup: an image of another size is an error.
    """

    exact_bottoms = 1
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``inner_product_param``; make weights and bias.  Raises `NetError` without outputs."""
        options = self.param.inner_product_param
        self.num_output = int(options.num_output)
        if self.num_output == 0:
            raise NetError("num_output must be positive. Expected inner_product_param { num_output: ... }, received 0.")
        self.transpose = bool(options.transpose)
        axis = self.axis_of(bottom[0], options.axis)
        self.inputs = math.prod(bottom[0].shape[axis:])
        shape = (self.inputs, self.num_output) if self.transpose else (self.num_output, self.inputs)
        add_weights_and_bias(self, bottom[0], shape, self.num_output, options)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top.  Raises `ShapeError` if the number of inputs is not the weights'."""
        shape = bottom[0].shape
        axis = self.axis_of(bottom[0], self.param.inner_product_param.axis)
        inputs = math.prod(shape[axis:])
        if inputs != self.inputs:
            raise ShapeError(
                f"the input size does not fit the weights. Expected {self.inputs} inputs from axis {axis} on, received "
                f"{inputs} (bottom {bottom[0]}, weights {self.blobs[0].shape}). Give it items of the size it had "
                "when the net was built."
            )
        self.rows = math.prod(shape[:axis])
        top[0].reshape(*shape[:axis], self.num_output)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch Y = X Wᵀ + b as one product."""
        weights = self.blobs[0].data_buffer
        bias = self.blobs[1].data_buffer if len(self.blobs) > 1 else None
        sizes = self.rows, self.num_output, self.inputs
        self.device.gemm(
            False, not self.transpose, *sizes, 1.0, bottom[0].data_buffer, weights, 0.0, top[0].data_buffer, bias
        )

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradients that are wanted: of the weights, the bias and the bottom."""
        rows, outputs, inputs = self.rows, self.num_output, self.inputs
        gemm, top_diff = self.device.gemm, top[0].diff_buffer
        if self.param_propagate_down[0]:
            x, weight_diff = bottom[0].data_buffer, self.blobs[0].diff_buffer
            if self.transpose:
                gemm(True, False, inputs, outputs, rows, 1.0, x, top_diff, 1.0, weight_diff)
            else:
                gemm(True, False, outputs, inputs, rows, 1.0, top_diff, x, 1.0, weight_diff)
        if len(self.blobs) > 1 and self.param_propagate_down[1]:
            self.launch("inner_product_backward_bias", outputs, outputs, rows, top_diff, self.blobs[1].diff_buffer)
        if propagate_down[0]:
            weights, bottom_diff = self.blobs[0].data_buffer, bottom[0].diff_buffer
            gemm(False, self.transpose, rows, inputs, outputs, 1.0, top_diff, weights, 0.0, bottom_diff)
