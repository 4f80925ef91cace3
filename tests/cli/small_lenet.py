"""A net like LeNet, small enough to train within a second: convolution, pooling and dropout on a cropped LMDB."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from caffe_lite.data import database
from caffe_lite.proto import caffe_pb2

CLASSES = 3

NET = """
name: "small_lenet"
layer {
  name: "mnist" type: "Data" top: "data" top: "label"
  transform_param { crop_size: 10 mirror: true scale: 0.00390625 }
  data_param { source: "db" batch_size: 8 backend: LMDB }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }
}
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "pool1" top: "pool1" }
layer { name: "drop1" type: "Dropout" bottom: "pool1" top: "pool1" }
layer {
  name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "accuracy" type: "Accuracy" bottom: "ip1" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }
"""

SOLVER = """
net: "net.prototxt"
test_iter: 2 test_interval: 50
base_lr: 0.01 lr_policy: "inv" gamma: 0.001 power: 0.75 momentum: 0.9 weight_decay: 0.0005
display: 100 max_iter: 2000
snapshot: 500 snapshot_prefix: "s"
random_seed: 3
"""


def write_files(folder: Path, labels: Iterable[int] | None = None) -> None:
    """Write net.prototxt, solver.prototxt and db, 45 images of 12 x 12, into `folder`."""
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    generator = np.random.default_rng(0)
    with database.create(folder / "db") as writer:
        for index, label in enumerate(labels or generator.integers(0, CLASSES, 45)):
            image = generator.integers(0, 256, 144, np.uint8).tobytes()
            datum = caffe_pb2.Datum(channels=1, height=12, width=12, data=image, label=label)
            writer.put(b"%08d" % index, datum.SerializeToString())
