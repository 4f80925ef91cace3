"""The layers that run over timesteps: RNN, LSTM.

The original unrolls a recurrent layer into a net of its own.  Here the same steps are launches: the products that all
timesteps share (inputs, outputs, weight gradients) are one product each, and only the recurrence itself is a loop.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.base import Layer, register

if TYPE_CHECKING:
    from caffe_lite.devices.base import Buffer

Shape = tuple[int, ...]


class Recurrent(Layer):
    """What RNN and LSTM share: the bottoms, the params of the inputs, and the state between passes.

    Attributes (after `reshape`):
        steps, streams, width: timesteps, independent sequences, and num_output.
    """

    gates: ClassVar[int]  # how many inputs each hidden element has
    states: ClassVar[tuple[str, ...]]  # what a step hands to the next one

    min_bottoms = 2
    min_tops = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``recurrent_param``; make the params.  Raises `NetError` without outputs or for too many blobs."""
        options = self.param.recurrent_param
        self.width = int(options.num_output)
        if self.width == 0:
            raise NetError("num_output must be positive. Expected recurrent_param { num_output: ... }, received 0.")
        self.exposed = bool(options.expose_hidden)
        exposed = len(self.states) * self.exposed
        self._check_counts(exposed, bottom, top)
        self.static = bottom[2] if len(bottom) > 2 + exposed else None
        self._check_axes(bottom)
        shapes = self.param_shapes(
            math.prod(bottom[0].shape[2:]), math.prod(self.static.shape[1:]) if self.static else None
        )
        if not self.blobs:
            for shape in shapes:
                self.add_param(shape, options.weight_filler if len(shape) > 1 else options.bias_filler)
        given = [blob.shape for blob in self.blobs]
        if given != shapes:
            raise ShapeError(
                f"the params do not fit x, {bottom[0]}, and the options. Expected shapes {shapes}, received {given}. "
                "Change the options, or leave the params out of the prototxt."
            )
        # Blobs, because they keep their content as the original's do where the number of streams changes.
        self._first, self._last = ([Blob(self.device) for _ in self.states] for _ in range(2))
        self._inputs, self._static_part, self._continued, self._back = (Blob(self.device) for _ in range(4))

    @abc.abstractmethod
    def param_shapes(self, inputs: int, static_inputs: int | None) -> list[Shape]:
        """Return the shapes of all params, for so many elements of x and of the static input (None without one)."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Size the tops and what is kept.  Raises `ShapeError` for bottoms that do not fit together or the weights."""
        self._check_axes(bottom)
        self._check_inputs("x", bottom[0], 2, self.blobs[0])
        if self.static:
            self._check_inputs("the static input", self.static, 1, self.blobs[2])
        self.steps, self.streams = bottom[0].shape[:2]
        state = 1, self.streams, self.width
        for i, blob in enumerate(self._exposed(bottom)):
            if blob.shape != state:
                raise ShapeError(
                    f"the initial {self.states[i]} must have shape {state}. Received {blob} for x, {bottom[0]}. "
                    "Reshape it."
                )
        self._inputs.reshape(self.steps, self.streams, self.gates * self.width)
        self._static_part.reshape(self.streams, self.gates * self.width)
        for blob in self._continued, top[0]:
            blob.reshape(self.steps, self.streams, self.width)
        for blob in (self._back, *self._first, *self._last, *top[1:]):
            blob.reshape(state)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    # -- checks

    def _check_counts(self, exposed: int, bottom: list[Blob], top: list[Blob]) -> None:
        given, bottoms, tops = ", ".join(map(str, bottom)), len(bottom), len(top)
        hint = " With expose_hidden the initial states are bottoms and the last ones tops." if self.exposed else ""
        if bottoms not in (2 + exposed, 3 + exposed):
            raise NetError(
                f"wrong number of bottoms. Expected {2 + exposed} or {3 + exposed}, received {bottoms}: {given}.{hint}"
            )
        if tops != 1 + exposed:
            raise NetError(f"wrong number of tops. Expected {1 + exposed}, received {tops}.{hint}")

    def _check_axes(self, bottom: list[Blob]) -> None:
        x, cont = bottom[:2]
        if len(x.shape) < 3 or x.shape[0] == 0:
            raise ShapeError(f"x must have axes (timesteps, streams, ...) and a timestep. Received {x}. Reshape it.")
        if cont.shape != x.shape[:2]:
            raise ShapeError(
                f"there must be one continuation indicator for each timestep and stream of x. "
                f"Expected {x.shape[:2]} for x, {x}, received {cont}. Reshape it."
            )
        if self.static and (len(self.static.shape) < 2 or self.static.shape[0] != x.shape[1]):
            raise ShapeError(
                f"the static input must have axes (streams, ...) with the {x.shape[1]} streams of x, {x}. "
                f"Received {self.static}. Reshape it."
            )

    @staticmethod
    def _check_inputs(what: str, blob: Blob, axis: int, weights: Blob) -> None:
        inputs = math.prod(blob.shape[axis:])
        if inputs != weights.shape[1]:
            raise ShapeError(
                f"the input size of {what} does not fit the weights. Expected {weights.shape[1]} inputs from axis "
                f"{axis} on, received {inputs} (bottom {blob}, weights {weights.shape}). Give it the shape that it had "
                "when the net was built."
            )

    # -- parts of the passes

    def _exposed(self, blobs: list[Blob]) -> list[Blob]:
        """Return the bottoms or tops that hold states."""
        return blobs[-len(self.states) :] if self.exposed else []

    def _step(self, buffer: Buffer, t: int) -> Buffer:
        """Return timestep `t` of a buffer that holds all of them."""
        size = buffer.size // self.steps
        return buffer.view(t * size, size)

    def _first_states(self, bottom: list[Blob]) -> list[Buffer]:
        """Launch: carry the states over from the last pass, unless they are bottoms; return them."""
        if self.exposed:
            return [blob.data_buffer for blob in self._exposed(bottom)]
        for last, first in zip(self._last, self._first, strict=True):
            self.device.copy(last.data_buffer, first.data_buffer)
        return [blob.data_buffer for blob in self._first]

    def _keep_states(self, top: list[Blob], states: Sequence[Buffer]) -> None:
        """Launch: keep the last states, as tops where they are exposed."""
        for state, blob in zip(states, self._exposed(top) or self._last, strict=True):
            self.device.copy(state, blob.data_buffer)

    def _forward_inputs(self, bottom: list[Blob]) -> None:
        """Launch, for all timesteps at once: inputs = W x + b, and + W_static x_static."""
        weights, bias = self.blobs[0].data_buffer, self.blobs[1].data_buffer
        rows, columns, inputs = self.steps * self.streams, self.gates * self.width, self.blobs[0].shape[1]
        target = self._inputs.data_buffer
        self.device.gemm(False, True, rows, columns, inputs, 1.0, bottom[0].data_buffer, weights, 0.0, target, bias)
        if self.static:
            part, weights, inputs = self._static_part.data_buffer, self.blobs[2].data_buffer, self.blobs[2].shape[1]
            sizes = self.streams, columns, inputs
            self.device.gemm(False, True, *sizes, 1.0, self.static.data_buffer, weights, 0.0, part)
            self.launch("recurrent_add_static", target.size, self.steps, part.size, part, target)

    def _forward_hidden(self, t: int, cont: Buffer, hidden: Buffer, weights: Buffer) -> Buffer:
        """Launch: inputs of step `t` += W cont h, with h of the step before; return those inputs."""
        continued, inputs = self._step(self._continued.data_buffer, t), self._step(self._inputs.data_buffer, t)
        sizes = self.streams, self.width
        self.launch("recurrent_continue", hidden.size, *sizes, self._step(cont, t), hidden, continued)
        columns = self.gates * self.width
        self.device.gemm(False, True, self.streams, columns, self.width, 1.0, continued, weights, 1.0, inputs)
        return inputs

    def _backward_continued(self, t: int, weights: Buffer) -> Buffer:
        """Launch the gradient of cont h, which step `t` multiplied by W; return it."""
        diff, back = self._step(self._inputs.diff_buffer, t), self._back.diff_buffer
        sizes = self.streams, self.width, self.gates * self.width
        self.device.gemm(False, False, *sizes, 1.0, diff, weights, 0.0, back)
        return back

    def _backward_hidden(self, t: int, cont: Buffer, given: Buffer, weights: Buffer) -> Buffer:
        """Launch the gradient of h at step `t`, of which `given` comes from the top; return it."""
        if t == self.steps - 1:
            return given
        back, diff = self._backward_continued(t + 1, weights), self._back.data_buffer
        buffers = self._step(cont, t + 1), back, given, diff
        self.launch("recurrent_continue_backward", diff.size, self.streams, self.width, *buffers)
        return diff

    def _backward_first_hidden(self, cont: Buffer, weights: Buffer, target: Buffer) -> None:
        """Launch the gradient of the initial hidden state."""
        back = self._backward_continued(0, weights)
        self.launch("recurrent_continue", target.size, self.streams, self.width, self._step(cont, 0), back, target)

    def _backward_inputs(self, propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        """Launch, for all timesteps at once, what follows from the gradient of the inputs."""
        diff, rows = self._inputs.diff_buffer, self.steps * self.streams
        self._backward_product(0, rows, diff, bottom[0].data_buffer, bottom[0] if propagate_down[0] else None)
        self._backward_bias(1, diff)
        self._backward_product(3 if self.static else 2, rows, diff, self._continued.data_buffer, None)
        if self.static and (propagate_down[2] or self.param_propagate_down[2]):
            part = self._static_part.diff_buffer
            self.launch("recurrent_backward_static", part.size, part.size, self.steps, diff, part)
            target = self.static if propagate_down[2] else None
            self._backward_product(2, self.streams, part, self.static.data_buffer, target)

    def _backward_product(self, param: int, rows: int, diff: Buffer, inputs: Buffer, target: Blob | None) -> None:
        """Launch the gradients of Y = X Wᵀ: of W, blobs[`param`], and of X into the diff of `target`."""
        weights = self.blobs[param]
        columns, width = weights.shape
        if self.param_propagate_down[param]:
            self.device.gemm(True, False, columns, width, rows, 1.0, diff, inputs, 1.0, weights.diff_buffer)
        if target is not None:
            sizes = rows, width, columns
            self.device.gemm(False, False, *sizes, 1.0, diff, weights.data_buffer, 0.0, target.diff_buffer)

    def _backward_bias(self, param: int, diff: Buffer) -> None:
        """Launch the gradient of a bias, blobs[`param`]."""
        if self.param_propagate_down[param]:
            columns, bias_diff = self.blobs[param].count, self.blobs[param].diff_buffer
            self.launch("inner_product_backward_bias", columns, columns, diff.size // columns, diff, bias_diff)


def refuse_indicators(wanted: bool) -> None:
    """Raise `NetError` if a gradient of the continuation indicators is wanted."""
    if wanted:
        raise NetError("the continuation indicators have no gradient. Set propagate_down: false for that bottom.")


@register("RNN")
class RNN(Recurrent):
    """The simple recurrent network.

    Forward, for t = 1 to T:   h_t = tanh(W_hh (cont_t h_t-1) + W_xh x_t + W_xh_static x_static + b_h)
                               o_t = tanh(W_ho h_t + b_o)
    Backward: the gradients of this through all T steps, to x, x_static, the initial h and the params.

    Shapes: x (T, N, ...): T timesteps of N independent streams; cont (T, N): 0 where a stream's sequence begins, 1
    where it goes on; optionally x_static (N, ...), the same for each step; tops: o (T, N, num_output).
    Params: W_xh (num_output, inputs), b_h, with x_static W_xh_static, then W_hh, W_ho (num_output, num_output), b_o.

    ``recurrent_param { num_output weight_filler bias_filler expose_hidden debug_info }``.  With ``expose_hidden`` the
    last bottom is h_0 and the last top h_T, both (1, N, num_output).  ``debug_info`` is read and ignored.

    *Caffe's quirks.*  Without ``expose_hidden`` h_T becomes h_0 of the next forward pass, so that long sequences can
    be cut; cont 0 ends that.  The gradient stops at the cut, and the diff of the top h_T is not looked at.  Unlike the
    original, h_0 as a bottom gets its gradient (there it stays 0), and the number of timesteps may change.
    """

    gates = 1
    states = ("hidden state",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        self._output = Blob(self.device)

    def param_shapes(self, inputs: int, static_inputs: int | None) -> list[Shape]:
        """Return the shapes of W_xh, b_h, W_xh_static if there is one, W_hh, W_ho, b_o."""
        n = self.width
        return [(n, inputs), (n,), *([(n, static_inputs)] if static_inputs is not None else []), (n, n), (n, n), (n,)]

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        self._output.reshape(self._inputs.shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        cont, count = bottom[1].data_buffer, self._inputs.count
        (hidden,) = self._first_states(bottom)
        self._forward_inputs(bottom)
        for t in range(self.steps):
            hidden = self._forward_hidden(t, cont, hidden, self.blobs[-3].data_buffer)
            self.launch("tanh_forward", hidden.size, hidden.size, hidden, hidden)
        weights, bias, output = self.blobs[-2].data_buffer, self.blobs[-1].data_buffer, self._output.data_buffer
        sizes = self.steps * self.streams, self.width, self.width
        self.device.gemm(False, True, *sizes, 1.0, self._inputs.data_buffer, weights, 0.0, output, bias)
        self.launch("tanh_forward", count, count, output, output)
        self.device.copy(output, top[0].data_buffer)  # a copy, since a layer in place may change the top
        self._keep_states(top, [hidden])

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_indicators(propagate_down[1])
        cont, weights, count = bottom[1].data_buffer, self.blobs[-3].data_buffer, self._inputs.count
        hidden, output, output_diff = self._inputs.data_buffer, self._output.data_buffer, self._output.diff_buffer
        self.launch("tanh_backward", count, count, output, top[0].diff_buffer, output_diff)
        rows = self.steps * self.streams
        self._backward_product(len(self.blobs) - 2, rows, output_diff, hidden, self._inputs)
        self._backward_bias(len(self.blobs) - 1, output_diff)
        for t in reversed(range(self.steps)):
            diff = self._step(self._inputs.diff_buffer, t)
            hidden_diff = self._backward_hidden(t, cont, diff, weights)
            self.launch("tanh_backward", diff.size, diff.size, self._step(hidden, t), hidden_diff, diff)
        self._backward_inputs(propagate_down, bottom)
        if self.exposed and propagate_down[-1]:
            self._backward_first_hidden(cont, weights, bottom[-1].diff_buffer)


@register("LSTM")
class LSTM(Recurrent):
    """The long short-term memory.

    Forward, for t = 1 to T:   (i, f, o, g) = W_hc (cont_t h_t-1) + W_xc x_t + W_xc_static x_static + b_c
                               c_t = cont_t sigmoid(f) c_t-1 + sigmoid(i) tanh(g)
                               h_t = sigmoid(o) tanh(c_t)
    Backward: the gradients of this through all T steps, to x, x_static, the initial h and c, and the params.

    Shapes: x (T, N, ...): T timesteps of N independent streams; cont (T, N): 0 where a stream's sequence begins, 1
    where it goes on; optionally x_static (N, ...), the same for each step; tops: h (T, N, num_output).
    Params: W_xc (4 num_output, inputs), b_c, with x_static W_xc_static, then W_hc (4 num_output, num_output); their
    rows are those of i, then f, o, g.

    ``recurrent_param { num_output weight_filler bias_filler expose_hidden debug_info }``.  With ``expose_hidden`` the
    last bottoms are h_0 and c_0, the last tops h_T and c_T, each (1, N, num_output).  ``debug_info`` is read and
    ignored.

    *Caffe's quirks.*  Without ``expose_hidden`` h_T and c_T become h_0 and c_0 of the next forward pass, so that long
    sequences can be cut; cont 0 ends that.  The gradient stops at the cut, and the diffs of the tops h_T and c_T are
    not looked at.  Unlike the original, h_0 and c_0 as bottoms get their gradients (there they stay 0), and the number
    of timesteps may change.
    """

    gates = 4
    states = ("hidden state", "cell")

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        self._cells, self._cell = Blob(self.device), Blob(self.device)

    def param_shapes(self, inputs: int, static_inputs: int | None) -> list[Shape]:
        """Return the shapes of W_xc, b_c, W_xc_static if there is one, W_hc."""
        n = 4 * self.width
        return [(n, inputs), (n,), *([(n, static_inputs)] if static_inputs is not None else []), (n, self.width)]

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        self._cells.reshape(top[0].shape)
        self._cell.reshape(self.streams, self.width)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        cont, weights = bottom[1].data_buffer, self.blobs[-1].data_buffer
        hidden, cell = self._first_states(bottom)
        self._forward_inputs(bottom)
        for t in range(self.steps):
            gates = self._forward_hidden(t, cont, hidden, weights)
            previous, cell = cell, self._step(self._cells.data_buffer, t)
            hidden = self._step(top[0].data_buffer, t)
            buffers = self._step(cont, t), previous, gates, gates, cell, hidden
            self.launch("lstm_unit_forward", cell.size, self.streams, self.width, *buffers)
        self._keep_states(top, [hidden, cell])

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        refuse_indicators(propagate_down[1])
        cont, weights = bottom[1].data_buffer, self.blobs[-1].data_buffer
        cells, cell_diff = self._cells.data_buffer, self._cell.diff_buffer
        first_cell = (self._exposed(bottom) or self._first)[1].data_buffer
        self.device.fill(cell_diff, 0)
        for t in reversed(range(self.steps)):
            hidden_diff = self._backward_hidden(t, cont, self._step(top[0].diff_buffer, t), weights)
            previous = self._step(cells, t - 1) if t else first_cell
            gates, gates_diff = self._step(self._inputs.data_buffer, t), self._step(self._inputs.diff_buffer, t)
            given = self._step(cont, t), previous, gates, self._step(cells, t), cell_diff, hidden_diff
            self.launch("lstm_unit_backward", cell_diff.size, self.streams, self.width, *given, cell_diff, gates_diff)
        self._backward_inputs(propagate_down, bottom)
        if self.exposed and propagate_down[-2]:
            self._backward_first_hidden(cont, weights, bottom[-2].diff_buffer)
        if self.exposed and propagate_down[-1]:
            self.device.copy(cell_diff, bottom[-1].diff_buffer)
