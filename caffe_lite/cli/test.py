"""Score a model: run its TEST net over some batches and print each output, batch by batch and on average.

    caffe-lite test -model lenet_train_test.prototxt -weights lenet_iter_10000.caffemodel -iterations 100

The loss and the outputs are logged in the words of the original.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from caffe_lite.cli.flags import FlagParser, Flags, comma_list, integer, refuse_gpu, require
from caffe_lite.errors import DataError
from caffe_lite.log import init_log

if TYPE_CHECKING:
    from caffe_lite.net import Net

__all__ = ["add_flags", "run", "score", "test"]

logger = logging.getLogger("caffe_lite")


def add_flags(parser: FlagParser) -> None:
    """Declare the flags of ``test``."""
    parser.flag("model", "the model definition (prototxt)", metavar="FILE")
    parser.flag("weights", "the trained weights, separated by commas", comma_list, metavar="FILES")
    parser.flag("iterations", "batches to run (default 50)", integer(1), default=50, metavar="N")
    parser.flag("gpu", "the GPU to run on; this version has none", metavar="ID")
    parser.flag("phase", "the net's phase (default TEST)", choices=("TRAIN", "TEST"), default="TEST")
    parser.flag("level", "the net's level (default 0)", integer(), default=0, metavar="N")
    parser.flag("stage", "stages of the net, separated by commas", comma_list, metavar="NAMES")


def run(flags: Flags) -> int:
    """Score as `flags` say; returns 0."""
    test(flags)
    return 0


def test(flags: Flags) -> dict[str, list[float]]:
    """Build the net that `flags` ask for, `score` it and return the means."""
    require(flags.model, "a model definition to score: -model FILE")
    require(flags.weights, "model weights to score: -weights FILE")
    refuse_gpu(flags.gpu)
    from caffe_lite.net import Net
    from caffe_lite.proto import caffe_pb2

    init_log()
    logger.info("Use CPU.")
    net = Net(flags.model, caffe_pb2.Phase.Value(flags.phase), level=flags.level, stages=flags.stage)
    for weights in flags.weights:
        net.copy_from(weights)
    return score(net, flags.iterations)


def score(net: Net, iterations: int) -> dict[str, list[float]]:
    """Run `net` forward `iterations` times, log its outputs, and return the means of each output's values.

    Raises `DataError` if an output changes its size from one batch to the next.
    """
    logger.info("Running for %d iterations.", iterations)
    loss = 0.0
    sums: dict[str, list[float]] = {}
    for batch in range(iterations):
        net.run_forward()
        loss += net.loss()
        for name in net.outputs:
            values = net.blobs[name].data.ravel().tolist()
            for value in values:
                logger.info("Batch %d, %s = %g", batch, name, value)
            sums[name] = _add(sums.get(name), values, name, batch)
    logger.info("Loss: %g", loss / iterations)
    means = {name: [value / iterations for value in values] for name, values in sums.items()}
    for name, values in means.items():
        weight = net.blob_loss_weights[name]
        for mean in values:
            logger.info("%s = %g%s", name, mean, f" (* {weight:g} = {weight * mean:g} loss)" if weight else "")
    return means


def _add(sums: list[float] | None, values: list[float], name: str, batch: int) -> list[float]:
    if sums is None:
        return values
    if len(sums) != len(values):
        raise DataError(
            f"output '{name}' has {len(values)} values in batch {batch}, and had {len(sums)} before. "
            "Only an output of one size can be averaged."
        )
    return [total + value for total, value in zip(sums, values, strict=True)]
