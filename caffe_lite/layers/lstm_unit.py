"""LSTMUnit: one step of an LSTM."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_lite.blob import Blob
from caffe_lite.errors import ShapeError
from caffe_lite.layers.base import Layer, register
from caffe_lite.layers.recurrent import refuse_indicators


@register("LSTMUnit")
class LSTMUnit(Layer):
    """One step of an LSTM, from its gates' inputs on.

    Forward:  c = cont sigmoid(f) c_prev + sigmoid(i) tanh(g),  h = sigmoid(o) tanh(c).
    Backward: the gradients of this, to c_prev and to (i, f, o, g).

    Shapes: c_prev (1, N, D); the gates' inputs (1, N, 4 D), in the order i, f, o, g; cont (1, N): 0 where a sequence
    begins, 1 where it goes on; tops: c and h (1, N, D).

    It has no options.

    *Caffe's quirks.*  If one of the two bottoms has a gradient, that of the other is computed as well.  For a cont
    other than 0 and 1 the gradient of f is right, as in the original's GPU code and unlike in its CPU code.
    """

    exact_bottoms = 3
    exact_tops = 2

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._gates = Blob(self.device)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops.  Raises `ShapeError` unless the bottoms are one step of as many streams."""
        previous = bottom[0].shape
        if len(previous) != 3 or previous[0] != 1:
            raise ShapeError(f"c_prev must have shape (1, streams, width). Received {bottom[0]}. Reshape it.")
        _, streams, width = previous
        expected = (1, streams, 4 * width), (1, streams)
        for name, blob, shape in zip(("the gates' input", "cont"), bottom[1:], expected, strict=True):
            if blob.shape != shape:
                raise ShapeError(
                    f"{name} does not fit c_prev, {bottom[0]}. Expected shape {shape}, received {blob}. Check the "
                    "layer that makes it."
                )
        self._gates.reshape(bottom[1].shape)
        for blob in top:
            blob.reshape(previous)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        previous, inputs, cont = (blob.data_buffer for blob in bottom)
        results = self._gates.data_buffer, top[0].data_buffer, top[1].data_buffer
        sizes = bottom[0].shape[1:]
        self.launch("lstm_unit_forward", bottom[0].count, *sizes, cont, previous, inputs, *results)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_indicators(propagate_down[2])
        if not propagate_down[0] and not propagate_down[1]:
            return
        given = bottom[2].data_buffer, bottom[0].data_buffer, self._gates.data_buffer, top[0].data_buffer
        diffs = top[0].diff_buffer, top[1].diff_buffer, bottom[0].diff_buffer, bottom[1].diff_buffer
        self.launch("lstm_unit_backward", bottom[0].count, *bottom[0].shape[1:], *given, *diffs)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2
