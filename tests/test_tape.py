"""Every layer's forward and backward run on the tape: after the first pass no Python of the layer runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import TRAIN, input_layer, layer

from caffe_lite import layers, prototxt
from caffe_lite.devices import HostDevice
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

FOLDER = Path(__file__).parent / "reference" / "layers"
CASES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.prototxt"))}
CASES["silence"] = f"force_backward: true {input_layer(x=(2, 3))} {layer('layer', 'Silence', 'x')}"


def phase_of(name: str) -> int:
    """Return the phase that the case was recorded in."""
    if not (FOLDER / f"{name}.npz").exists():
        return TRAIN
    with np.load(FOLDER / f"{name}.npz") as case:
        return int(caffe_pb2.Phase.Value(str(case["phase"])))


def build(name: str) -> tuple[Net, layers.Layer]:
    param = caffe_pb2.NetParameter()
    prototxt.parse(CASES[name], param, name)
    net = Net.from_param(param, caffe_pb2.NetState(phase=phase_of(name)))
    return net, net.layer_dict["layer"]


@pytest.mark.parametrize("name", CASES)
def test_no_launch_escapes_the_tape(name, monkeypatch):
    net, layer = build(name)
    if layer.runs_python:
        pytest.skip(f"{layer.type} runs Python by its nature")
    net.run_forward()
    net.run_backward()
    escaped: list[str] = []
    submit = HostDevice._submit
    monkeypatch.setattr(HostDevice, "_submit", lambda *args: (escaped.append(args[1]), submit(*args)))
    for method in ("prepare", "forward", "backward", "reshape"):
        monkeypatch.setattr(type(layer), method, lambda *_, method=method: escaped.append(method))
    net.run_forward()
    net.run_backward()
    assert escaped == []


def test_only_layers_that_must_run_python_do():
    assert {name for name, layer in layers.REGISTRY.items() if layer.runs_python} <= {
        *("Data", "DummyData", "HDF5Data", "HDF5Output", "ImageData", "MemoryData", "WindowData"),
        *("Filter", "Python"),
    }


def test_every_type_with_kernels_has_a_case():
    recorded = {build(name)[1].type for name in CASES}
    makers = {name for name, layer in layers.REGISTRY.items() if layer.exact_bottoms == 0}
    assert set(layers.layer_type_list()) - recorded - makers == {"HDF5Output", "Python"}
