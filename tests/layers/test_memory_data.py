"""MemoryData: batches from arrays, as pycaffe's ``set_input_arrays`` gives them, and complaints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import build, input_layer, layer

from caffe_lite.errors import CaffeError, DataError, NetError, ShapeError, UsageError
from caffe_lite.net import Net

DATA = np.arange(6 * 2 * 3 * 1, dtype=np.float32).reshape(6, 2, 3, 1)
LABELS = np.arange(6, dtype=np.float32)


def memory_net(batch_size: int = 2, more: str = "", rest: str = "") -> Net:
    options = f"memory_data_param {{ batch_size: {batch_size} channels: 2 height: 3 width: 1 }} {more}"
    return build(layer("d", "MemoryData", tops="data label", more=options) + rest)


def test_a_pass_gives_the_next_items_and_starts_over_at_the_end() -> None:
    net = memory_net()
    net.set_input_arrays(DATA, LABELS)
    for start in (0, 2, 4, 0, 2):
        tops = net.forward()
        np.testing.assert_array_equal(tops["data"], DATA[start : start + 2])
        np.testing.assert_array_equal(tops["label"].ravel(), LABELS[start : start + 2])


def test_the_labels_have_four_axes_from_the_first_pass_on() -> None:
    net = memory_net()
    assert net.blobs["label"].shape == (2,)
    net.set_input_arrays(DATA, LABELS.reshape(6, 1, 1, 1))
    net.forward()
    assert net.blobs["label"].shape == (2, 1, 1, 1)


def test_a_whole_net_computes_on_the_arrays() -> None:
    net = memory_net(3, rest=layer("p", "Reshape", "label", "flat", "reshape_param { shape { dim: -1 } }"))
    net.set_input_arrays(DATA, LABELS)
    np.testing.assert_array_equal(net.forward()["flat"], LABELS[:3])
    np.testing.assert_array_equal(net.forward()["flat"], LABELS[3:])


def test_the_arrays_are_not_copied() -> None:
    data = DATA.copy()
    net = memory_net(6)
    net.set_input_arrays(data, LABELS)
    data[...] = 8
    assert (net.forward()["data"] == 8).all()


def test_new_arrays_begin_at_their_first_item() -> None:
    net = memory_net()
    net.set_input_arrays(DATA, LABELS)
    net.forward()
    net.set_input_arrays(DATA + 100, LABELS[::-1])
    np.testing.assert_array_equal(net.forward()["data"], DATA[:2] + 100)
    assert net.blobs["label"].data.ravel().tolist() == [5, 4]


def test_seek_finds_the_place_in_the_arrays() -> None:
    net = memory_net()
    net.seek(1)
    net.set_input_arrays(DATA, LABELS)
    net.seek(5)
    np.testing.assert_array_equal(net.forward()["data"], DATA[4:])


def test_transform_param_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    net = memory_net(more="transform_param { scale: 2 }")
    net.set_input_arrays(DATA, LABELS)
    assert "MemoryData does not transform array data." in caplog.messages
    np.testing.assert_array_equal(net.forward()["data"], DATA[:2])


# -- complaints


def test_a_pass_without_arrays_says_what_to_call() -> None:
    net = memory_net()
    with pytest.raises(DataError, match=r"layer 'd' \(MemoryData\): there is no data yet. Call net.set_input_arrays"):
        net.forward()
    net.set_input_arrays(DATA, LABELS)
    net.forward()


@pytest.mark.parametrize(
    ("data", "labels", "error", "message"),
    [
        (
            DATA[0],
            LABELS,
            ShapeError,
            r"data array has the wrong shape. Expected \(items, 2, 3, 1\), received \(2, 3, 1",
        ),
        (DATA.reshape(6, 3, 2, 1), LABELS, ShapeError, r"the data array has the wrong shape.*received \(6, 3, 2, 1\)"),
        (DATA, LABELS.reshape(6, 1), ShapeError, r"labels array .* Expected \(items, 1, 1, 1\), received \(6, 1\)"),
        (DATA.astype(np.float64), LABELS, UsageError, "the data array must be float32. Received float64"),
        (DATA, LABELS.astype(int), UsageError, "the labels array must be float32. Received int64"),
        (np.asfortranarray(DATA), LABELS, UsageError, "the data array must be C contiguous"),
        (DATA, LABELS[:4], ShapeError, "data and labels must have the same length. Received 6 and 4"),
        (DATA[:5].copy(), LABELS[:5], ShapeError, "must be a multiple of batch_size 2. Received 5 items"),
        (DATA[:0], LABELS[:0], ShapeError, "must be a multiple of batch_size 2. Received 0 items"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(data: Any, labels: Any, error: type[CaffeError], message: str) -> None:
    with pytest.raises(error, match=rf"layer 'd' \(MemoryData\): .*{message}"):
        memory_net().set_input_arrays(data, labels)


def test_a_net_without_memory_data_refuses_arrays() -> None:
    with pytest.raises(UsageError, match=r"needs a net whose first layer is MemoryData. It is Input"):
        build(input_layer(x=(2,))).set_input_arrays(DATA, LABELS)


@pytest.mark.parametrize("field", ["batch_size", "channels", "height", "width"])
def test_a_missing_size_is_an_error(field: str) -> None:
    fields = {"batch_size": 4, "channels": 3, "height": 2, "width": 5} | {field: 0}
    text = " ".join(f"{name}: {value}" for name, value in fields.items())
    received = ", ".join(str(value) for value in fields.values())
    with pytest.raises(NetError, match=f"must all be 1 or more. Received {received}"):
        build(layer("d", "MemoryData", tops="data label", more=f"memory_data_param {{ {text} }}"))


def test_one_top_is_an_error() -> None:
    with pytest.raises(NetError, match=r"wrong number of tops. Expected 2, received 1"):
        build(layer("d", "MemoryData", tops="data"))
