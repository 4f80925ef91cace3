"""Eltwise: sum, product or maximum of blobs, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

MOST_OF_MAX = 256  # bottoms that one byte of the mask can tell apart


@register("Eltwise")
class Eltwise(Layer):
    """Combines bottoms of one shape, element by element.

        SUM   forward   y = sum over k of coeff_k x_k
              backward  dx_k = coeff_k dy
        PROD  forward   y = product over k of x_k
              backward  dx_k = dy * product over j != k of x_j        stable_prod_grad
                        dx_k = dy * y / x_k                            otherwise: faster for many bottoms, NaN at 0
        MAX   forward   y = max over k of x_k
              backward  dx_k = dy where bottom k was the maximum, else 0

    Shapes: two bottoms or more, and the top, are equal.

    Prototxt: ``eltwise_param { operation (SUM); coeff: one a bottom, or none (1), for SUM; stable_prod_grad (true) }``.

    *Caffe's quirks.*  Of equal maxima the second bottom wins over the first, and the third and further ones lose
    against both.  The original accepts coefficients with MAX and ignores them; so does this.  A NaN is a maximum here,
    so that it stays visible; the original lets it lose against a bottom with a higher number.  At most 256 bottoms have
    a MAX.
    """

    min_bottoms = 2
    exact_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``eltwise_param``.  Raises `NetError` for coefficients that do not fit, or too many bottoms."""
        options, operations = self.param.eltwise_param, caffe_pb2.EltwiseParameter
        coefficients = [float(coeff) for coeff in options.coeff]
        if coefficients and options.operation == operations.PROD:
            raise NetError(f"only SUM takes coefficients. Received {len(coefficients)} coeff with PROD.")
        if len(coefficients) not in (0, len(bottom)):
            raise NetError(
                f"coeff must be given once per bottom or not at all. Expected {len(bottom)}, "
                f"received {len(coefficients)} for {', '.join(map(str, bottom))}."
            )
        self._coefficients = coefficients or [1.0] * len(bottom)
        self._operation = operations.EltwiseOp.Name(options.operation)
        if self._operation == "MAX" and len(bottom) > MOST_OF_MAX:
            raise NetError(f"a maximum has at most {MOST_OF_MAX} bottoms. Received {len(bottom)}. Chain two layers.")
        self._stable = bool(options.stable_prod_grad)
        self._mask: Buffer | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top and the mask.  Raises `ShapeError` unless the bottoms have one shape."""
        for blob in bottom:
            if blob.shape != bottom[0].shape:
                raise ShapeError(
                    f"all bottoms must have the same shape. Expected that of {bottom[0]}, received {blob}. Use Crop, "
                    "Reshape, Scale or Bias to bring other shapes together."
                )
        top[0].reshape(bottom[0].shape)
        if self._operation == "MAX" and (self._mask is None or self._mask.size != top[0].count):
            self._mask = self.device.alloc(top[0].count, np.uint8)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch the operation: the first two bottoms, then each further one."""
        count, top_data = top[0].count, top[0].data_buffer
        first, second, *more = (blob.data_buffer for blob in bottom)
        if self._operation == "PROD":
            self._multiply([first, second, *more], top_data)
        elif self._operation == "SUM":
            coefficients = self._coefficients
            self.launch("eltwise_sum_forward", count, count, *coefficients[:2], first, second, top_data)
            for coefficient, data in zip(coefficients[2:], more, strict=True):
                self.launch("eltwise_sum_forward_more", count, count, coefficient, data, top_data)
        else:
            assert self._mask is not None
            self.launch("eltwise_max_forward", count, count, first, second, top_data, self._mask)
            for k, data in enumerate(more, 2):
                self.launch("eltwise_max_forward_more", count, count, k, data, top_data, self._mask)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradient of each bottom that wants it."""
        for k, blob in enumerate(bottom):
            if propagate_down[k]:
                self._backward_to(k, top[0], bottom, blob.diff_buffer)

    def _backward_to(self, k: int, top: Blob, bottom: list[Blob], bottom_diff: Buffer) -> None:
        count, top_diff = top.count, top.diff_buffer
        if self._operation == "PROD" and self._stable:
            others = [blob.data_buffer for j, blob in enumerate(bottom) if j != k]
            self._multiply([*others, top_diff], bottom_diff)
        elif self._operation == "PROD":
            data = bottom[k].data_buffer, top.data_buffer
            self.launch("eltwise_product_backward_unstable", count, count, *data, top_diff, bottom_diff)
        elif self._operation == "SUM" and self._coefficients[k] == 1:
            self.device.copy(top_diff, bottom_diff)
        elif self._operation == "SUM":
            self.launch("eltwise_sum_backward", count, count, self._coefficients[k], top_diff, bottom_diff)
        else:
            assert self._mask is not None
            self.launch("eltwise_max_backward", count, count, k, self._mask, top_diff, bottom_diff)

    def _multiply(self, factors: list[Buffer], product: Buffer) -> None:
        """Launch the product of two or more factors."""
        count = product.size
        self.launch("eltwise_product", count, count, *factors[:2], product)
        for factor in factors[2:]:
            self.launch("eltwise_product_more", count, count, factor, product)
