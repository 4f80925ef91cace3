"""Turn MNIST's idx files (gzipped or not) into an LMDB of Datums that Caffe's Data layer reads.

    caffe-lite convert_mnist train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz mnist_train_lmdb

Keys are the items' numbers with eight digits, in file order.
"""

from __future__ import annotations

import os

from caffe_lite.cli.flags import FlagParser, Flags
from caffe_lite.errors import UsageError

__all__ = ["add_flags", "run"]


def add_flags(parser: FlagParser) -> None:
    """Declare the arguments of ``convert_mnist``."""
    parser.add_argument("images", metavar="IMAGES", help="the idx file of images")
    parser.add_argument("labels", metavar="LABELS", help="the idx file of labels")
    parser.add_argument("database", metavar="DB", help="the folder of the LMDB to make")
    parser.switch("overwrite", "replace the LMDB if it is there")


def run(flags: Flags) -> int:
    """Convert as `flags` say; returns 0."""
    if not flags.overwrite and os.path.lexists(flags.database):
        raise UsageError(f"{flags.database} is there already. Give --overwrite to replace it, or another name.")
    from caffe_lite.data import mnist

    count = mnist.convert(flags.images, flags.labels, flags.database, overwrite=flags.overwrite)
    print(f"{flags.database}: wrote {count} images")
    return 0
