"""`BlobProto` messages to numpy arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caffe_lite.errors import WeightsError
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import files, message

LEGACY_DIMS = ("num", "channels", "height", "width")
RAW_DTYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # NVCaffe's Type: DOUBLE, FLOAT, FLOAT16


def to_array(blob_proto: Any, diff: bool = False) -> NDArray[np.float32]:
    """Return the data (or the `diff`) of a ``BlobProto`` as a new float32 array of the blob's shape.

    The numbers may be stored as floats, as doubles, or as NVCaffe's raw bytes; a shape in the legacy fields ``num``,
    ``channels``, ``height``, ``width`` has always four axes.

    Raises:
        WeightsError: the number of values is not what the shape asks for.
    """
    wire = message.wire_class("BlobProto")
    if not isinstance(blob_proto, wire):
        blob_proto = wire.FromString(blob_proto.SerializeToString())
    shape = shape_of(blob_proto)
    count = math.prod(shape)
    values = _values(blob_proto, "diff" if diff else "data")
    if len(values) != count:
        # Numbers that were not packed are unknown to the wire class; the schema's own class packs them.
        packed = caffe_pb2.BlobProto.FromString(blob_proto.SerializeToString()).SerializeToString()
        values = _values(wire.FromString(packed), "diff" if diff else "data")
    if len(values) != count:
        raise WeightsError(f"a blob of shape {shape} must hold {count} values. Received {len(values)}.")
    return values.reshape(shape).astype(np.float32)


def shape_of(blob_proto: Any) -> tuple[int, ...]:
    """Return the shape of a ``BlobProto``; legacy dimensions take precedence, as in Caffe."""
    if is_legacy(blob_proto):
        return tuple(getattr(blob_proto, dim) for dim in LEGACY_DIMS)
    return tuple(blob_proto.shape.dim)


def is_legacy(blob_proto: Any) -> bool:
    """Whether the shape is in the fields ``num``, ``channels``, ``height``, ``width``."""
    return any(blob_proto.HasField(dim) for dim in LEGACY_DIMS)


def from_array(array: ArrayLike, diff: ArrayLike | None = None) -> Any:
    """Return a ``BlobProto`` with the shape and the values of `array`, as float32, and those of `diff`."""
    wire = message.wire_class("BlobProto")()
    fill(wire, array, diff)
    return caffe_pb2.BlobProto.FromString(wire.SerializeToString())


def fill(wire_blob_proto: Any, array: ArrayLike, diff: ArrayLike | None = None) -> None:
    """Set the shape and the values of an empty ``BlobProto`` of the wire schema; see `message.wire_class`."""
    array = np.asarray(array, "<f4")
    if array.shape:
        wire_blob_proto.shape.dim.extend(array.shape)
    if array.size:
        wire_blob_proto.data.append(array.tobytes())
    if diff is not None and array.size:
        wire_blob_proto.diff.append(np.asarray(diff, "<f4").tobytes())


def read(path: files.PathLike) -> NDArray[np.float32]:
    """Return the blob in a ``.binaryproto`` file, such as an image mean.

    Raises:
        MissingFileError, FileAccessError: the file cannot be read.
        WeightsError: the file holds something else.
    """
    return to_array(message.read(path, "BlobProto"))


def _values(wire_blob_proto: Any, what: str) -> NDArray[Any]:
    """Return "data" or "diff" of a wire message, flat, in the precision in which it is stored."""
    doubles = getattr(wire_blob_proto, f"double_{what}")
    if doubles:
        return np.frombuffer(b"".join(doubles), "<f8")
    if wire_blob_proto.HasField(f"raw_{what}"):
        dtype = RAW_DTYPES.get(getattr(wire_blob_proto, f"raw_{what}_type"))
        if dtype is None:
            raise WeightsError(f"raw_{what}_type must be DOUBLE, FLOAT or FLOAT16.")
        return np.frombuffer(getattr(wire_blob_proto, f"raw_{what}"), dtype)
    return np.frombuffer(b"".join(getattr(wire_blob_proto, what)), "<f4")
