"""Caffe's ``debug_info`` lines: the mean absolute value of each blob and param, as it passes.

[Forward] Layer conv1, top blob conv1 data: 0.0645037
[Backward] Layer conv1, param blob 0 diff: 0.0188
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from caffe_lite.runner import NetRunner

logger = logging.getLogger("caffe_lite")


def log_forward(net: NetRunner, index: int) -> None:
    """Log the tops and params of layer `index` after its forward pass."""
    layer = net.layers[index]
    for top in net.tops[index]:
        _log("Forward", layer.name, f"top blob {top.name} data: {_mean(top.data):g}")
    for param in net.parameters.of_layer(index):
        _log("Forward", layer.name, f"param blob {param.display_name} data: {_mean(param.blob.data):g}")


def log_backward(net: NetRunner, index: int) -> None:
    """Log the diffs that the backward pass of layer `index` has written."""
    layer = net.layers[index]
    for bottom, need in zip(net.bottoms[index], net.bottom_need_backward[index], strict=True):
        if need:
            _log("Backward", layer.name, f"bottom blob {bottom.name} diff: {_mean(bottom.diff):g}")
    for number, (blob, need) in enumerate(zip(layer.blobs, layer.param_propagate_down, strict=True)):
        if need:
            _log("Backward", layer.name, f"param blob {number} diff: {_mean(blob.diff):g}")


def log_norms(net: NetRunner) -> None:
    """Log the L1 and L2 norms of all learnable params after a whole backward pass."""
    device, parameters = net.device, net.parameters
    both = [np.abs(device.host_view(buffer).astype(np.float64)) for buffer in (parameters.data, parameters.diff)]
    l1 = ", ".join(f"{values.sum():g}" for values in both)
    l2 = ", ".join(f"{np.sqrt((values * values).sum()):g}" for values in both)
    logger.error("    [Backward] All net params (data, diff): L1 norm = (%s); L2 norm = (%s)", l1, l2)


def _mean(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).mean(dtype=np.float64)) if values.size else 0.0


def _log(direction: str, layer: str, what: str) -> None:
    logger.info("    [%s] Layer %s, %s", direction, layer, what)
