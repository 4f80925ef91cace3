"""Solvers from text, MNIST as databases, and the log as Caffe would print it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_lite import resources, solvers
from caffe_lite.data import database, mnist
from caffe_lite.proto import caffe_pb2

READ = 200 * 64  # images in 200 iterations

MakeSolver = Callable[..., Any]

# Trains within milliseconds.  The data is constant, so that a solver that resumes sees what it would have seen.
SMALL_NET = """
name: "small"
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param {
    shape { dim: 4 dim: 6 } shape { dim: 4 }
    data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 1 }
  }
}
layer {
  name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""

FIXED = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 10 random_seed: 3 snapshot_after_train: false '


def parse(text: str, net: str | None = SMALL_NET) -> Any:
    """Return the ``SolverParameter`` of `text`, with `net` as its ``net_param``."""
    param = caffe_pb2.SolverParameter()
    text_format.Parse(text, param)
    if net is not None:
        text_format.Parse(net, param.net_param)
    return param


@pytest.fixture
def make_solver() -> Iterator[MakeSolver]:
    """Give a function that builds a solver from `parse`'s arguments, or from a file; it is closed at the end."""
    made = []

    def make(text: str | Path, net: str | None = SMALL_NET) -> Any:
        made.append(solvers.get_solver(text if isinstance(text, Path) else parse(text, net)))
        return made[-1]

    yield make
    for solver in made:
        solver.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Give a function that returns what was logged so far, a text a message, and forgets it."""
    caplog.set_level(logging.INFO, "caffe_lite")

    def messages() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    return messages


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with mnist_test_lmdb, whole, and mnist_train_lmdb, as much of it as 200 iterations read."""
    folder = tmp_path_factory.mktemp("mnist")
    source = resources.path("models/lenet")
    mnist.convert(
        source / "t10k-images-idx3-ubyte.gz", source / "t10k-labels-idx1-ubyte.gz", folder / "mnist_test_lmdb"
    )
    images = mnist.read_idx(source / "train-images-idx3-ubyte.gz", mnist.IMAGES)
    labels = mnist.read_idx(source / "train-labels-idx1-ubyte.gz", mnist.LABELS)
    write_database(folder / "mnist_train_lmdb", images[:READ, np.newaxis], labels[:READ])
    return folder


def write_database(target: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    """Write uint8 images (num, channels, height, width) and their labels as Caffe's tools do."""
    channels, height, width = images.shape[1:]
    with database.create(target) as writer:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            datum = caffe_pb2.Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label)
            writer.put(b"%08d" % index, datum.SerializeToString())
