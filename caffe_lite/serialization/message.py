"""Caffe's binary files as protobuf messages, with the numbers of their blobs as plain bytes.

A packed ``repeated float`` and a ``bytes`` field are the same on the wire.  `wire_class` gives the schema's messages
with every array of a ``BlobProto`` declared as bytes, so hundreds of megabytes pass as memory copies instead of one
Python float at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from caffe_lite.errors import WeightsError
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import files

SIZE_LIMIT = 2**31 - 1  # of a protobuf message, in bytes

VARINT_BYTES = 10  # of the longest

ARRAYS = ("data", "diff", "double_data", "double_diff")


class Kind(NamedTuple):
    """One of the kinds of file that Caffe writes: its message, its description and what tells it from the others."""

    message: str
    description: str
    fits: Callable[[Any], bool]


# The messages carry no mark of their kind, and most bytes of one parse as another: these fields decide.
KINDS = {
    kind.message: kind
    for kind in (
        Kind("NetParameter", "the weights of a net (.caffemodel)", lambda net: bool(net.layer or net.layers)),
        Kind(
            "SolverState",
            "the state of a solver (.solverstate)",
            lambda state: state.HasField("iter") and bool(state.learned_net or state.history),
        ),
        Kind(
            "BlobProto",
            "a single blob (.binaryproto, as an image mean is stored)",
            lambda blob: bool(blob.data or blob.double_data or blob.raw_data),
        ),
    )
}


@functools.cache
def wire_class(name: str) -> Any:
    """Return the class of message `name` in which each array of a ``BlobProto`` is ``repeated bytes``."""
    return message_factory.GetMessageClass(_wire_pool().FindMessageTypeByName(f"caffe.{name}"))


@functools.cache
def _wire_pool() -> descriptor_pool.DescriptorPool:
    schema = descriptor_pb2.FileDescriptorProto()
    caffe_pb2.BlobProto.DESCRIPTOR.file.CopyToProto(schema)
    blob_proto = next(message for message in schema.message_type if message.name == "BlobProto")
    for field in blob_proto.field:
        if field.name in ARRAYS:
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            field.ClearField("options")  # bytes are never `packed`
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(schema.SerializeToString())
    return pool


def read(path: files.PathLike, name: str) -> Any:
    """Return the wire message `name` (a key of `KINDS`) that the file at `path` holds.

    Raises:
        MissingFileError, FileAccessError: the file cannot be read.
        WeightsError: it holds something else, is cut off, or is larger than a protobuf message may be.
    """
    path = os.fspath(path)
    with contextlib.suppress(OSError):  # reading the file says what is wrong
        check_size(path, Path(path).stat().st_size)
    data = files.read_bytes(path)
    disguise = files.looks_like(data)
    message = None if disguise else _parse(data, name)
    if message is not None:
        return message
    kind = KINDS[name]
    disguise = disguise or next((other.description for other in KINDS.values() if _parse(data, other.message)), None)
    if disguise:
        raise WeightsError(f"{path} is not {kind.description}. It looks like {disguise}.")
    missing = _bytes_missing(data, wire_class(name).DESCRIPTOR.fields_by_number)
    if missing:
        raise WeightsError(
            f"{path} is cut off after {len(data)} bytes: at least {missing} more belong to it. "
            f"Expected {kind.description}. Copy or download it again."
        )
    raise WeightsError(f"{path} is not {kind.description}, or it is damaged: its {len(data)} bytes make no sense.")


def write(path: files.PathLike, message: Any, to: files.Write = files.write_atomically) -> None:
    """Write a message to the file at `path`, all of it or nothing; `to` does the writing.

    Raises:
        FileAccessError: the file cannot be written; the old one stays.
        WeightsError: the message is larger than a protobuf message may be.
    """
    check_size(path, message.ByteSize())
    to(path, message.SerializeToString())


def check_size(path: files.PathLike, size: int) -> None:
    """Raise `WeightsError` if a file of `size` bytes is more than protobuf can read or write."""
    if size > SIZE_LIMIT:
        raise WeightsError(f"{os.fspath(path)}: {size} bytes are too many. Expected at most {SIZE_LIMIT} (2 GiB).")


def _parse(data: bytes, name: str) -> Any:
    """Return `data` as message `name`, or None if it is no such message."""
    try:
        message = wire_class(name).FromString(data)
    except (DecodeError, UnicodeDecodeError):  # the latter from protobuf without its C library
        return None
    return message if KINDS[name].fits(message) else None


def _bytes_missing(data: bytes, known: Container[int]) -> int:
    """Return how far, in bytes, the last field of a message reaches beyond the end of `data`.

    Only the outermost fields are walked.  0 if they end where `data` ends, or are not among the numbers in `known`.
    """
    position = 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            wire_type = tag & 7
            if tag >> 3 not in known or wire_type not in (0, 2, 5):
                return 0
            if wire_type == 5:
                position += 4
                continue
            value, position = _varint(data, position)
            position += value if wire_type == 2 else 0
    except IndexError:  # in the middle of a number, unless what began is longer than any
        return 1 if len(data) - position < VARINT_BYTES else 0
    return position - len(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the base-128 number that begins at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
        if byte < 128:
            return value, position
