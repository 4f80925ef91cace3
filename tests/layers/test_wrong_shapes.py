"""For each layer type a wrong shape, through a net from its prototxt: the message names place, blobs and shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from nets import build, input_layer, layer

from caffe_lite.errors import NetError
from caffe_lite.layers import REGISTRY, layer_type_list

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A layer of bottoms a, b, ... of these shapes, tops t0, t1, ..., these options; and what is said of it."""

    shapes: list[Shape]
    message: str
    options: str = ""
    tops: int = 1


# Types that take any shape: what can be wrong is the number of bottoms.
ANY_SHAPE = ("AbsVal", "BNLL", "Clip", "Dropout", "ELU", "Exp", "Log", "Power", "ReLU", "Sigmoid", "Split", "Swish")
ANY_SHAPE += ("TanH", "Threshold")
COUNT = Wrong([(2, 3), (4,)], "wrong number of bottoms. Expected 1, received 2: 'a' (2, 3), 'b' (4,).")

# Types without bottoms, or whose bottoms may be anything: an option that is wrong, or the number of tops.
OPTIONS = {
    "Data": Wrong([], "data_param: source is missing.", "data_param { batch_size: 1 }"),
    "DummyData": Wrong(
        [],
        "shape must be given once, or once for each of the 3 tops 't0', 't1', 't2'. Received 2.",
        "dummy_data_param { shape { dim: 2 } shape { dim: 3 } }",
        3,
    ),
    "HDF5Data": Wrong([], "hdf5_data_param: source is missing.", "hdf5_data_param { batch_size: 1 }"),
    "ImageData": Wrong([], "image_data_param: source is missing.", tops=2),
    "Input": Wrong(
        [],
        "shape must be given once, or once for each of the 3 tops 't0', 't1', 't2'. Received 2.",
        "input_param { shape { dim: 2 } shape { dim: 3 } }",
        3,
    ),
    "MemoryData": Wrong(
        [],
        "batch_size, channels, height and width must all be 1 or more. Received 2, 3, 0, 4.",
        "memory_data_param { batch_size: 2 channels: 3 width: 4 }",
        2,
    ),
    "Parameter": Wrong(
        [],
        "the param does not fit its shape. Expected (3, 5) for top 't0', received (2,).",
        "parameter_param { shape { dim: 3 dim: 5 } } blobs { shape { dim: 2 } data: [1, 2] }",
    ),
    "Python": Wrong([(2, 3)], "python_param: module and layer must both be given."),
    "Silence": Wrong([(2, 3)], "wrong number of tops. Expected 0, received 1: 't0'."),
    "WindowData": Wrong([], "window_data_param: source is missing.", "window_data_param { batch_size: 1 }", 2),
}

CONVOLUTION = "convolution_param { num_output: 2 kernel_size: 3 }"
RECURRENT = "recurrent_param { num_output: 4 }"

