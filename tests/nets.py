"""Nets for tests: `build` makes one from text, `layer_type` lends the registry a layer for one test."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import text_format

from caffe_lite.blob import Blob
from caffe_lite.devices import host_device
from caffe_lite.layers import REGISTRY, Layer
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST

MLP = """
name: "mlp"
layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "x" top: "ip1"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } bias_filler { value: 0.1 } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


def parse(text: str, phase: int = TRAIN, **state: Any) -> Any:
    """Return `text` as a ``NetParameter`` in the ``NetState`` given by the keywords."""
    param = text_format.Parse(text, caffe_pb2.NetParameter())
    param.state.MergeFrom(caffe_pb2.NetState(phase=phase, **state))
    return param


def build(text: str, seed: int = 1, **state: Any) -> Net:
    """Return the net of `text`; the same `seed` gives the same weights."""
    return Net.from_param(parse(text, **state), seed=seed)


def allocated() -> int:
    """Return the bytes that live objects hold on the host device."""
    gc.collect()
    return host_device().memory_info().allocated


def layer(name: str, layer_type: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    """Return the text of a layer whose bottoms and tops are separated by spaces."""
    wires = " ".join([f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()])
    return f'layer {{ name: "{name}" type: "{layer_type}" {wires} {more} }}\n'


def input_layer(**shapes: tuple[int, ...]) -> str:
    """Return the text of an Input layer "in" with a top for each keyword."""
    dims = ["shape { " + " ".join(f"dim: {dim}" for dim in shape) + " }" for shape in shapes.values()]
    return layer("in", "Input", tops=" ".join(shapes), more=f"input_param {{ {' '.join(dims)} }}")


@contextlib.contextmanager
def layer_type(layer_class: type[Layer], name: str = "Custom") -> Iterator[None]:
    """Register `layer_class` as `name` inside the `with` block."""
    layer_class.type = name
    REGISTRY[name] = layer_class
    try:
        yield
    finally:
        del REGISTRY[name]


class Copy(Layer):
    """Forward: y = x; backward: dx = dy.  Test layers derive from it."""

    exact_bottoms = 1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in top:
            blob.reshape(bottom[0].shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in top:
            self.device.copy(bottom[0].data_buffer, blob.data_buffer)

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            self.device.copy(top[0].diff_buffer, bottom[0].diff_buffer)
