"""Measure how long a model's forward and backward passes take, as a whole and layer by layer.

    caffe-lite time -model lenet_train_test.prototxt -iterations 50

The averages of whole passes are those of a training iteration (one replay of the recorded launches).  The layers are
then run one at a time, which costs a little for each layer; their sum is therefore above the whole.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from caffe_lite.cli.flags import FlagParser, Flags, comma_list, integer, refuse_gpu, require
from caffe_lite.log import init_log

if TYPE_CHECKING:
    from caffe_lite.net import Net

__all__ = ["add_flags", "run"]

logger = logging.getLogger("caffe_lite")


def add_flags(parser: FlagParser) -> None:
    """Declare the flags of ``time``."""
    parser.flag("model", "the model definition (prototxt)", metavar="FILE")
    parser.flag("iterations", "passes to average over (default 50)", integer(1), default=50, metavar="N")
    parser.flag("gpu", "the GPU to run on; this version has none", metavar="ID")
    parser.flag("phase", "the net's phase (default TRAIN)", choices=("TRAIN", "TEST"), default="TRAIN")
    parser.flag("level", "the net's level (default 0)", integer(), default=0, metavar="N")
    parser.flag("stage", "stages of the net, separated by commas", comma_list, metavar="NAMES")


def run(flags: Flags) -> int:
    """Measure as `flags` say; returns 0."""
    require(flags.model, "a model definition to time: -model FILE")
    refuse_gpu(flags.gpu)
    from caffe_lite.net import Net
    from caffe_lite.proto import caffe_pb2

    init_log()
    logger.info("Use CPU.")
    net = Net(flags.model, caffe_pb2.Phase.Value(flags.phase), level=flags.level, stages=flags.stage)
    # The first pass records the launches and allocates memory; it is not measured.
    logger.info("Performing Forward")
    net.run_forward()
    logger.info("Initial loss: %g", net.loss())
    logger.info("Performing Backward")
    net.run_backward()
    logger.info("*** Benchmark begins ***")
    logger.info("Testing for %d iterations.", flags.iterations)
    forward, backward = _time_passes(net, flags.iterations)
    _time_layers(net, flags.iterations)
    logger.info("Average Forward pass: %g ms.", forward / flags.iterations)
    logger.info("Average Backward pass: %g ms.", backward / flags.iterations)
    logger.info("Average Forward-Backward: %g ms.", (forward + backward) / flags.iterations)
    logger.info("Total Time: %g ms.", forward + backward)
    logger.info("*** Benchmark ends ***")
    return 0


def _time_passes(net: Net, iterations: int) -> tuple[float, float]:
    """Return the milliseconds that `iterations` whole forward and backward passes took."""
    forward = backward = 0.0
    for iteration in range(iterations):
        net.clear_param_diffs()
        this_forward = _milliseconds(net, net.run_forward)
        this_backward = _milliseconds(net, net.run_backward)
        forward += this_forward
        backward += this_backward
        logger.info("Iteration: %d forward-backward time: %g ms.", iteration + 1, this_forward + this_backward)
    return forward, backward


def _time_layers(net: Net, iterations: int) -> None:
    """Log the average milliseconds of each layer's forward and backward."""
    count = len(net.layers)
    forward, backward = [0.0] * count, [0.0] * count
    # One round more, and the first not counted: it records each layer's launches.
    for iteration in range(iterations + 1):
        net.clear_param_diffs()
        counted = iteration > 0
        for i in range(count):
            forward[i] += counted * _milliseconds(net, functools.partial(net._forward, i, i))
        for i in reversed(range(count)):
            backward[i] += counted * _milliseconds(net, functools.partial(net._backward, i, i))
    logger.info("Average time per layer: ")
    for i, name in enumerate(net.layer_names):
        logger.info("%10s\tforward: %g ms.", name, forward[i] / iterations)
        logger.info("%10s\tbackward: %g ms.", name, backward[i] / iterations)


def _milliseconds(net: Net, work: Callable[[], object]) -> float:
    net.device.synchronize()
    start = time.perf_counter()
    work()
    net.device.synchronize()
    return (time.perf_counter() - start) * 1e3