SHAPES = {
    "Accuracy": Wrong(
        [(2, 3), (2, 4)],
        "Expected 2 labels for predictions 'a' (2, 3) with 3 classes, received labels 'b' (2, 4). Check",
    ),
    "ArgMax": Wrong(
        [(2, 3)],
        "top_k must be at most the number of elements to choose from, 3. Received top_k 4 for bottom 'a' (2, 3). Use",
        "argmax_param { top_k: 4 }",
    ),
    "BatchNorm": Wrong(
        [(6,)], "expected a bottom (num, channels, ...) of two axes or more, received 'a' (6,). Reshape it."
    ),
    "BatchReindex": Wrong(
        [(5, 3), (2, 1)], "the indices must have one axis. Received 'b' (2, 1) for items 'a' (5, 3). Reshape them."
    ),
    "Bias": Wrong(
        [(2, 3, 4), (4, 3)],
        "Expected the first axes of (3, 4), received 'b' (4, 3) for bottom 'a' (2, 3, 4). Use another axis",
    ),
    "Concat": Wrong(
        [(2, 3, 4), (2, 5, 3)], "Expected (2, any, 4) as of 'a' (2, 3, 4), received 'b' (2, 5, 3). Use another axis"
    ),
    "ContrastiveLoss": Wrong(
        [(6, 5), (6, 4), (6,)],
        "(pairs, channels), with axes of length 1 at most behind them. Received 'a' (6, 5) and 'b' (6, 4).",
    ),
    "Convolution": Wrong(
        [(2, 3, 5, 2)],
        "axis 1: kernel 3 with dilation 1 spans 3, input 2 with pad 0 has 2 (bottom 'a' (2, 3, 5, 2)). Use",
        CONVOLUTION,
    ),
    "Crop": Wrong(
        [(2, 3, 7, 8), (2, 3, 8, 5)],
        "offset 0, size 8, but length 7. Received 'a' (2, 3, 7, 8), to crop to 'b' (2, 3, 8, 5). Use",
    ),
    "Deconvolution": Wrong(
        [(2, 3, 1, 1)],
        "of which pad 2 cuts 4 (bottom 'a' (2, 3, 1, 1)). Use a smaller pad.",
        "convolution_param { num_output: 2 kernel_size: 3 pad: 2 }",
    ),
    "Eltwise": Wrong([(2, 3), (3, 2)], "the same shape. Expected that of 'a' (2, 3), received 'b' (3, 2). Use"),
    "Embed": Wrong(
        [(4,)],
        "do not fit bottom 'a' (4,) and the options. Expected shapes [(3, 2), (2,)], received [(2,)]. Change",
        "embed_param { num_output: 2 input_dim: 3 } blobs { shape { dim: 2 } data: [1, 2] }",
    ),
    "EuclideanLoss": Wrong(
        [(6, 5), (6, 4)], "the same number of elements. Expected 30 as of 'a' (6, 5), received 'b' (6, 4). Check"
    ),
    "Filter": Wrong(
        [(4, 3), (4, 2)], "one element an item. Expected (4) or (4, 1, ...), received 'b' (4, 2). Reshape it."
    ),
    "Flatten": Wrong(
        [(3,)], "axis 1 does not exist. Expected -1 to 0 for bottom 'a' (3,). Use another axis or bottom."
    ),
    "HDF5Output": Wrong(
        [(2, 3), (3,)],
        "the bottoms differ in axis 0, the batch size. Received 'a' (2, 3) and 'b' (3,). Check",
        "hdf5_output_param { file_name: 'out.h5' }",
        0,
    ),
    "HingeLoss": Wrong(
        [(6, 5), (5,)],
        "the same first dimension, one axis at least. Received 'a' (6, 5) and 'b' (5,). Check the batch sizes",
    ),
    "Im2col": Wrong(
        [(2, 3, 5, 2)],
        "axis 1: kernel 3 with dilation 1 spans 3, input 2 with pad 0 has 2 (bottom 'a' (2, 3, 5, 2)). Use",
        CONVOLUTION,
    ),
    "InfogainLoss": Wrong(
        [(6, 5), (6,), (4, 5)], "Expected 25 elements for scores 'a' (6, 5), received 'c' (4, 5). Check"
    ),
    "InnerProduct": Wrong(
        [(6,)],
        "axis 1 does not exist. Expected -1 to 0 for bottom 'a' (6,). Use another axis or bottom.",
        "inner_product_param { num_output: 2 }",
    ),
    "LRN": Wrong(
        [(2, 6, 6)],
        "expected a bottom of four axes (num, channels, height, width), received 'a' (2, 6, 6). Reshape it.",
    ),
    "LSTM": Wrong(
        [(4, 3, 5), (4, 2)], "Expected (4, 3) for x, 'a' (4, 3, 5), received 'b' (4, 2). Reshape it.", RECURRENT
    ),
    "LSTMUnit": Wrong(
        [(1, 3, 4), (1, 3, 12), (1, 3)],
        "does not fit c_prev, 'a' (1, 3, 4). Expected shape (1, 3, 16), received 'b' (1, 3, 12). Check",
        tops=2,
    ),
    "MVN": Wrong([(2, 3, 4, 5, 6)], "at most 4 axes. Received 'a' (2, 3, 4, 5, 6)."),
    "MultinomialLogisticLoss": Wrong(
        [(6, 5), (6, 2)],
        "Expected 6 labels for predictions 'a' (6, 5) with 5 classes, received labels 'b' (6, 2). Check",
    ),
    "PReLU": Wrong([(4,)], "must have a channel axis. Expected at least 2 axes, received 'a' (4,). Reshape it."),
    "Pooling": Wrong(
        [(2, 3, 4)],
        "expected a bottom of four axes (num, channels, height, width), received 'a' (2, 3, 4). Reshape it.",
        "pooling_param { kernel_size: 2 }",
    ),
    "RNN": Wrong(
        [(4, 3), (4, 3)],
        "x must have axes (timesteps, streams, ...) and a timestep. Received 'a' (4, 3). Reshape it.",
        RECURRENT,
    ),
    "Reduction": Wrong(
        [(2, 3)],
        "axis 2 does not exist. Expected -2 to 1 for bottom 'a' (2, 3). Use another axis or bottom.",
        "reduction_param { axis: 2 }",
    ),
    "Reshape": Wrong(
        [(2, 3)],
        "as many elements as the bottom. Expected 6 as of 'a' (2, 3), received 20 (4, 5). Use",
        "reshape_param { shape { dim: 4 dim: 5 } }",
    ),
    "SPP": Wrong(
        [(2, 3, 8, 5)],
        "must be smaller than the windows, 2 x 2 (bottom 'a' (2, 3, 8, 5)). Use a smaller pyramid_height",
        "spp_param { pyramid_height: 3 }",
    ),
    "Scale": Wrong(
        [(2, 3, 4)],
        "Expected axis 1 + num_axes 3 to be at most 3, the number of axes of bottom 'a' (2, 3, 4). Use num_axes: -1",
        "scale_param { axis: 1 num_axes: 3 }",
    ),
    "SigmoidCrossEntropyLoss": Wrong(
        [(6, 5), (6,)], "Expected 30 as of scores 'a' (6, 5), received targets 'b' (6,). Check"
    ),
    "Slice": Wrong(
        [(2, 5)],
        "2 tops cannot have equal parts of 5, the length of axis 1 of bottom 'a' (2, 5). Name another number of tops",
        tops=2,
    ),
    "Softmax": Wrong(
        [(4,)], "axis 1 does not exist. Expected -1 to 0 for bottom 'a' (4,). Use another axis or bottom."
    ),
    "SoftmaxWithLoss": Wrong(
        [(6, 5), (6, 2)],
        "Expected 6 labels for predictions 'a' (6, 5) with 5 classes, received labels 'b' (6, 2). Check",
    ),
    "Tile": Wrong(
        [(2,)],
        "axis 1 does not exist. Expected -1 to 0 for bottom 'a' (2,). Use another axis or bottom.",
        "tile_param { tiles: 2 }",
    ),
}

