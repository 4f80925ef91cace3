"""Input and DummyData.  The harness writes NaN into tops before each pass, so these layers are driven by hand."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.blob import Blob
from caffe_lite.devices import host_device
from caffe_lite.errors import NetError
from caffe_lite.layers import Layer, create

from .harness import TRAIN, layer_parameter


def build(text: str, tops: int, seed: int = 7) -> tuple[Layer, list[Blob]]:
    device = host_device()
    layer = create(layer_parameter(text), TRAIN, device)
    layer.seed = seed
    blobs = [Blob(device, (), f"top_{i}") for i in range(tops)]
    layer.setup([], blobs)
    layer.reshape([], blobs)
    return layer, blobs


def run(layer: Layer, tops: list[Blob]) -> list[np.ndarray]:
    if layer.runs_python:
        layer.prepare([], tops)
    layer.forward([], tops)
    layer.backward(tops, [], [])
    return [blob.data.copy() for blob in tops]


def shapes(text: str, tops: int) -> list[tuple[int, ...]]:
    return [blob.shape for blob in build(text, tops)[1]]


# -- Input


def test_one_shape_serves_all_tops_of_an_input() -> None:
    text = 'type: "Input" input_param { shape { dim: 2 dim: 3 } }'
    assert shapes(text, 1) == [(2, 3)]
    assert shapes(text, 3) == [(2, 3)] * 3


def test_an_input_may_have_one_shape_a_top() -> None:
    assert shapes('type: "Input" input_param { shape { dim: 2 dim: 3 } shape { dim: 7 } }', 2) == [(2, 3), (7,)]


def test_an_input_without_shapes_leaves_its_tops_alone() -> None:
    assert shapes('type: "Input"', 2) == [(), ()]


def test_an_input_keeps_what_was_written_and_how_it_was_reshaped() -> None:
    layer, tops = build('type: "Input" input_param { shape { dim: 2 dim: 3 } }', 1)
    tops[0].reshape(4, 1)
    tops[0].data[...] = 6
    layer.reshape([], tops)
    np.testing.assert_array_equal(run(layer, tops)[0], np.full((4, 1), 6))


def test_an_input_refuses_a_number_of_shapes_that_is_not_the_tops() -> None:
    with pytest.raises(NetError, match=r"shape must be given once, or once for each of the 3 tops .*Received 2"):
        build('type: "Input" input_param { shape { dim: 1 } shape { dim: 2 } }', 3)


# -- DummyData


def dummy(options: str) -> str:
    return f'type: "DummyData" dummy_data_param {{ {options} }}'


def test_dummy_data_is_zero_without_a_filler() -> None:
    layer, tops = build(dummy("shape { dim: 2 dim: 3 } shape { dim: 5 }"), 2)
    values = run(layer, tops)
    np.testing.assert_array_equal(values[0], np.zeros((2, 3)))
    np.testing.assert_array_equal(values[1], np.zeros(5))


def test_dummy_data_fills_constants_once_and_anything_else_before_each_pass() -> None:
    fillers = 'data_filler { value: 3 } data_filler { type: "gaussian" }'
    layer, tops = build(dummy(f"shape {{ dim: 4 dim: 5 }} {fillers}"), 2)
    assert (tops[0].data == 3).all() and not tops[1].data.any()
    first, second = run(layer, tops), run(layer, tops)
    assert (first[0] == 3).all()
    assert first[1].all() and second[1].all() and (first[1] != second[1]).all()
    tops[0].data[...] = 8
    assert (run(layer, tops)[0] == 8).all()


def test_one_filler_serves_all_tops_with_numbers_of_their_own() -> None:
    layer, tops = build(dummy('shape { dim: 9 } data_filler { type: "uniform" }'), 2)
    first, second = run(layer, tops)
    assert (first != second).all()


def test_dummy_data_is_a_function_of_the_seed_and_the_pass() -> None:
    text = dummy('shape { dim: 9 } data_filler { type: "uniform" }')
    layer, tops = build(text, 1)
    passes = [run(layer, tops)[0] for _ in range(4)]
    again, its_tops = build(text, 1)
    again.seek(2)
    np.testing.assert_array_equal([run(again, its_tops)[0] for _ in range(2)], passes[2:])
    assert (run(*build(text, 1, seed=8))[0] != passes[0]).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("num: 2 channels: 3 height: 4 width: 5", [(2, 3, 4, 5)] * 2),
        ("num: 2 num: 6 channels: 3 height: 4 width: 5 width: 7", [(2, 3, 4, 5), (6, 3, 4, 7)]),
        ("shape { dim: 2 }", [(2,), (2,)]),
        ("shape { dim: 2 } shape { dim: 3 dim: 4 }", [(2,), (3, 4)]),
    ],
)
def test_dummy_data_takes_shapes_and_legacy_dimensions(options: str, expected: list[tuple[int, ...]]) -> None:
    assert shapes(dummy(options), 2) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("shape { dim: 1 } num: 1", "both shape and the legacy num, channels, height, width are given"),
        ("", "shape must be given once, or once for each of the 3 tops .*Received 0"),
        ("num: 1 num: 2 channels: 1 height: 1 width: 1", "num must be given once, or .* 3 tops .*Received 2"),
        ("num: 1 height: 1 width: 1", "channels must be given once, or .* 3 tops .*Received 0"),
        ("num: 1 channels: 1 height: 1 height: 1 width: 1", "height must be given once, or .* Received 2"),
        ("num: 1 channels: 1 height: 1", "width must be given once, or .* Received 0"),
        ("shape { dim: 1 } data_filler {} data_filler {}", "data_filler must be given once, or .* Received 2"),
        ('shape { dim: 1 } data_filler { type: "unifrm" }', "unknown filler type 'unifrm'. Did you mean 'uniform'"),
    ],
)
def test_dummy_data_refuses_what_does_not_fit(options: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        build(dummy(options), 3)
