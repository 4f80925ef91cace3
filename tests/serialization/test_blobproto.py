"""Blobs keep their shape and their numbers, in every form in which files hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_lite.errors import WeightsError
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import blobproto

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
VALUES = np.arange(6, dtype=np.float32).reshape(1, 2, 3) / 7


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 2, 3, 4, 5)])
def test_an_array_survives_the_way_there_and_back(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    back = blobproto.to_array(blobproto.from_array(array, diff=-array))
    assert back.dtype == np.float32
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)
    if array.size:
        np.testing.assert_array_equal(blobproto.to_array(blobproto.from_array(array, -array), diff=True), -array)


def test_from_array_fills_the_fields_that_caffe_fills() -> None:
    expected = caffe_pb2.BlobProto(data=[1, 2], diff=[3, 4], shape=caffe_pb2.BlobShape(dim=[2, 1]))
    assert blobproto.from_array([[1], [2]], diff=[[3], [4]]) == expected


def test_from_array_takes_any_dtype_and_layout() -> None:
    array = np.arange(12).reshape(3, 4)[::2, ::-1].T
    np.testing.assert_array_equal(blobproto.to_array(blobproto.from_array(array)), array)


def test_to_array_gives_an_array_that_may_be_written() -> None:
    array = blobproto.to_array(blobproto.from_array(VALUES))
    array[...] = 0
    assert not array.any()


def test_legacy_dimensions_give_four_axes_and_count_before_a_shape() -> None:
    blob = caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=VALUES.ravel())
    blob.shape.dim.extend([6])
    assert blobproto.to_array(blob).shape == (1, 1, 2, 3)


def test_doubles_become_floats() -> None:
    blob = caffe_pb2.BlobProto(double_data=[0.1, 0.2], double_diff=[0.3, 0.4], shape=caffe_pb2.BlobShape(dim=[2]))
    np.testing.assert_array_equal(blobproto.to_array(blob), np.float32([0.1, 0.2]))
    np.testing.assert_array_equal(blobproto.to_array(blob, diff=True), np.float32([0.3, 0.4]))


@pytest.mark.parametrize(("raw_type", "dtype"), [("DOUBLE", "<f8"), ("FLOAT", "<f4"), ("FLOAT16", "<f2")])
def test_nvcaffes_raw_bytes_are_read_in_their_own_precision(raw_type: str, dtype: str) -> None:
    stored = VALUES.astype(dtype)
    blob = caffe_pb2.BlobProto(
        raw_data=stored.tobytes(),
        raw_data_type=caffe_pb2.BlobProto.DESCRIPTOR.fields_by_name["raw_data_type"]
        .enum_type.values_by_name[raw_type]
        .number,
        shape=caffe_pb2.BlobShape(dim=VALUES.shape),
    )
    np.testing.assert_array_equal(blobproto.to_array(blob), stored.astype(np.float32))


def test_raw_integers_are_refused() -> None:
    number = caffe_pb2.BlobProto.DESCRIPTOR.fields_by_name["raw_data_type"].enum_type.values_by_name["INT"].number
    with pytest.raises(WeightsError, match="raw_data_type must be DOUBLE, FLOAT or FLOAT16"):
        blobproto.to_array(caffe_pb2.BlobProto(raw_data=b"1234", raw_data_type=number))


def test_numbers_that_are_not_packed_are_read_too() -> None:
    one_by_one = b"".join(b"\x2d" + np.float32(value).tobytes() for value in (1, 2, 3))  # field 5, fixed32
    shape = b"\x3a\x03\x0a\x01\x03"
    blob = caffe_pb2.BlobProto.FromString(one_by_one + shape)
    np.testing.assert_array_equal(blobproto.to_array(blob), [1, 2, 3])
    wire = blobproto.message.wire_class("BlobProto").FromString(one_by_one + shape)
    np.testing.assert_array_equal(blobproto.to_array(wire), [1, 2, 3])


def test_a_wrong_number_of_values_is_an_error_with_both_counts() -> None:
    blob = caffe_pb2.BlobProto(data=[1, 2, 3], shape=caffe_pb2.BlobShape(dim=[2, 2]))
    with pytest.raises(WeightsError, match=r"a blob of shape \(2, 2\) must hold 4 values. Received 3"):
        blobproto.to_array(blob)


def test_the_mean_that_caffes_tool_computed_is_read() -> None:
    path = REFERENCE / "files" / "mean.binaryproto"
    mean = caffe_pb2.BlobProto.FromString(path.read_bytes())
    array = blobproto.read(path)
    assert array.shape == (mean.num, mean.channels, mean.height, mean.width)
    np.testing.assert_array_equal(array.ravel(), np.array(list(mean.data), np.float32))
