"""Training LeNet takes the memory that the original would take, give or take a fifth."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from caffe_lite import prototxt, resources, solvers
from caffe_lite.devices import HostDevice
from caffe_lite.net import Net

LENET = resources.path("models/lenet")


def test_training_lenet_allocates_at_most_a_fifth_more_than_the_original(
    mnist_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()  # one of its own: the peak of the process's device is that of every test before
    monkeypatch.setattr("caffe_lite.devices.host_device", lambda: device)
    monkeypatch.chdir(mnist_folder)
    param = prototxt.read_solver(LENET / "lenet_solver.prototxt")
    param.test_iter[:] = [2]
    before = device.memory_info().allocated
    solver = solvers.get_solver(param, LENET / "lenet_solver.prototxt")
    solver.step(3)  # tests first
    used = device.memory_info().peak - before
    train, (test,) = solver.net, solver.test_nets
    assert (train.blobs["data"].shape[0], test.blobs["data"].shape[0]) == (64, 100)
    weights = sum(blob.count for blob in train.parameters.blobs)
    # weights, their diff and their history; a test net shares the weights and never runs backward
    original = 4 * (forward_elements(train) + forward_elements(test) + diff_elements(train) + 3 * weights)
    assert 22e6 < original < 27e6
    assert 0.9 * original < used <= 1.2 * original
    solver.close()


def forward_elements(net: Net) -> int:
    """Return the elements that the original keeps for a forward pass: blobs, masks, probabilities and columns."""
    # A Split's tops share the bottom's memory.
    copies = {blob for layer, tops in zip(net.layers, net.tops, strict=True) if layer.type == "Split" for blob in tops}
    total = sum(blob.count for blob in set(net.blobs.values()) - copies)
    for layer, bottoms, tops in zip(net.layers, net.bottoms, net.tops, strict=True):
        if layer.type == "Pooling":
            total += tops[0].count  # which element was the maximum
        elif layer.type == "SoftmaxWithLoss":
            total += bottoms[0].count
        elif layer.type == "Convolution":
            total += math.prod(layer.blobs[0].shape[1:]) * math.prod(tops[0].shape[2:])  # the columns of one image
    return total


def diff_elements(net: Net) -> int:
    """Return the elements of the diffs that the backward pass of `net` writes or begins with."""
    wanted = {
        blob
        for bottoms, needs in zip(net.bottoms, net.bottom_need_backward, strict=True)
        for blob, need in zip(bottoms, needs, strict=True)
        if need
    }
    return sum(blob.count for blob in wanted) + len(net.loss_tops)
