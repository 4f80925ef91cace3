"""models/lenet: Caffe's classic settings, and a deploy net that is the trained one."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

from caffe_lite import resources
from caffe_lite.proto import caffe_pb2

CLASSIC = {
    "test_iter": [100],
    "test_interval": 500,
    "base_lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "lr_policy": "inv",
    "gamma": 0.0001,
    "power": 0.75,
    "display": 100,
    "max_iter": 10000,
    "snapshot": 5000,
}


def read(name: str, message: Any) -> Any:
    return text_format.Parse(resources.path(f"models/lenet/{name}").read_text(), message)


def test_the_solver_has_the_classic_settings() -> None:
    solver = read("lenet_solver.prototxt", caffe_pb2.SolverParameter())
    for field, value in CLASSIC.items():
        received = getattr(solver, field)
        assert (list(received) if isinstance(value, list) else received) == pytest.approx(value), field
    assert resources.path(f"models/lenet/{solver.net}").exists()


def test_the_data_layers_read_what_convert_mnist_writes() -> None:
    layers = read("lenet_train_test.prototxt", caffe_pb2.NetParameter()).layer[:2]
    assert [(layer.include[0].phase, layer.data_param.batch_size) for layer in layers] == [
        (caffe_pb2.TRAIN, 64),
        (caffe_pb2.TEST, 100),
    ]
    assert all(layer.data_param.backend == caffe_pb2.DataParameter.LMDB for layer in layers)
    assert all(layer.transform_param.scale == 1 / 256 for layer in layers)


def test_the_deploy_net_is_the_trained_net() -> None:
    trained = read("lenet_train_test.prototxt", caffe_pb2.NetParameter()).layer
    deployed = read("lenet.prototxt", caffe_pb2.NetParameter()).layer
    assert list(deployed[1:-1]) == list(trained[2:-2])
    assert [layer.type for layer in deployed][:: len(deployed) - 1] == ["Input", "Softmax"]