TABLE = {**dict.fromkeys(ANY_SHAPE, COUNT), **OPTIONS, **SHAPES}


def text_of(type_name: str, wrong: Wrong) -> str:
    shapes = dict(zip("abc", wrong.shapes, strict=False))
    tops = " ".join(f"t{i}" for i in range(wrong.tops))
    bottoms = input_layer(**shapes) if shapes else ""
    return bottoms + layer("wrong", type_name, " ".join(shapes), tops, wrong.options)


def test_no_type_is_missing() -> None:
    assert sorted(TABLE) == layer_type_list()
    assert {name for name, one in TABLE.items() if not one.shapes} == {
        name for name, one in REGISTRY.items() if one.exact_bottoms == 0
    }


@pytest.mark.parametrize("type_name", TABLE)
def test_a_wrong_shape_is_told_with_layer_type_blobs_and_shapes(
    type_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = TABLE[type_name]
    with pytest.raises(NetError) as raised:
        build(text_of(type_name, wrong))
    message = str(raised.value)
    assert message.startswith(f"layer 'wrong' ({type_name}): ")
    assert wrong.message in message
    blobs = [f"'{name}' {shape}" for name, shape in zip("abc", wrong.shapes, strict=False)]
    assert type_name in OPTIONS or any(blob in wrong.message for blob in blobs)
