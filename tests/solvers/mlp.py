"""The original's recorded solver runs: a small MLP on 80 digits.

Its forward and backward passes are computed here in float64, so that the updates alone are the solver's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from reference import recipe

from caffe_lite import prototxt, solvers

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "training" / "solvers"

# mlp.prototxt without its data and its activation, which nothing runs.
NET = """
name: "mlp"
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 16 dim: 196 } shape { dim: 16 } }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 24 }
}
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" param { lr_mult: 0.5 } param { lr_mult: 1 }
  inner_product_param { num_output: 10 }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""

Arrays = list[NDArray[np.float64]]


class MlpRun:
    """The recorded run ``sgd_<case>``: `solver`, at its start, and `recorded`, what the original did."""

    def __init__(self, case: str) -> None:
        param = prototxt.read_solver(str(REFERENCE / f"sgd_{case}.prototxt"))
        param.ClearField("net")
        text_format.Parse(NET, param.net_param)
        self.solver: Any = solvers.get_solver(param)
        self.recorded = dict(np.load(REFERENCE / f"sgd_{case}.npz"))
        digits = np.load(REFERENCE / "digits.npz")
        self._data, self._labels = digits["data"].reshape(80, -1), digits["label"].astype(int)
        for name, blobs in self.solver.net.params.items():
            for index, blob in enumerate(blobs):
                blob.data[...] = recipe.weight(name, index, blob.shape)

    def iterate(self, iterations: int) -> list[float]:
        """Go on for so many iterations; return the loss of the last pass of each."""
        losses = []
        for _ in range(iterations):
            losses.append(self._accumulate_gradients())
            self.solver.apply_update()
        return losses

    def _accumulate_gradients(self) -> float:
        blobs, passes = self.solver.net.parameters.blobs, self.solver.param.iter_size
        totals = [np.zeros(blob.shape) for blob in blobs]
        for number in range(passes):
            batch = np.arange(16) + (self.solver.iter * passes + number) % 5 * 16
            params = [np.float64(blob.data) for blob in blobs]
            loss, gradients = forward_backward(params, self._data[batch], self._labels[batch])
            totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
        for blob, total in zip(blobs, totals, strict=True):
            blob.diff[...] = total
        return loss


def forward_backward(params: Arrays, data: Any, labels: Any) -> tuple[float, Arrays]:
    """Return the loss of a batch, and the gradients of the four params."""
    weights1, bias1, weights2, bias2 = params
    hidden = np.tanh(data @ weights1.T + bias1)
    scores = hidden @ weights2.T + bias2
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(probabilities[rows, labels]).mean()
    probabilities[rows, labels] -= 1
    d_scores = probabilities / len(labels)
    d_hidden = d_scores @ weights2 * (1 - hidden**2)
    return float(loss), [d_hidden.T @ data, d_hidden.sum(0), d_scores.T @ hidden, d_scores.sum(0)]
