"""LeNet trained on the CUDA device over the stand-in driver, against the original's recorded losses.

Three iterations by default, up to 200 with CAFFE_LITE_TEST_ITERATIONS.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from reference import recipe

from caffe_lite import devices, resources, solvers
from caffe_lite.data import database, mnist
from caffe_lite.proto import caffe_pb2

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "training" / "lenet"
ITERATIONS = int(os.environ.get("CAFFE_LITE_TEST_ITERATIONS", 3))


@pytest.fixture
def data_folder(tmp_path):
    """Return a folder with the databases that LeNet reads, as far as it reads them."""
    source = resources.path("models/lenet")
    for name, prefix, count in (("train", "train", 64 * ITERATIONS), ("test", "t10k", 100)):
        images = mnist.read_idx(source / f"{prefix}-images-idx3-ubyte.gz", mnist.IMAGES)
        labels = mnist.read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", mnist.LABELS)
        with database.create(tmp_path / f"mnist_{name}_lmdb") as writer:
            for index in range(count):
                datum = caffe_pb2.Datum(
                    channels=1, height=28, width=28, data=images[index].tobytes(), label=labels[index]
                )
                writer.put(b"%08d" % index, datum.SerializeToString())
    return tmp_path


def test_losses_follow_the_original(gpu, data_folder, monkeypatch):
    monkeypatch.setattr(devices, "host_device", lambda: gpu)
    monkeypatch.chdir(data_folder)
    solver = solvers.get_solver(REFERENCE / "solver.prototxt")
    try:
        for name, blobs in solver.net.params.items():
            for index, blob in enumerate(blobs):
                blob.data[...] = recipe.weight(name, index, blob.shape)
        losses = []
        for _ in range(ITERATIONS):
            solver.step(1)
            losses.append(float(solver.net.blobs["loss"].data))
    finally:
        solver.close()
    np.testing.assert_allclose(losses, np.load(REFERENCE / "trajectory.npz")["loss"][:ITERATIONS], rtol=1e-4)
