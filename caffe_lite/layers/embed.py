"""Embed: a matrix whose rows are looked up by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.errors import DataError, NetError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.inner_product import add_weights_and_bias
from caffe_lite.layers.loss import CHUNK

CHUNKS = 256  # ranges of indices whose lists are threaded side by side
LISTS_PER_INDEX = 4  # a bound on the lists: emptying them should not cost more than the indices do


@register("Embed")
class Embed(Layer):
    """Replaces each index by a row of a learned matrix: an InnerProduct of one-hot vectors, without the zeros.

        forward   top[i] = weights[index[i]] + bias
        backward  weights_diff[k] += sum over the i with index[i] = k of top_diff[i]
                  bias_diff += sum over i of top_diff[i]

    Shapes: bottom (any...), whole numbers from 0 to input_dim - 1; top (any..., num_output); params: weights
    (input_dim, num_output), bias (num_output,).

    Prototxt: ``embed_param { num_output, input_dim, bias_term (true), weight_filler, bias_filler }``.

    *Caffe's quirks.*  The weights have one row an input, InnerProduct's one an output.  An index's fraction is cut off.
    The bottom has no gradient; under ``force_backward`` the original aborts, here the bottom is left out.  Unlike the
    original, which reads and writes outside the blob, an index that is no row is an error.
    """

    exact_bottoms = 1
    exact_tops = 1
    checks_values = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``embed_param``; make weights and bias.  Raises `NetError` without rows or columns."""
        options = self.param.embed_param
        self.num_output, self.input_dim = int(options.num_output), int(options.input_dim)
        for name, value in ("num_output", self.num_output), ("input_dim", self.input_dim):
            if value == 0:
                raise NetError(f"{name} must be positive. Expected embed_param {{ {name}: ... }}, received 0.")
        add_weights_and_bias(self, bottom[0], (self.input_dim, self.num_output), self.num_output, options)
        self._no_bias = self.device.alloc(self.num_output)
        self.indices = -1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the top, and the lists that the backward pass threads."""
        top[0].reshape(*bottom[0].shape, self.num_output)
        if bottom[0].count == self.indices:
            return
        self.indices = bottom[0].count
        wanted = min(CHUNKS, max(1, LISTS_PER_INDEX * self.indices // self.input_dim))
        self.chunk = max(1, -(-self.indices // wanted))
        self.chunks = max(1, -(-self.indices // self.chunk))
        self.checked = max(1, -(-self.indices // CHUNK))
        alloc = self.device.alloc
        self._index, self._next = alloc(self.indices, np.int32), alloc(self.indices, np.int32)
        self._valid, self._outside = alloc(self.checked, np.int32), alloc(self.checked, np.int32)
        self._first = alloc(self.chunks * self.input_dim, np.int32)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Launch: read the indices, look their rows up."""
        rule = self.indices, CHUNK, self.input_dim, 0, 0
        buffers = bottom[0].data_buffer, self._index, self._valid, self._outside
        self.launch("label_classes", self.checked, self.checked, rule, *buffers)
        bias = self.blobs[1].data_buffer if len(self.blobs) > 1 else self._no_bias
        sizes = self.indices, self.input_dim, self.num_output
        given = self._index, self.blobs[0].data_buffer, bias
        self.launch("embed_forward", self.indices, *sizes, *given, top[0].data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch the gradients of weights and bias.  Raises `NetError` if the bottom's is asked for."""
        if propagate_down[0]:
            raise NetError("an index has no gradient. Set propagate_down: false.")
        rows, columns, top_diff = self.input_dim, self.num_output, top[0].diff_buffer
        if self.param_propagate_down[0]:
            lists = self.chunks * rows
            self.launch("embed_backward_clear", lists, lists, self.indices, self._first)
            cut = self.chunks, self.chunk, self.indices, rows
            self.launch("embed_backward_lists", self.chunks, *cut, self._index, self._first, self._next)
            sizes = rows, self.chunks, self.indices, columns
            given = self._first, self._next, top_diff
            self.launch("embed_backward_weights", rows, *sizes, *given, self.blobs[0].diff_buffer)
        if len(self.blobs) > 1 and self.param_propagate_down[1]:
            bias_diff = self.blobs[1].diff_buffer
            self.launch("inner_product_backward_bias", columns, columns, self.indices, top_diff, bias_diff)

    def allow_force_backward(self, bottom_index: int) -> bool:
        """An index gets no gradient."""
        return False

    def check(self, bottom: list[Blob]) -> None:
        """Raise `DataError` if an index of the last forward pass was no row."""
        first = int(self.device.download(self._outside).min(initial=self.indices))
        if first < self.indices:
            place = tuple(map(int, np.unravel_index(first, bottom[0].shape)))
            raise DataError(
                f"index {bottom[0].data.flat[first]:g} at {place} is no row of the weights. Expected 0 to "
                f"{self.input_dim - 1}. Check the data, or input_dim."
            )
