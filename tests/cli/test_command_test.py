import re
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from caffe_lite.cli import test as command
from caffe_lite.errors import DataError


@pytest.fixture
def weights(folder, caffe_lite):
    caffe_lite("train", "-solver=solver.prototxt")
    return "small_iter_10.caffemodel"


def test_scores_are_logged_by_batch_and_on_average(folder, caffe_lite, weights):
    result = caffe_lite("test", "-model=net.prototxt", f"-weights={weights}", "-iterations=3")
    assert result.status == 0
    lines = [line.split("] ", 1)[1] for line in result.err.splitlines() if re.match(r"I\d{4} ", line)]
    lines = lines[lines.index("Use CPU.") :]
    assert "Running for 3 iterations." in lines
    assert [line.split(" = ")[0] for line in lines if line.startswith("Batch")] == [
        f"Batch {batch}, {name}" for batch in range(3) for name in ("accuracy", "loss")
    ]
    assert re.fullmatch(r"Loss: [\d.e-]+", lines[-3])
    assert lines[-2] == "accuracy = 1"
    match = re.fullmatch(r"loss = (\S+) \(\* 1 = (\S+) loss\)", lines[-1])
    assert match and match[1] == match[2] == lines[-3].split()[1]


def test_the_phase_is_test_unless_asked_otherwise(folder, caffe_lite, weights):
    log = caffe_lite("test", "-model=net.prototxt", f"-weights={weights}", "-iterations=1", "-phase=TRAIN").err
    assert "Batch 0, loss" in log
    assert "Batch 0, accuracy" not in log


def test_fifty_batches_are_the_default(folder, caffe_lite, weights):
    assert "Batch 49, loss" in caffe_lite("test", "-model=net.prototxt", f"-weights={weights}").err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-weights=none.caffemodel"], "none.caffemodel"),
        (["-weights=net.prototxt"], "net.prototxt"),
        (["-weights=x", "-gpu=all"], "-gpu all: this version does not run nets on a GPU yet"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_1(folder, caffe_lite, arguments, error):
    result = caffe_lite("test", "-model=net.prototxt", *arguments)
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("caffe-lite test: ")
    assert error in result.err.splitlines()[-1]


class GrowingNet:
    """A net whose output has one value more in each batch."""

    outputs = ("found",)
    blob_loss_weights = MappingProxyType({"found": 0.0})

    def __init__(self):
        self.blobs = {"found": SimpleNamespace(data=np.zeros(0))}

    def run_forward(self):
        self.blobs["found"].data = np.zeros(self.blobs["found"].data.size + 1)

    def loss(self):
        return 0.0


def test_an_output_that_changes_its_size_cannot_be_averaged():
    with pytest.raises(DataError, match="output 'found' has 2 values in batch 1, and had 1 before"):
        command.score(GrowingNet(), 2)
    assert command.score(GrowingNet(), 1) == {"found": [0.0]}
